"""RTTM: what is written is read again; what cannot be read is named by its line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reflector_workers.domain import MeetingError, Turn
from reflector_workers.rttm import read_rttm, read_rttm_file, write_rttm

if TYPE_CHECKING:
    from pathlib import Path

TURNS = (Turn(speaker="alice", start=0.5, end=2), Turn(speaker="Zoë_K", start=1.25, end=3.125))


def test_turns_survive_the_round_trip() -> None:
    assert read_rttm(write_rttm("standup", TURNS)) == TURNS


def test_a_line_has_ten_columns() -> None:
    first, _ = write_rttm("standup", TURNS).splitlines()

    assert first == "SPEAKER standup 1 0.500 1.500 <NA> <NA> alice <NA> <NA>"


def test_the_sample_reference_has_seven_turns(sample: Path) -> None:
    turns = read_rttm_file(sample / "reference.rttm")

    assert len(turns) == 7
    assert (turns[0].speaker, turns[0].start) == ("alice", 1.0)
    assert turns[0].duration == pytest.approx(3.571)


def test_comments_blank_lines_and_other_kinds_of_line_are_skipped() -> None:
    text = ";; by hand\n\nSPKR-INFO m 1 <NA> <NA> <NA> adult alice <NA>\n" + write_rttm("m", TURNS)

    assert read_rttm(text) == TURNS


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("SPEAKER m 1 0.5 1.5 <NA>", "true.rttm, line 2 has 6 columns"),
        ("SPEAKER m 1 half 1.5 <NA> <NA> alice <NA> <NA>", "true.rttm, line 2: columns 4 and 5"),
        ("SPEAKER m 1 0.5 0 <NA> <NA> alice <NA> <NA>", "true.rttm, line 2: columns 4 and 5"),
        ("SPEAKER m 1 nan 1 <NA> <NA> alice <NA> <NA>", "true.rttm, line 2: columns 4 and 5"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, complaint: str) -> None:
    with pytest.raises(MeetingError, match=complaint):
        read_rttm(f";;\n{line}\n", "true.rttm")


def test_a_file_without_turns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.rttm"
    path.write_text(";; nothing yet\n")

    with pytest.raises(MeetingError, match="has no SPEAKER line"):
        read_rttm_file(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.rttm"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(MeetingError, match="cannot be read as text"):
        read_rttm_file(path)
