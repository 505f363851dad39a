"""Diarization error rate: how much of the reference's speech the turns get wrong.

Exact arithmetic on intervals, no frames; overlapping speech counts once for each speaker; no
collar: every millisecond is scored. Tracks carry their speakers' names, so the best assignment of
found to true speakers is the identity, and nothing has to be searched.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reflector_workers.domain import Turn


@dataclass(frozen=True)
class ErrorRate:
    """The parts of the error, each in seconds of a speaker's time.

    Attributes:
        miss: Speech that was not found.
        false_alarm: Speech that was found where there is none.
        confusion: Speech given to the wrong speaker.
        total: Speech in the reference.
    """

    miss: float
    false_alarm: float
    confusion: float
    total: float

    @property
    def rate(self) -> float:
        """The sum of the errors for each second of speech; more than 1 is possible."""
        return (self.miss + self.false_alarm + self.confusion) / self.total


def error_rate(reference: Iterable[Turn], found: Iterable[Turn]) -> ErrorRate:
    """Score `found` against `reference`.

    Raises:
        ValueError: The reference has no speech, so there is no rate.
    """
    true_turns, found_turns = list(reference), list(found)
    if not true_turns:
        raise ValueError("the reference has no speech: there is nothing to compare with")
    miss = false_alarm = confusion = total = 0.0
    times = sorted(
        {time for turn in (*true_turns, *found_turns) for time in (turn.start, turn.end)}
    )
    for start, end in pairwise(times):
        true, heard = _speaking(true_turns, start, end), _speaking(found_turns, start, end)
        length = end - start
        miss += length * max(0, len(true) - len(heard))
        false_alarm += length * max(0, len(heard) - len(true))
        confusion += length * (min(len(true), len(heard)) - len(true & heard))
        total += length * len(true)
    return ErrorRate(miss, false_alarm, confusion, total)


def _speaking(turns: list[Turn], start: float, end: float) -> set[str]:
    """Who speaks all the time from `start` to `end`, between which nobody begins or ends."""
    return {turn.speaker for turn in turns if turn.start <= start and end <= turn.end}
