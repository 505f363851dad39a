"""Speaker turns: what the tracks of a meeting say together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflector_workers.domain import Segment, TrackSpeech, Turn

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PAUSE = 0.3
"""Seconds. A speaker who pauses for less is still in the same turn."""


def merge_turns(tracks: Iterable[TrackSpeech], max_pause: float = MAX_PAUSE) -> tuple[Turn, ...]:
    """Put the tracks' segments in order of time; turns of different speakers may overlap.

    Two who speak at once stay two turns: each has a microphone, so nothing has to be guessed.
    (A voice that bleeds into another's microphone would need an echo canceller first.)
    """
    turns = [
        Turn(speaker=track.speaker, start=segment.start, end=segment.end)
        for track in tracks
        for segment in joined(track.segments, max_pause)
    ]
    return tuple(sorted(turns, key=lambda turn: (turn.start, turn.end, turn.speaker)))


def later(segments: Iterable[Segment], seconds: float) -> tuple[Segment, ...]:
    """A track's segments in the meeting's time, if the track begins that late."""
    return tuple(
        Segment(start=round(each.start + seconds, 3), end=round(each.end + seconds, 3))
        for each in segments
    )


def joined(segments: Iterable[Segment], max_pause: float) -> list[Segment]:
    """One speaker's segments, those closer than `max_pause` seconds (or overlapping) made one."""
    result: list[Segment] = []
    for segment in sorted(segments, key=lambda segment: segment.start):
        if result and segment.start - result[-1].end < max_pause:
            last = result.pop()
            segment = Segment(start=last.start, end=max(last.end, segment.end))
        result.append(segment)
    return result
