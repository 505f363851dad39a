"""Recordings in the formats that users have, made by real encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import av

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

RATE = 16_000


def encode(
    target: Path,
    codec: str,
    frames: Iterable[av.AudioFrame],
    *,
    rate: int = 48_000,
    layout: str = "mono",
    container: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Path:
    """Encode frames, each at its own time, and write them."""
    with av.open(str(target), "w", format=container, container_options=dict(options or {})) as out:
        stream: Any = out.add_stream(codec, rate=rate)
        stream.layout = layout
        resampler = av.AudioResampler(stream.format, layout, rate)
        for frame in [*frames, None]:
            for made in resampler.resample(frame):
                out.mux(stream.encode(made))
        out.mux(stream.encode(None))
    return target


def frames_of(source: Path, begins: float = 0, ends: float = 3600) -> Iterator[av.AudioFrame]:
    """A stretch of a 16 kHz recording; its first sample is at time 0."""
    with av.open(str(source)) as container:
        for frame in container.decode(audio=0):
            if begins * RATE <= (frame.pts or 0) < ends * RATE:
                frame.pts = (frame.pts or 0) - round(begins * RATE)
                yield frame


def later(frames: Iterable[av.AudioFrame], seconds: float) -> Iterator[av.AudioFrame]:
    """The same frames, due later."""
    for frame in frames:
        frame.pts = (frame.pts or 0) + round(seconds * RATE)
        yield frame
