"""RTTM, the text format of speaker turns: one line per turn, ten columns, times in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflector_workers.domain import MeetingError, Turn

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_LINE = "SPEAKER {meeting} 1 {start:.3f} {duration:.3f} <NA> <NA> {speaker} <NA> <NA>\n"
_COLUMNS_NEEDED = 8


def write_rttm(meeting: str, turns: Iterable[Turn]) -> str:
    """The turns as RTTM; `meeting` and the speakers' names must be one word each."""
    return "".join(
        _LINE.format(
            meeting=meeting, start=turn.start, duration=turn.duration, speaker=turn.speaker
        )
        for turn in turns
    )


def read_rttm(text: str, source: str = "RTTM") -> tuple[Turn, ...]:
    """Read the SPEAKER lines; other kinds of line and comments (``;;``) are skipped.

    Args:
        text: The file's content.
        source: Named in errors.

    Raises:
        MeetingError: A line cannot be read (its number is given), or there is none.
    """
    turns = tuple(
        _read_line(line, f"{source}, line {number}")
        for number, line in enumerate(text.splitlines(), 1)
        if line.split()[:1] == ["SPEAKER"]
    )
    if not turns:
        raise MeetingError(f"{source} has no SPEAKER line. Give an RTTM file, or remove it")
    return turns


def read_rttm_file(path: Path) -> tuple[Turn, ...]:
    """Read an RTTM file.

    Raises:
        MeetingError: It cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MeetingError(f"{path} cannot be read as text: {error}") from error
    return read_rttm(text, str(path))


def _read_line(line: str, where: str) -> Turn:
    columns = line.split()
    if len(columns) < _COLUMNS_NEEDED:
        raise MeetingError(f"{where} has {len(columns)} columns, RTTM has at least 8: {line!r}")
    try:
        start, duration = float(columns[3]), float(columns[4])
        return Turn(speaker=columns[7], start=start, end=start + duration)
    except ValueError as error:
        raise MeetingError(
            f"{where}: columns 4 and 5 must be a start and a duration in seconds: {line!r}"
        ) from error
