"""A meeting's recordings: a folder with one file per participant, named after its speaker."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reflector_workers.audio import Recording
from reflector_workers.completeness import shortfall
from reflector_workers.domain import MeetingError
from reflector_workers.offsets import SIDECAR_NAME, DailyName, SidecarEntry, read_sidecar, start_of
from reflector_workers.rttm import read_rttm_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from reflector_workers.domain import Turn

REFERENCE_NAME = "reference.rttm"
_NOTHING_SAID = SidecarEntry()
_SUFFIX = re.compile(
    r"\.(3gp|aac|aiff?|amr|ape|asf|au|avi|bwf|caf|flac|flv|m3u8|m4[ab]|mk[av]|mov|mp[234]|mpe?g"
    r"|og[agv]|opus|rf64|snd|ts|tta|w64|wave?|webm|wma|wv)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TrackFile:
    """A recording that was opened and found usable.

    Attributes:
        speaker: Taken from the file's name or ``tracks.json``; one word, as RTTM wants it.
        starts_at: Seconds from the meeting's beginning; see `offsets`.
        duration: Seconds.
        notes: What a user should know of it; each goes on after the file's name.
    """

    path: Path
    speaker: str
    starts_at: float
    duration: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeetingFolder:
    """A folder whose recordings can all be worked on.

    Attributes:
        path: The folder.
        tracks: In the order of their names.
        left_out: What else is in the folder, hidden files aside.
    """

    path: Path
    tracks: tuple[TrackFile, ...]
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return one_word(self.path.name) or "meeting"

    @property
    def duration(self) -> float:
        return max(track.starts_at + track.duration for track in self.tracks)

    @property
    def notes(self) -> list[str]:
        """What a user should know before it is worked on."""
        notes = [f"{track.path.name} {note}" for track in self.tracks for note in track.notes]
        if self.left_out:
            notes.append(f"left out, as no recordings by their names: {', '.join(self.left_out)}")
        return notes


def read_meeting(folder: Path, starts: Mapping[str, float] | None = None) -> MeetingFolder:
    """Open every recording of a folder, in the order of their names.

    Args:
        folder: The folder.
        starts: When tracks begin, by speaker; overrides what is known otherwise.

    Raises:
        MeetingError: The folder, or any of its recordings, cannot be used; the text names each of
            them with its cure.
    """
    entries = _visible(folder)
    recordings = [path for path in entries if _is_recording(path)]
    if not recordings:
        raise MeetingError(
            f"{folder} has no recording in it. Put one per participant there, each named after "
            "its speaker, e.g. alice.wav or bob.opus"
        )
    _check_one_recording(recordings)
    sidecar = read_sidecar(folder, [path.name for path in recordings])
    tracks = _started(_read_all(recordings, sidecar), starts or {})
    _check_speakers_differ(tracks)
    known = {REFERENCE_NAME, SIDECAR_NAME, *(path.name for path in recordings)}
    others = tuple(path.name for path in entries if path.name not in known)
    return MeetingFolder(folder.resolve(), tracks, others)


def read_reference(folder: Path, meeting: str) -> tuple[Turn, ...]:
    """The true turns of a folder's ``reference.rttm``; none if there is no such file.

    Raises:
        MeetingError: It cannot be read.
    """
    path = folder / REFERENCE_NAME
    return read_rttm_file(path, meeting) if path.is_file() else ()


def read_track(path: Path, entry: SidecarEntry = _NOTHING_SAID) -> TrackFile:
    """Open one recording.

    Raises:
        MeetingError: It has no speaker's name, cannot be read, or is empty.
    """
    daily = DailyName.of(path)
    speaker = one_word(entry.speaker or (daily.speaker if daily else path.stem))
    if not _is_text(path):
        raise MeetingError(f"{str(path)!a}: the name is not UTF-8. Rename it")
    if not speaker:
        raise MeetingError(f"{path}: the file's name names no speaker. Rename it, e.g. alice.wav")
    extent = Recording(path.absolute()).measure()
    starts_at, who_says = start_of(path, entry, extent)
    notes = [
        f"starts at {starts_at:.2f} s: {who_says} so" if starts_at else None,
        shortfall(path, extent),
    ]
    if extent.broken:
        notes.append(f"cannot be read beyond {extent.seconds:.2f} s: {extent.broken}")
    if extent.gaps:
        notes.append(f"has no audio for {extent.gaps:.2f} s in between (muted, or lost): silence")
    if extent.streams > 1:
        notes.append(f"has {extent.streams} audio streams: only the first is heard")
    return TrackFile(path.resolve(), speaker, starts_at, extent.seconds, tuple(filter(None, notes)))


def one_word(name: str) -> str:
    """A name as RTTM and XML can hold it: no blanks, no control characters."""
    blanks_joined = re.sub(r"\s+", "_", unicodedata.normalize("NFC", name).strip())
    return "".join(letter if letter.isprintable() else "_" for letter in blanks_joined)


def _visible(folder: Path) -> list[Path]:
    if not folder.exists():
        raise MeetingError(f"{folder}: there is no such folder. Give a folder of recordings")
    if not folder.is_dir():
        raise MeetingError(f"{folder} is a file. Give the folder that it is in")
    try:
        return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    except OSError as error:
        raise MeetingError(f"{folder} cannot be read: {error.strerror}") from error


def _is_recording(path: Path) -> bool:
    named = _SUFFIX.fullmatch(path.suffix) or DailyName.of(path)  # Daily's have no suffix
    return bool(named) and not path.is_dir()


def _read_all(paths: Iterable[Path], sidecar: Mapping[str, SidecarEntry]) -> tuple[TrackFile, ...]:
    """All of them, or one error that names each one that cannot be used."""
    tracks, complaints = [], []
    for path in paths:
        try:
            tracks.append(read_track(path, sidecar.get(path.name, _NOTHING_SAID)))
        except MeetingError as error:
            complaints.append(str(error))
    if complaints:
        raise MeetingError("\n".join(complaints))
    return tuple(tracks)


def _started(tracks: tuple[TrackFile, ...], starts: Mapping[str, float]) -> tuple[TrackFile, ...]:
    speakers = {track.speaker for track in tracks}
    if unknown := sorted(starts.keys() - speakers):
        raise MeetingError(
            f"--starts names {', '.join(unknown)}, and the tracks are of "
            f"{', '.join(sorted(speakers))}"
        )
    return tuple(
        replace(track, starts_at=starts.get(track.speaker, track.starts_at)) for track in tracks
    )


def _check_one_recording(paths: Iterable[Path]) -> None:
    began = {daily.recording for path in paths if (daily := DailyName.of(path))}
    if len(began) > 1:
        raise MeetingError(
            f"The tracks are of {len(began)} recordings of Daily's ({', '.join(map(str, sorted(began)))}"
            " in their names). Put each into a folder of its own"
        )


def _is_text(path: Path) -> bool:
    """Whether the path can be kept in a database and sent as JSON."""
    try:
        str(path.resolve()).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_speakers_differ(tracks: tuple[TrackFile, ...]) -> None:
    files = defaultdict(list)
    for track in tracks:
        if DailyName.of(track.path):  # a microphone that is switched off and on begins a new track
            continue
        files[track.speaker.casefold()].append(track.path.name)
    for speaker, names in files.items():
        if len(names) > 1:
            raise MeetingError(
                f"{' and '.join(names)} name the same speaker, {speaker}. Rename all but one"
            )
