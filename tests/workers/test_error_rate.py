"""Diarization error rate: cases small enough to compute by hand, seconds by seconds."""

from __future__ import annotations

import pytest

from reflector_workers.domain import Turn
from reflector_workers.error_rate import ErrorRate, error_rate


def turns(text: str) -> list[Turn]:
    """``"a 0-2, b 1-3"`` as turns."""
    result = []
    for part in filter(None, text.split(", ")):
        speaker, span = part.split()
        start, end = span.split("-")
        result.append(Turn(speaker=speaker, start=float(start), end=float(end)))
    return result


@pytest.mark.parametrize(
    ("reference", "found", "expected"),
    [
        ("a 0-10", "a 0-10", ErrorRate(0, 0, 0, 10)),
        ("a 0-10", "", ErrorRate(10, 0, 0, 10)),
        ("a 0-10", "a 2-10", ErrorRate(2, 0, 0, 10)),
        ("a 2-10", "a 0-11", ErrorRate(0, 3, 0, 8)),
        ("a 0-10", "b 0-10", ErrorRate(0, 0, 10, 10)),
        ("a 0-10", "a 0-6, b 6-10", ErrorRate(0, 0, 4, 10)),
        # overlapping speech counts once for each speaker
        ("a 0-4, b 2-6", "a 0-4, b 2-6", ErrorRate(0, 0, 0, 8)),
        ("a 0-4, b 2-6", "a 0-4", ErrorRate(4, 0, 0, 8)),
        ("a 0-4, b 0-4", "a 0-4, c 0-4", ErrorRate(0, 0, 4, 8)),
        ("a 0-4", "b 0-4, c 0-4", ErrorRate(0, 4, 4, 4)),
        # one of two is found, under a third name: one missed, one confused
        ("a 0-2, b 0-2", "c 0-2", ErrorRate(2, 0, 2, 4)),
        # the same speaker twice at the same time is one speaker
        ("a 0-3, a 1-4", "a 0-4", ErrorRate(0, 0, 0, 4)),
        ("a 0-4", "a 0-3, a 1-4", ErrorRate(0, 0, 0, 4)),
    ],
)
def test_the_parts_of_the_error(reference: str, found: str, expected: ErrorRate) -> None:
    assert error_rate(turns(reference), turns(found)) == expected


def test_the_rate_is_the_errors_for_each_second_of_speech() -> None:
    assert error_rate(turns("a 0-10"), turns("a 1-12, b 0-1")).rate == pytest.approx((1 + 2) / 10)


def test_the_rate_may_be_more_than_one() -> None:
    assert error_rate(turns("a 0-1"), turns("b 0-3")).rate == 3


def test_a_reference_without_speech_has_no_rate() -> None:
    with pytest.raises(ValueError, match="nothing to compare with"):
        error_rate([], turns("a 0-1"))
