"""From seconds to ratios: each round by itself, then the median of all rounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.harness import Outcome


@dataclass(frozen=True)
class Goal:
    """What a figure has to be, and what it should be. Printed beside the figure, never asserted."""

    reach: float
    aim: float | None = None
    side: Literal["at most", "at least"] = "at most"

    def verdict(self, value: float) -> str:
        if self.aim is not None and self._holds(value, self.aim):
            return "aim met"
        return "reached" if self._holds(value, self.reach) else "missed"

    def _holds(self, value: float, limit: float) -> bool:
        return value <= limit if self.side == "at most" else value >= limit


@dataclass(frozen=True)
class Spread:
    """The median over the rounds, with the quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high)


@dataclass(frozen=True)
class Figure:
    """One line of the report."""

    what: str
    spread: Spread
    unit: Literal["x", "MiB", ""]
    goal: Goal | None

    @property
    def verdict(self) -> str:
        return "" if self.goal is None else self.goal.verdict(self.spread.median)


@dataclass
class Track:
    """What one contender did in the rounds of one case.

    Attributes:
        seconds: Per iteration, by round.
        failure: Why it took part no longer.
        wrong: Rounds with a wrong answer.
    """

    count: int
    seconds: dict[int, float] = field(default_factory=dict)
    facts: dict[str, list[float]] = field(default_factory=dict)
    failure: str = ""
    wrong: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, round_number: int, outcome: Outcome) -> None:
        self.seconds[round_number] = outcome.seconds / self.count
        self.wrong += not outcome.ok
        for name, value in outcome.facts.items():
            self.facts.setdefault(name, []).append(value)
        if outcome.note:
            self.notes.append(outcome.note)

    @property
    def took_part(self) -> bool:
        return bool(self.seconds)


def ratio(of: Track, over: Sequence[Track]) -> Spread | None:
    """Divide within each round; None if there is no round in which all took part."""
    rounds = [n for n in of.seconds if all(n in track.seconds for track in over)]
    if not rounds:
        return None
    return Spread.of([of.seconds[n] / sum(track.seconds[n] for track in over) for n in rounds])
