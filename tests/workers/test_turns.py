"""Tracks become turns in order of time; overlaps stay, short pauses go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reflector_workers.audio import Recording
from reflector_workers.domain import Segment, TrackSpeech, Turn
from reflector_workers.error_rate import compare
from reflector_workers.recordings import read_meeting
from reflector_workers.rttm import read_rttm_file
from reflector_workers.speech import detect_speech
from reflector_workers.turns import joined, merge_turns

if TYPE_CHECKING:
    from pathlib import Path


def speech(speaker: str, *spans: tuple[float, float]) -> TrackSpeech:
    return TrackSpeech(
        speaker=speaker, segments=tuple(Segment(start=start, end=end) for start, end in spans)
    )


def turn(speaker: str, start: float, end: float) -> Turn:
    return Turn(speaker=speaker, start=start, end=end)


def test_turns_are_in_order_of_time_whatever_the_order_of_the_tracks() -> None:
    tracks = [speech("bob", (2, 3)), speech("alice", (4, 5), (0, 1))]

    expected = (turn("alice", 0, 1), turn("bob", 2, 3), turn("alice", 4, 5))
    assert merge_turns(tracks) == merge_turns(reversed(tracks)) == expected


def test_two_who_speak_at_once_are_two_turns() -> None:
    merged = merge_turns([speech("alice", (0, 5)), speech("bob", (1, 2))])

    assert merged == (turn("alice", 0, 5), turn("bob", 1, 2))


def test_a_speaker_who_pauses_shortly_has_one_turn() -> None:
    merged = merge_turns([speech("alice", (0, 1), (1.2, 2), (3, 4))], max_pause=0.5)

    assert merged == (turn("alice", 0, 2), turn("alice", 3, 4))


def test_a_pause_as_long_as_allowed_ends_the_turn() -> None:
    assert len(merge_turns([speech("alice", (0, 1), (1.5, 2))], max_pause=0.5)) == 2


def test_a_segment_inside_another_does_not_shorten_it() -> None:
    segments = [Segment(start=0, end=5), Segment(start=1, end=2)]

    assert joined(segments, 0.1) == [Segment(start=0, end=5)]


def test_a_meeting_in_which_nobody_speaks_has_no_turns() -> None:
    assert merge_turns([speech("alice"), speech("bob")]) == ()


def test_the_sample_is_diarized_with_less_than_ten_percent_error(sample: Path) -> None:
    meeting = read_meeting(sample)
    found = merge_turns(
        TrackSpeech(speaker=track.speaker, segments=detect_speech(Recording(track.path)))
        for track in meeting.tracks
    )

    reference = read_rttm_file(sample / "reference.rttm")
    assert compare(reference, found).rate.rate < 0.10


@pytest.mark.parametrize("end", [1, 0.5])
def test_a_turn_ends_after_it_starts(end: float) -> None:
    with pytest.raises(ValueError, match=r"ends .* after it starts"):
        turn("alice", 1, end)
