"""A meeting of hours on the fleet: ``python -m tests.workers.long_meeting``; ``--help`` has the options.

Each speaker has a track of their own in a format of its own, and speaks a piece of the sample meeting
now and then; in between the tracks are silent, as those of muted microphones are.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import psutil

from reflector_workers.demo import SAMPLE
from reflector_workers.domain import Turn
from reflector_workers.rttm import read_rttm_file, write_rttm
from tests.workers.encoding import RATE, encode
from tests.workers.running_demo import Demo, Finished

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = [
    ("flac", "flac", 16_000, None),
    ("webm", "libopus", 48_000, "webm"),  # nothing is written while nobody speaks
    ("wav", "pcm_s16le", 44_100, None),
    ("opus", "libopus", 16_000, "ogg"),
]
BLOCK = 10 * RATE
PAUSES = 4.0, 14.0  # seconds between two turns
MIB = 2**20


@dataclass(frozen=True)
class Piece:
    """Something that somebody says, as 16-bit samples."""

    speaker: str
    samples: bytes

    @property
    def seconds(self) -> float:
        return len(self.samples) / 2 / RATE


@dataclass(frozen=True)
class Measured:
    """What a run took.

    Attributes:
        finished: The demo, as it ended.
        seconds: Wall clock, the servers' start included.
        peaks: The most memory of each Python process, in bytes, largest first.
    """

    finished: Finished
    seconds: float
    peaks: list[int]


def main() -> None:
    """Make a meeting, run it, print what it took."""
    parser = argparse.ArgumentParser("python -m tests.workers.long_meeting", description=__doc__)
    parser.add_argument("--hours", type=float, default=3)
    parser.add_argument("--tracks", type=int, default=8)
    parser.add_argument("--noise", action="store_true", help="rooms that are never quite silent")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="long-meeting-") as name:
        folder = Path(name) / "meeting"
        began = time.monotonic()
        size = synthesise(folder, given.tracks, given.hours * 3600, noise=given.noise)
        print(
            f"{given.tracks} tracks, {size / MIB:.0f} MiB, made in {time.monotonic() - began:.0f} s"
        )
        measured = run(folder, Path(name))
    print(measured.finished.output)
    print(summary(measured, given.hours, given.tracks))


def summary(measured: Measured, hours: float, tracks: int) -> str:
    """The figures, as lines for a page."""
    audio = hours * 3600
    return (
        f"audio: {tracks} tracks of {hours:g} h\n"
        f"time: {measured.seconds:.0f} s, {audio / measured.seconds:.1f} times as fast as the meeting, "
        f"{tracks * audio / measured.seconds:.0f} times as its tracks together\n"
        f"peak memory of a process: {measured.peaks[0] / MIB:.0f} MiB "
        f"(all {len(measured.peaks)}: {', '.join(f'{peak / MIB:.0f}' for peak in measured.peaks)})"
    )


def synthesise(folder: Path, tracks: int, seconds: float, *, noise: bool = False) -> int:
    """Write the tracks and their reference; their size in bytes."""
    folder.mkdir()
    nothing = _noise() if noise else bytes(BLOCK * 2)
    turns = list(_schedule(tracks, seconds))
    for number in range(tracks):
        suffix, codec, rate, container = FORMATS[number % len(FORMATS)]
        own = [(start, piece) for start, speaker, piece in turns if speaker == f"speaker{number}"]
        silence = None if suffix == "webm" and not noise else nothing
        frames = _frames(own, seconds, silence)
        encode(folder / f"speaker{number}.{suffix}", codec, frames, rate=rate, container=container)
    size = sum(path.stat().st_size for path in folder.iterdir())
    spoken = [
        Turn(speaker=speaker, start=start, end=start + piece.seconds)
        for start, speaker, piece in turns
    ]
    (folder / "reference.rttm").write_text(write_rttm("meeting", spoken))
    return size


def run(folder: Path, scratch: Path) -> Measured:
    """Diarize it on the fleet, looking at the processes' memory all the time."""
    output = scratch / "output"
    output.mkdir()
    peaks: dict[int, int] = {}
    began = time.monotonic()
    demo = Demo(output, "--meeting", str(folder), "--repeat", "1")
    ended = threading.Event()
    looking = threading.Thread(target=_look, args=(demo, peaks, ended))
    looking.start()
    try:
        finished = demo.finish(patience=6 * 3600)
    finally:
        ended.set()
        looking.join()
        demo.close()
    return Measured(finished, time.monotonic() - began, sorted(peaks.values(), reverse=True))


def _look(demo: Demo, peaks: dict[int, int], ended: threading.Event) -> None:
    while not ended.wait(0.5):
        for process in demo.processes():
            try:
                if process.name().startswith("python"):
                    peaks[process.pid] = max(peaks.get(process.pid, 0), _peak(process))
            except (psutil.Error, OSError):  # it has just ended
                continue


def _peak(process: psutil.Process) -> int:
    """The most memory that a process has had: Linux knows, elsewhere it is what it has now."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return int(process.memory_info().rss)
    lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) * 1024 if lines else 0  # it has ended: nobody has waited for it


def _schedule(tracks: int, seconds: float) -> Iterator[tuple[float, str, Piece]]:
    chance = random.Random(1)
    pieces, now = _pieces(), 2.0
    while True:
        number = chance.randrange(tracks)
        piece = chance.choice(pieces[number % len(pieces)])
        if now + piece.seconds > seconds:
            return
        yield now, f"speaker{number}", piece
        now += piece.seconds + chance.uniform(*PAUSES)


def _pieces() -> list[list[Piece]]:
    """What each speaker of the sample says, by its reference."""
    turns = read_rttm_file(SAMPLE / "reference.rttm")
    by_speaker = []
    for speaker in sorted({turn.speaker for turn in turns}):
        with av.open(str(SAMPLE / f"{speaker}.wav")) as container:
            whole = b"".join(bytes(frame.planes[0]) for frame in container.decode(audio=0))
        by_speaker.append(
            [
                Piece(speaker, whole[round(t.start * RATE) * 2 : round(t.end * RATE) * 2])
                for t in turns
                if t.speaker == speaker
            ]
        )
    return by_speaker


def _frames(
    turns: list[tuple[float, Piece]], seconds: float, silence: bytes | None
) -> Iterator[av.AudioFrame]:
    """The track: what is said at its time, and silence or nothing at all in between."""
    now = 0
    if silence is None:  # but a track begins with the meeting
        yield _frame(0, bytes(2 * RATE))
    for start, piece in turns:
        due = round(start * RATE)
        yield from _filled(now, due, silence)
        yield _frame(due, piece.samples)
        now = due + len(piece.samples) // 2
    yield from _filled(now, round(seconds * RATE), silence)


def _filled(now: int, until: int, silence: bytes | None) -> Iterator[av.AudioFrame]:
    while silence and now < until:
        length = min(BLOCK, until - now)
        yield _frame(now, silence[: length * 2])
        now += length


def _noise() -> bytes:
    """Ten seconds of a quiet room, some 75 dB below the loudest."""
    return array("h", random.Random(2).choices(range(-9, 10), k=BLOCK)).tobytes()


def _frame(due: int, samples: bytes) -> av.AudioFrame:
    frame = av.AudioFrame("s16", "mono", len(samples) // 2, align=True)
    frame.planes[0].update(samples)
    frame.sample_rate, frame.pts = RATE, due
    return frame


if __name__ == "__main__":
    main()
