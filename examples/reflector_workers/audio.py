"""One recording: whatever its format, its samples as the model wants them, in little memory."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import av
from av.error import FFmpegError

from reflector_workers.domain import MeetingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

SAMPLE_RATE = 16_000
SAMPLE_BYTES = 2  # 16-bit PCM

# Formats that hold their audio themselves: a playlist would have FFmpeg open whatever it names.
_READABLE = "wav,w64,aiff,caf,au,flac,ogg,matroska,mov,mp3,aac,asf,amr,ape,avi,flv,mpegts,tta,wv"
_GAP = SAMPLE_RATE // 20  # clocks in milliseconds and a lone lost packet stay under it
_LONGEST_GAP = 24 * 3600 * SAMPLE_RATE


@dataclass(frozen=True)
class Extent:
    """What a recording holds, found without decoding it.

    Attributes:
        container: FFmpeg's name of the format.
        seconds: From the first packet to the end of the last one, gaps included.
        declared: Seconds that the file's own header speaks of, or None.
        begins: When the first packet is due, by the file's own clock.
        gaps: Seconds between packets in which there is none.
        streams: How many audio streams there are. The first one is read.
        broken: Why nothing after its end can be read, if there is more.
    """

    container: str
    seconds: float
    declared: float | None
    begins: float
    gaps: float
    streams: int
    broken: str | None


class Recording:
    """One participant's recording, read as a stream.

    Attributes:
        path: Where it is.
        damaged: How many packets could not be decoded so far; there is silence in their place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        self._broken: str | None = None

    def measure(self) -> Extent:
        """Look at every packet without decoding it: a second or two for three hours.

        Raises:
            MeetingError: It cannot be read as audio, or there is none in it.
        """
        with self._opened() as (container, stream):
            begins, end, gaps = _span(self._packets(container, stream))
            extent = Extent(
                container=container.format.name,
                seconds=end - begins,
                declared=_declared(container, stream),
                begins=begins,
                gaps=gaps,
                streams=len(container.streams.audio),
                broken=self._broken,
            )
        if extent.seconds <= 0:
            raise MeetingError(f"{self.path} has no audio in it. Remove it, or record it again")
        if next(Recording(self.path).read_chunks(1), None) is None:
            raise MeetingError(f"{self.path} cannot be decoded. Remove it, or record it again")
        return extent

    def read_chunks(self, frames: int) -> Iterator[bytes]:
        """Its samples, 16 kHz mono 16-bit, `frames` at a time; silence fills up the last chunk."""
        size = frames * SAMPLE_BYTES
        waiting = bytearray()
        for piece in self._pieces():
            waiting += piece
            while len(waiting) >= size:
                yield bytes(waiting[:size])
                del waiting[:size]
        if waiting:
            yield bytes(waiting).ljust(size, b"\0")

    def _pieces(self) -> Iterator[bytes]:
        converter = _Converter(self.path)
        with self._opened() as (container, stream):
            for packet in self._packets(container, stream):
                for frame in self._frames(packet):
                    yield from converter.convert(frame)
            yield from converter.flush()

    def _packets(
        self, container: InputContainer, stream: AudioStream
    ) -> Iterator[Packet[AudioStream]]:
        try:
            yield from container.demux(stream)
        except FFmpegError as error:  # FFmpeg finds no way past this place
            self._broken = error.strerror

    def _frames(self, packet: Packet[AudioStream]) -> list[AudioFrame]:
        try:
            return list(packet.decode())
        except FFmpegError:
            self.damaged += 1
            return []

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, AudioStream]]:
        options = {"format_whitelist": _READABLE, "protocol_whitelist": "file"}
        try:
            # "file:", or a colon in a name would make a protocol of what stands before it
            container = av.open(f"file:{self.path}", options=options)
        except FFmpegError as error:
            raise MeetingError(self._complaint(error)) from error
        with container:
            if not container.streams.audio:
                raise MeetingError(f"{self.path} has no audio in it. Remove it from the folder")
            yield container, container.streams.audio[0]

    def _complaint(self, error: FFmpegError) -> str:
        if isinstance(error, OSError) and not self.path.is_file():
            return f"{self.path} cannot be read: {error.strerror}"
        if self.path.stat().st_size == 0:
            return f"{self.path} is empty. Remove it, or record it again"
        return f"{self.path} cannot be read as audio: {error.strerror}. {_cure(self.path)}"


class _Converter:
    """Makes 16 kHz mono of frames, each at its own time: where the clock jumps, there is silence.

    Recorders of calls write nothing while a participant is muted or packets are lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._resampler: AudioResampler | None = None
        self._shape: tuple[str, str, int] | None = None
        self._begins: float | None = None
        self._written = 0

    def convert(self, frame: AudioFrame) -> Iterator[bytes]:
        missing = self._missing_before(frame)
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if missing or shape != self._shape:
            yield from self.flush()
        if missing:
            yield from self._silence(self._missing_before(frame))
        if self._resampler is None:
            self._shape = shape
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        yield from self._taken(self._resampler.resample(frame))

    def flush(self) -> Iterator[bytes]:
        """What the resampler still holds."""
        if self._resampler is not None:
            yield from self._taken(self._resampler.resample(None))
            self._resampler = None

    def _missing_before(self, frame: AudioFrame) -> int:
        if frame.pts is None or frame.time_base is None:
            return 0
        time = float(frame.pts * frame.time_base)
        if self._begins is None:
            self._begins = time
        missing = round((time - self._begins) * SAMPLE_RATE) - self._written
        if missing > _LONGEST_GAP:
            raise MeetingError(
                f"{self._path}: its clock jumps by {missing / SAMPLE_RATE / 3600:.0f} hours. "
                f"Write it anew: {_conversion(self._path)}"
            )
        return missing if missing > _GAP else 0

    def _silence(self, samples: int) -> Iterator[bytes]:
        self._written += samples
        while samples > 0:
            yield bytes(min(samples, SAMPLE_RATE) * SAMPLE_BYTES)
            samples -= SAMPLE_RATE

    def _taken(self, frames: Iterable[AudioFrame]) -> Iterator[bytes]:
        for frame in frames:
            self._written += frame.samples
            yield bytes(frame.planes[0])[: frame.samples * SAMPLE_BYTES]


def _span(packets: Iterable[Packet[AudioStream]]) -> tuple[float, float, float]:
    """When the first packet is due, when the last one ends, and how long there is none between."""
    begins, end, gaps = None, 0.0, 0.0
    for packet in packets:
        if packet.pts is not None and packet.time_base is not None:
            due = float(packet.pts * packet.time_base)
            if begins is None:
                begins = end = due
            elif (due - end) * SAMPLE_RATE > _GAP:
                gaps += due - end
            end = max(end, due + float((packet.duration or 0) * packet.time_base))
    return (end if begins is None else begins), end, gaps


def _declared(container: InputContainer, stream: AudioStream) -> float | None:
    """The length by the header, where it has one; FFmpeg guesses it from the size elsewhere."""
    kinds = container.format.name.split(",")
    if "flac" in kinds or "mov" in kinds:
        return float(stream.duration * (stream.time_base or 0)) if stream.duration else None
    if "matroska" in kinds and len(container.streams) == 1:  # it is that of the longest stream
        return container.duration / av.time_base if container.duration else None
    return None


def _cure(path: Path) -> str:
    return f"Remove it or record it again. What FFmpeg can read: {_conversion(path)}"


def _conversion(path: Path) -> str:
    """A shell command: its result has the speaker's name, and hides the original beside it."""
    target = path.with_suffix(".wav" if path.suffix.lower() == ".flac" else ".flac")
    source, result, hidden = (
        shlex.quote(str(each)) for each in (path, target, path.with_name(f".{path.name}"))
    )
    return f"ffmpeg -i {source} -vn {result} && mv {source} {hidden}"
