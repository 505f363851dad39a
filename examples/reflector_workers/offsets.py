"""When each track begins: by the command line, by ``tracks.json``, by its name, by its own clock.

Recorders write a file per participant, which begins when the participant joins. What is named first
here overrides what comes after it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pydantic import Field, TypeAdapter, ValidationError

from reflector_workers.domain import MeetingError, Value

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from reflector_workers.audio import Extent

SIDECAR_NAME = "tracks.json"
_DAILY = re.compile(
    r"(?P<recording>\d{13})-(?P<participant>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r"-(?P<media>cam|screen)-audio-(?P<track>\d{13})"
)
_OWN_CLOCK = {"matroska", "mov"}  # elsewhere it is that of the encoder, or of a stream cut in
_CLOCK_BEGINS = 0.05  # seconds; less is an encoder's padding


class SidecarEntry(Value):
    """What ``tracks.json`` says of a file.

    Attributes:
        starts_at: Seconds from the meeting's beginning.
        speaker: Who is heard on it.
    """

    starts_at: float | None = Field(default=None, ge=0)
    speaker: str | None = Field(default=None, min_length=1)


@dataclass(frozen=True)
class DailyName:
    """The name that Daily gives a raw track, with or without an extension added to it.

    ``1763152299562-12f0b87c-97d4-4dd3-a65c-cee1f854a79c-cam-audio-1763152314582``: when the recording
    began and when the track did, in milliseconds since 1970, around the participant's id.
    """

    recording: int
    speaker: str
    track: int

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """The parts of a file's name, or None if it is another name."""
        match = _DAILY.fullmatch(path.stem)
        if not match:
            return None
        screen = "-screen" if match["media"] == "screen" else ""
        return cls(int(match["recording"]), match["participant"] + screen, int(match["track"]))

    @property
    def starts_at(self) -> float:
        """Seconds from the recording's beginning."""
        return max(0, self.track - self.recording) / 1000


def start_of(path: Path, entry: SidecarEntry, extent: Extent) -> tuple[float, str]:
    """When a track begins, in seconds from the meeting's beginning, and who says so."""
    if entry.starts_at is not None:
        return entry.starts_at, f"{SIDECAR_NAME} says"
    if daily := DailyName.of(path):
        return daily.starts_at, "its name says"
    if extent.begins > _CLOCK_BEGINS and _OWN_CLOCK.intersection(extent.container.split(",")):
        return round(extent.begins, 3), "its own clock says"
    return 0.0, ""


def read_sidecar(folder: Path, names: Collection[str]) -> Mapping[str, SidecarEntry]:
    """What ``tracks.json`` says, by file name; nothing if there is none.

    Raises:
        MeetingError: It cannot be read, or names a file that is no recording of the folder.
    """
    path = folder / SIDECAR_NAME
    if not path.exists():
        return {}
    try:
        entries = TypeAdapter(dict[str, SidecarEntry]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise MeetingError(
            f"{path} cannot be used: {_first_line(error)}. "
            'Write {"alice.wav": {"starts_at": 12.5, "speaker": "Alice"}}'
        ) from error
    if unknown := sorted(set(entries) - set(names)):
        raise MeetingError(
            f"{path} names {', '.join(unknown)}, and the folder has no such recording"
        )
    return entries


def read_starts(arguments: Iterable[str]) -> dict[str, float]:
    """``alice=12.5`` as seconds by speaker.

    Raises:
        MeetingError: An argument is something else.
    """
    starts = {}
    for argument in arguments:
        match = re.fullmatch(r"(.+)=(\d+(?:\.\d*)?|\.\d+)", argument)
        if not match:
            raise MeetingError(f"--starts {argument}: give a speaker and seconds, e.g. alice=12.5")
        starts[match[1]] = float(match[2])
    return starts


def _first_line(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
