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


def test_the_mark_that_windows_puts_in_front_and_its_line_ends_are_no_part_of_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "reference.rttm"
    path.write_bytes(write_rttm("m", TURNS).replace("\n", "\r\n").encode("utf-8-sig"))

    assert read_rttm_file(path) == TURNS


def test_a_turn_of_no_duration_is_skipped() -> None:
    text = "SPEAKER m 1 0.5 0 <NA> <NA> alice <NA> <NA>\n" + write_rttm("m", TURNS)

    assert read_rttm(text) == TURNS


@pytest.mark.parametrize("columns", [8, 9, 10])
def test_the_last_two_columns_may_be_missing_or_numbers(columns: int) -> None:
    line = ["SPEAKER", "m", "1", "0.5", "1.5", "<NA>", "<NA>", "alice", "0.93", "-1e-3"]

    assert read_rttm(" ".join(line[:columns])) == TURNS[:1]


def test_a_no_break_space_is_part_of_a_name() -> None:
    (turn,) = read_rttm("SPEAKER m 1 0.5 1.5 <NA> <NA> Ann\u00a0Lee <NA> <NA>")

    assert turn.speaker == "Ann\u00a0Lee"


def test_of_a_file_with_more_meetings_those_lines_are_taken_that_are_of_this_one() -> None:
    text = write_rttm("monday", TURNS[:1]) + write_rttm("tuesday", TURNS[1:])

    assert read_rttm(text, meeting="tuesday") == TURNS[1:]
    with pytest.raises(MeetingError, match=r"of 2 meetings \(monday, tuesday\) and none of friday"):
        read_rttm(text, meeting="friday")


def test_a_file_of_one_meeting_is_taken_whatever_it_is_called_there() -> None:
    assert read_rttm(write_rttm("monday", TURNS), meeting="tuesday") == TURNS


@pytest.mark.parametrize(
    "line",
    [
        "SPEAKER m 1 0.5 1.5 <NA> <NA> Ann Lee <NA> <NA>",
        "SPEAKER m 1 0.5 1.5 <NA> <NA> Ann Lee <NA>",
        "SPEAKER m 1 0.5 1.5 <NA> <NA> Ann Lee",
        "SPEAKER my meeting 1 0.5 1.5 <NA> <NA> alice <NA>",
        "SPEAKER meeting 1 1 0.5 1.5 <NA> <NA> alice <NA>",
        "SPEAKER meeting 1 1 0.5 1.5 <NA> <NA> alice",
        "SPEAKER m 1 0.5 1.5 <NA> <NA> <NA> <NA> <NA>",
    ],
)
def test_a_blank_in_a_name_or_no_name_is_an_error_not_another_turn(line: str) -> None:
    with pytest.raises(MeetingError, match=r"RTTM, line 1.*names"):
        read_rttm(line)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("SPEAKER m 1 0.5 1.5 <NA>", "true.rttm, line 2 has 6 columns"),
        ("SPEAKER m 1 half 1.5 <NA> <NA> alice <NA> <NA>", "true.rttm, line 2: columns 4 and 5"),
        ("SPEAKER m 1 0.5 -1 <NA> <NA> alice <NA> <NA>", "true.rttm, line 2: columns 4 and 5"),
        ("SPEAKER m 1 <NA> <NA> <NA> <NA> alice <NA>", "true.rttm, line 2: columns 4 and 5"),
        ("Speaker m 1 0.5 1 <NA> <NA> alice <NA> <NA>", "true.rttm, line 2 begins with 'Speaker'"),
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
