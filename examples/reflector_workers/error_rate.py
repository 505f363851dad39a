"""Diarization error rate: how much of the reference's speech the turns get wrong.

Exact arithmetic on intervals, no frames; overlapping speech counts once for each speaker. Whoever
was found is taken for the true speaker that fits best over the whole meeting, each for one at most,
as every scorer does it: names are spelled in many ways. The collar is that of NIST's md-eval, and of
dscore and spy-der: seconds on *each* side of every beginning and end of the reference's turns in
which nothing is scored. (pyannote.metrics counts both sides together: its 0.5 is 0.25 here.)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from reflector_workers.assignment import best_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from reflector_workers.domain import Turn

Kind = Literal["missed", "false alarm", "confused"]
_Side = Literal["true", "heard", "collar"]
_Span = tuple[float, float]

_TIE = 1e-9  # seconds: of two pairs that fit as well, the one of the same name is made
_NOBODY = "\0"  # in front of who fits no true speaker: a name that nobody has


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


@dataclass(frozen=True)
class Stretch:
    """A time in which nobody begins or ends.

    Attributes:
        true: Who speaks, by the reference.
        heard: Who was found to speak; true speakers' names where they were mapped to one.
    """

    start: float
    end: float
    true: frozenset[str]
    heard: frozenset[str]

    @property
    def errors(self) -> ErrorRate:
        """What this stretch adds to the error."""
        length, true, heard = self.end - self.start, len(self.true), len(self.heard)
        return ErrorRate(
            miss=length * max(0, true - heard),
            false_alarm=length * max(0, heard - true),
            confusion=length * (min(true, heard) - len(self.true & self.heard)),
            total=length * true,
        )


@dataclass(frozen=True)
class Mistake:
    """A time in which one speaker's speech is wrong.

    Attributes:
        name: Who: a true speaker, or one who was found and fits none.
        is_true: Which of the two.
    """

    start: float
    end: float
    name: str
    is_true: bool
    kind: Kind


@dataclass(frozen=True)
class Comparison:
    """The found turns beside the true ones.

    Attributes:
        rate: The parts of the error.
        names: Which true speaker each found one was taken for; who fits none is not in it.
        stretches: Everything that was scored, in order of time.
    """

    rate: ErrorRate
    names: Mapping[str, str]
    stretches: tuple[Stretch, ...]


def compare(reference: Iterable[Turn], found: Iterable[Turn], collar: float = 0.0) -> Comparison:
    """Score `found` against `reference`.

    Raises:
        ValueError: No speech of the reference is scored, so there is no rate.
    """
    spans: dict[tuple[_Side, str], list[_Span]] = {
        ("true", name): times for name, times in _by_speaker(reference).items()
    }
    zones = [(t - collar, t + collar) for times in spans.values() for span in times for t in span]
    spans |= {("heard", name): times for name, times in _by_speaker(found).items()}
    if collar:
        spans["collar", ""] = _united(zones)
    scored = list(_scored(spans))
    names = _best_names(scored)
    stretches = tuple(_renamed(stretch, names) for stretch in scored)
    rate = _sum(stretch.errors for stretch in stretches)
    if not rate.total:
        raise ValueError("the reference has no speech: there is nothing to compare with")
    return Comparison(rate, names, stretches)


def mistakes(comparison: Comparison) -> list[Mistake]:
    """Everything that is wrong, speaker by speaker: each stretch as long as it lasts."""
    found: list[Mistake] = []
    latest: dict[tuple[str, Kind], int] = {}
    for stretch in comparison.stretches:
        for name, kind in _wrong(stretch):
            last = latest.get((name, kind))
            if last is not None and found[last].end == stretch.start:
                found[last] = replace(found[last], end=stretch.end)
                continue
            latest[name, kind] = len(found)
            is_true = not name.startswith(_NOBODY)
            name = name.removeprefix(_NOBODY)
            found.append(Mistake(stretch.start, stretch.end, name, is_true, kind))
    return found


def _wrong(stretch: Stretch) -> Iterator[tuple[str, Kind]]:
    not_heard, not_true = stretch.true - stretch.heard, stretch.heard - stretch.true
    for name in sorted(not_heard):
        yield name, "confused" if not_true else "missed"
    for name in sorted(not_true):
        yield name, "confused" if not_heard else "false alarm"


def _by_speaker(turns: Iterable[Turn]) -> dict[str, list[_Span]]:
    """Each speaker's time; who speaks twice at once, or goes on at once, is one speaker."""
    spans = defaultdict(list)
    for turn in turns:
        spans[turn.speaker].append((turn.start, turn.end))
    return {speaker: _united(times) for speaker, times in spans.items()}


def _united(spans: Iterable[_Span]) -> list[_Span]:
    united: list[_Span] = []
    for start, end in sorted(spans):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(end, united[-1][1]))
        else:
            united.append((start, end))
    return united


def _scored(spans: Mapping[tuple[_Side, str], Iterable[_Span]]) -> Iterator[Stretch]:
    """The stretches in which somebody speaks, and that are in no collar."""
    changes: defaultdict[float, set[tuple[_Side, str]]] = defaultdict(set)
    for who, times in spans.items():
        for start, end in times:
            changes[start].add(who)
            changes[end].add(who)
    now: set[tuple[_Side, str]] = set()
    for start, end in pairwise(sorted(changes)):
        now ^= changes[start]  # who spoke ends, who did not begins
        if now and ("collar", "") not in now:
            yield Stretch(start, end, _names(now, "true"), _names(now, "heard"))


def _names(now: Iterable[tuple[_Side, str]], side: _Side) -> frozenset[str]:
    return frozenset(name for which, name in now if which == side)


def _best_names(stretches: Iterable[Stretch]) -> dict[str, str]:
    together: defaultdict[tuple[str, str], float] = defaultdict(float)
    for stretch in stretches:
        for heard in stretch.heard:
            for true in stretch.true:
                together[heard, true] += stretch.end - stretch.start
    for heard, true in together:
        if heard == true:
            together[heard, true] += _TIE
    return best_pairs(together)


def _renamed(stretch: Stretch, names: Mapping[str, str]) -> Stretch:
    heard = frozenset(names.get(name, _NOBODY + name) for name in stretch.heard)
    return Stretch(stretch.start, stretch.end, stretch.true, heard)


def _sum(parts: Iterable[ErrorRate]) -> ErrorRate:
    miss = false_alarm = confusion = total = 0.0
    for part in parts:
        miss += part.miss
        false_alarm += part.false_alarm
        confusion += part.confusion
        total += part.total
    return ErrorRate(miss, false_alarm, confusion, total)
