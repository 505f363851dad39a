"""Diarization error rate: cases small enough to compute by hand, and what others say of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reflector_workers.assignment import best_pairs
from reflector_workers.domain import Turn
from reflector_workers.error_rate import ErrorRate, compare

TABLE = json.loads(Path(__file__).with_name("scores.json").read_text(encoding="utf-8"))

# To pyannote.metrics who speaks twice at once is two, and where two turns touch there is a collar.
TWICE_AT_ONCE, TOUCHING = "a 0-3, a 1-4", "a 0-2, a 2-4"


def turns(text: str) -> list[Turn]:
    """``"a 0-2, b 1-3"`` as turns."""
    result = []
    for part in filter(None, text.split(", ")):
        speaker, span = part.split()
        start, end = span.split("-")
        result.append(Turn(speaker=speaker, start=float(start), end=float(end)))
    return result


def error_rate(reference: str, found: str, collar: float = 0.0) -> ErrorRate:
    return compare(turns(reference), turns(found), collar).rate


@pytest.mark.parametrize(
    ("reference", "found", "expected"),
    [
        ("a 0-10", "a 0-10", ErrorRate(0, 0, 0, 10)),
        ("a 0-10", "", ErrorRate(10, 0, 0, 10)),
        ("a 0-10", "a 2-10", ErrorRate(2, 0, 0, 10)),
        ("a 2-10", "a 0-11", ErrorRate(0, 3, 0, 8)),
        ("a 0-10", "a 0-6, b 6-10", ErrorRate(0, 0, 4, 10)),
        # overlapping speech counts once for each speaker
        ("a 0-4, b 2-6", "a 0-4, b 2-6", ErrorRate(0, 0, 0, 8)),
        ("a 0-4, b 2-6", "a 0-4", ErrorRate(4, 0, 0, 8)),
        ("a 0-4", "b 0-4, c 0-4", ErrorRate(0, 4, 0, 4)),
        # one of two is found: whoever it is
        ("a 0-2, b 0-2", "c 0-2", ErrorRate(2, 0, 0, 4)),
        # the same speaker twice at the same time is one speaker
        ("a 0-3, a 1-4", "a 0-4", ErrorRate(0, 0, 0, 4)),
        ("a 0-4", "a 0-3, a 1-4", ErrorRate(0, 0, 0, 4)),
    ],
)
def test_the_parts_of_the_error(reference: str, found: str, expected: ErrorRate) -> None:
    assert error_rate(reference, found) == expected


def test_another_spelling_of_the_names_is_no_error() -> None:
    comparison = compare(turns("Ann 0-4, Bob 2-6"), turns("ann_lee 0-4, bob 2-6"))

    assert comparison.rate == ErrorRate(0, 0, 0, 8)
    assert comparison.names == {"ann_lee": "Ann", "bob": "Bob"}


def test_each_found_speaker_is_taken_for_one_true_one_at_most() -> None:
    comparison = compare(turns("a 0-6, b 6-10"), turns("x 0-10"))

    assert comparison.names == {"x": "a"}
    assert comparison.rate == ErrorRate(0, 0, 4, 10)


def test_of_two_that_fit_as_well_the_one_of_the_same_name_is_taken() -> None:
    comparison = compare(turns("a 0-10, b 2-3"), turns("b 2-3"))

    assert comparison.names == {"b": "b"}


def test_the_pairs_fit_best_together_not_one_after_another() -> None:
    weights = {("x", "a"): 9.0, ("x", "b"): 8.0, ("y", "a"): 7.0, ("z", "c"): 0.0}

    assert best_pairs(weights) == {"x": "b", "y": "a"}


def test_in_the_collar_on_each_side_of_a_true_boundary_nothing_is_scored() -> None:
    assert error_rate("a 1-9", "a 0.5-9.5", 0.5) == ErrorRate(0, 0, 0, 7)
    assert error_rate("a 1-9", "a 0-9", 0.5) == ErrorRate(0, 0.5, 0, 7)


@pytest.mark.parametrize(
    "row", TABLE["rows"], ids=lambda row: f"{row['reference'][:20]} {row['collar']}"
)
def test_other_scorers_say_the_same(row: dict[str, Any]) -> None:
    rate = error_rate(row["reference"], row["found"], row["collar"])
    ours = [rate.miss, rate.false_alarm, rate.confusion, rate.total]

    differs = TWICE_AT_ONCE in (row["reference"], row["found"])
    differs |= row["reference"] == TOUCHING and row["collar"] > 0
    by_spyder = row["spy-der"]
    if row[
        "collar"
    ]:  # it pairs names over the collars as well, so its pairs may fit less well here
        assert ours[2] <= by_spyder[2] + 1e-3
        by_spyder = [*by_spyder[:2], ours[2], by_spyder[3]]
    assert ours == pytest.approx(by_spyder, abs=1e-3)
    assert (ours == pytest.approx(row["pyannote.metrics"], abs=1e-3)) is not differs


def test_the_rate_is_the_errors_for_each_second_of_speech() -> None:
    assert error_rate("a 0-10", "a 1-12, b 0-1").rate == pytest.approx((1 + 2) / 10)


def test_the_rate_may_be_more_than_one() -> None:
    assert error_rate("a 0-1", "b 2-4").rate == 3


@pytest.mark.parametrize(("reference", "collar"), [("", 0), ("a 0-0.4", 0.25)])
def test_where_no_speech_is_scored_there_is_no_rate(reference: str, collar: float) -> None:
    with pytest.raises(ValueError, match="nothing to compare with"):
        error_rate(reference, "a 0-1", collar)


def test_a_meeting_of_three_hours_is_compared() -> None:
    long = [
        Turn(speaker=f"s{index % 8}", start=index, end=index + 1.5) for index in range(3 * 3600)
    ]

    assert compare(long, long, 0.1).rate.rate == 0
