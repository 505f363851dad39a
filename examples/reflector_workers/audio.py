"""A meeting's recordings: a folder with one WAV per participant, named after its speaker."""

from __future__ import annotations

import re
import unicodedata
import wave
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflector_workers.domain import MeetingError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SAMPLE_RATE = 16_000
SAMPLE_BYTES = 2  # 16-bit PCM
REFERENCE_NAME = "reference.rttm"

_CONVERT = "ffmpeg -i {source} -ar 16000 -ac 1 -c:a pcm_s16le {target}"
_OTHER_AUDIO = {".aac", ".flac", ".m4a", ".mp3", ".mp4", ".ogg", ".opus", ".webm", ".wma"}


@dataclass(frozen=True)
class TrackFile:
    """A recording that was opened and found usable.

    Attributes:
        speaker: Taken from the file's name; one word, as RTTM wants it.
        duration: Seconds.
    """

    path: Path
    speaker: str
    duration: float


@dataclass(frozen=True)
class MeetingFolder:
    """A folder whose recordings can all be worked on."""

    path: Path
    tracks: tuple[TrackFile, ...]

    @property
    def name(self) -> str:
        return one_word(self.path.name) or "meeting"

    @property
    def reference(self) -> Path | None:
        """The true turns, if the folder has a ``reference.rttm``."""
        path = self.path / REFERENCE_NAME
        return path if path.is_file() else None

    @property
    def duration(self) -> float:
        return max(track.duration for track in self.tracks)


def read_meeting(folder: Path) -> MeetingFolder:
    """Open every recording of a folder, in the order of their names.

    Raises:
        MeetingError: The folder or one of its files cannot be used; the text has the cure.
    """
    paths = _recordings(folder)
    tracks = tuple(read_track(path) for path in paths)
    _check_speakers_differ(tracks)
    return MeetingFolder(folder.resolve(), tracks)


def read_track(path: Path) -> TrackFile:
    """Open one recording and check that it is 16 kHz, mono, 16-bit PCM, and not empty.

    Raises:
        MeetingError: It is not.
    """
    speaker = one_word(path.stem)
    if not _is_text(path):
        raise MeetingError(f"{str(path)!a}: the name is not UTF-8. Rename it")
    if not speaker:
        raise MeetingError(f"{path}: the file's name names no speaker. Rename it, e.g. alice.wav")
    with _opened(path) as wav:
        _check_format(path, wav)
        frames = sum(len(chunk) for chunk in _chunks(wav, SAMPLE_RATE)) // SAMPLE_BYTES
    if frames == 0:
        raise MeetingError(f"{path} has no audio in it. Remove it, or record it again")
    return TrackFile(path.resolve(), speaker, frames / SAMPLE_RATE)


def read_chunks(path: Path, frames: int) -> Iterator[bytes]:
    """The samples of a recording, `frames` at a time; the last chunk is filled up with silence."""
    size = frames * SAMPLE_BYTES
    with _opened(path) as wav:
        _check_format(path, wav)
        for chunk in _chunks(wav, frames):
            yield chunk.ljust(size, b"\0")


def one_word(name: str) -> str:
    """A name as RTTM and XML can hold it: no blanks, no control characters."""
    blanks_joined = re.sub(r"\s+", "_", unicodedata.normalize("NFC", name).strip())
    return "".join(letter if letter.isprintable() else "_" for letter in blanks_joined)


def _recordings(folder: Path) -> list[Path]:
    if not folder.exists():
        raise MeetingError(f"{folder}: there is no such folder. Give a folder of WAV files")
    if not folder.is_dir():
        raise MeetingError(f"{folder} is a file. Give the folder that it is in")
    try:
        visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    except OSError as error:
        raise MeetingError(f"{folder} cannot be read: {error.strerror}") from error
    recordings = [path for path in visible if path.suffix.lower() == ".wav"]
    if not recordings:
        raise MeetingError(f"{folder} has no WAV file in it. {_cure_for_no_recording(visible)}")
    return recordings


def _cure_for_no_recording(visible: list[Path]) -> str:
    for path in visible:
        if path.suffix.lower() in _OTHER_AUDIO:
            return f"Convert what it has: {_conversion(path)}"
    return "Put one WAV per participant there, each named after its speaker, e.g. alice.wav"


def _is_text(path: Path) -> bool:
    """Whether the path can be kept in a database and sent as JSON."""
    try:
        str(path.resolve()).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _opened(path: Path) -> Iterator[wave.Wave_read]:
    try:
        wav = wave.open(str(path), "rb")  # noqa: SIM115  (only opening it is tried here)
    except (wave.Error, EOFError) as error:
        what = "is empty" if path.stat().st_size == 0 else f"is not a PCM WAV file ({error})"
        raise MeetingError(f"{path} {what}. Convert the recording: {_conversion(path)}") from error
    except OSError as error:
        raise MeetingError(f"{path} cannot be read: {error.strerror}") from error
    with wav:
        yield wav


def _check_format(path: Path, wav: wave.Wave_read) -> None:
    wrong = []
    if wav.getframerate() != SAMPLE_RATE:
        wrong.append(f"has {wav.getframerate()} samples per second, not {SAMPLE_RATE}")
    if wav.getnchannels() != 1:
        wrong.append(f"has {wav.getnchannels()} channels, not 1 (one file per participant)")
    if wav.getsampwidth() != SAMPLE_BYTES:
        wrong.append(f"has {8 * wav.getsampwidth()}-bit samples, not 16-bit")
    if wrong:
        raise MeetingError(f"{path} {' and '.join(wrong)}. Convert it: {_conversion(path)}")


def _chunks(wav: wave.Wave_read, frames: int) -> Iterator[bytes]:
    # not by the header's count: recorders that were killed leave a wrong one
    while chunk := wav.readframes(frames):
        if whole := chunk[: len(chunk) // SAMPLE_BYTES * SAMPLE_BYTES]:
            yield whole


def _conversion(path: Path) -> str:
    return _CONVERT.format(source=f"'{path.name}'", target=f"'{path.stem}-16k.wav'")


def _check_speakers_differ(tracks: tuple[TrackFile, ...]) -> None:
    files = defaultdict(list)
    for track in tracks:
        files[track.speaker.casefold()].append(track.path.name)
    for speaker, names in files.items():
        if len(names) > 1:
            raise MeetingError(
                f"{' and '.join(names)} name the same speaker, {speaker}. Rename all but one"
            )
