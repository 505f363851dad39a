"""RTTM, the text format of speaker turns: one line per turn, ten columns, times in seconds.

Read as its usual readers do (md-eval, dscore, pyannote, spy-der), but for one thing: the format has no
quotes, so a blank in a name shifts the columns after it. They read on; here it is an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reflector_workers.domain import MeetingError, Turn

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_LINE = "SPEAKER {meeting} 1 {start:.3f} {duration:.3f} <NA> <NA> {speaker} <NA> <NA>\n"
_COLUMNS = range(8, 11)  # older writers leave out the last one or two
_MISSING = "<NA>"
_OTHER_KINDS = frozenset(
    {
        *("SPKR-INFO", "SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH"),
        *("FILLER", "EDIT", "SU", "IP", "CB", "A/P"),
    }
)


def write_rttm(meeting: str, turns: Iterable[Turn]) -> str:
    """The turns as RTTM; `meeting` and the speakers' names must be one word each."""
    return "".join(
        _LINE.format(
            meeting=meeting, start=turn.start, duration=turn.duration, speaker=turn.speaker
        )
        for turn in turns
    )


def read_rttm(text: str, source: str = "RTTM", meeting: str = "") -> tuple[Turn, ...]:
    """Read the SPEAKER lines.

    Comments (``;;``), the other kinds of line that the format knows, and turns of no duration are
    skipped.

    Args:
        text: The file's content.
        source: Named in errors.
        meeting: Which meeting's turns to take, if the text has more than one.

    Raises:
        MeetingError: A line cannot be read (its number is given); there is none; or there are turns
            of several meetings, and none of this one.
    """
    by_meeting: dict[str, list[Turn]] = {}
    for number, line in enumerate(re.split("\r\n|\n|\r", text), 1):
        if columns := _columns(line, f"{source}, line {number}"):
            turns = by_meeting.setdefault(columns[1], [])
            turns.extend(_turns(columns, f"{source}, line {number}", line))
    if not any(by_meeting.values()):
        raise MeetingError(f"{source} has no SPEAKER line. Give an RTTM file, or remove it")
    if len(by_meeting) == 1:  # whatever it is called there
        return tuple(*by_meeting.values())
    if meeting not in by_meeting:
        raise MeetingError(
            f"{source} has turns of {len(by_meeting)} meetings ({', '.join(by_meeting)}) and none "
            f"of {meeting}. Keep the lines of one"
        )
    return tuple(by_meeting[meeting])


def read_rttm_file(path: Path, meeting: str = "") -> tuple[Turn, ...]:
    """Read an RTTM file.

    Raises:
        MeetingError: It cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows puts a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise MeetingError(f"{path} cannot be read as text: {error}") from error
    return read_rttm(text, str(path), meeting)


def _columns(line: str, where: str) -> list[str]:
    """The columns of a SPEAKER line; none for a line that is skipped."""
    columns = re.findall("[^ \t]+", line)  # not at a no-break space: that is part of a name
    if not columns or columns[0].startswith(";;") or columns[0] in _OTHER_KINDS:
        return []
    if columns[0] != "SPEAKER":
        raise MeetingError(f"{where} begins with {columns[0]!r}, no kind of line of RTTM: {line!r}")
    if len(columns) not in _COLUMNS:
        raise MeetingError(
            f"{where} has {len(columns)} columns, RTTM has 8 to 10 (and no blanks in names): {line!r}"
        )
    return columns


def _turns(columns: list[str], where: str, line: str) -> list[Turn]:
    """The turn of a SPEAKER line, or none if it has no duration."""
    _check_not_shifted(columns, where, line)
    try:
        start, duration = float(columns[3]), float(columns[4])
        if duration == 0:
            return []
        return [Turn(speaker=columns[7], start=start, end=start + duration)]
    except ValueError as error:
        raise MeetingError(
            f"{where}: columns 4 and 5 must be a start and a duration in seconds: {line!r}"
        ) from error


def _check_not_shifted(columns: list[str], where: str, line: str) -> None:
    """A blank in a name moves words to where numbers belong, or `<NA>` to where the name does."""
    numbers = (columns[2], *columns[8:])
    shifted = columns[7] == _MISSING or any(
        each != _MISSING and not re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", each)
        for each in numbers
    )
    if shifted:
        raise MeetingError(
            f"{where}: a column is not what RTTM has there. The third is a channel's number, the "
            f"eighth a speaker, the ninth and tenth numbers or <NA>, and names have no blanks: "
            f"{line!r}"
        )
