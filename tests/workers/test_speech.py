"""Probabilities become segments: hysteresis, pauses, least lengths, padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reflector_workers.audio import SAMPLE_RATE, Recording
from reflector_workers.speech import SpeechSettings, detect_speech, probabilities_of, segments_of
from tests.workers.encoding import encode, frames_of, later

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workers.support import WriteWav

PLAIN = SpeechSettings(onset=0.5, offset=0.3, min_silence=0, min_speech=0, padding=0)


def spans(probabilities: list[float], settings: SpeechSettings) -> list[tuple[float, float]]:
    return [(s.start, s.end) for s in segments_of(probabilities, 1.0, settings)]


def test_speech_begins_at_the_onset_and_lasts_until_the_offset() -> None:
    # 0.4 begins nothing, and ends nothing either
    assert spans([0.4, 0.6, 0.4, 0.4, 0.2, 0.4], PLAIN) == [(1, 4)]


def test_speech_that_does_not_end_lasts_until_the_end() -> None:
    assert spans([0, 0.9, 0.9], PLAIN) == [(1, 3)]


def test_a_short_pause_does_not_end_a_segment_and_a_long_one_does() -> None:
    settings = SpeechSettings(min_silence=2, min_speech=0, padding=0)

    assert spans([1, 0, 1, 0, 0, 1], settings) == [(0, 3), (5, 6)]


def test_a_click_is_not_speech() -> None:
    settings = SpeechSettings(min_silence=0, min_speech=2, padding=0)

    assert spans([1, 0, 1, 1], settings) == [(2, 4)]


def test_padding_stays_within_the_recording_and_closes_what_it_covers() -> None:
    settings = SpeechSettings(min_silence=0, min_speech=0, padding=1)

    assert spans([1, 0, 0, 1, 0, 0, 0, 0, 1], settings) == [(0, 5), (7, 9)]


def test_no_probabilities_give_no_segments() -> None:
    assert segments_of([], 1.0) == ()


def test_silence_is_not_speech(write_wav: WriteWav) -> None:
    assert detect_speech(Recording(write_wav("alice.wav", seconds=3))) == ()


def test_the_sample_has_the_speech_that_its_reference_says(sample: Path) -> None:
    (segment,) = detect_speech(Recording(sample / "bob.wav"))

    assert segment.start == pytest.approx(5.404, abs=0.1)
    assert segment.end == pytest.approx(5.404 + 3.224, abs=0.15)


def test_a_recording_is_heard_the_same_way_twice(sample: Path) -> None:
    assert detect_speech(Recording(sample / "bob.wav")) == detect_speech(
        Recording(sample / "bob.wav")
    )


def test_after_a_long_silence_speech_is_heard_as_at_the_beginning(
    sample: Path, tmp_path: Path
) -> None:
    pause = 60
    twice = [
        *frames_of(sample / "bob.wav", 4.5, 9.5),
        *later(frames_of(sample / "bob.wav", 4.5, 9.5), pause),
    ]
    path = encode(tmp_path / "bob.mka", "pcm_s16le", twice, rate=16_000)

    first, second = detect_speech(Recording(path))

    assert second.start - first.start == pytest.approx(pause, abs=0.04)
    assert second.end - first.end == pytest.approx(pause, abs=0.04)


def test_the_model_rests_while_there_is_nothing_to_hear(write_wav: WriteWav) -> None:
    chunks = list(Recording(write_wav("alice.wav", seconds=60)).read_chunks(512))
    heard: list[bytes] = []

    class Detector:  # counts; whether it hears rightly is what the other tests are about
        def __call__(self, chunk: bytes) -> float:
            heard.append(chunk)
            return 0.0

        def reset(self) -> None: ...

    assert len(list(probabilities_of(Detector(), chunks, 512))) == len(chunks)
    assert len(heard) <= SAMPLE_RATE // 512
