"""The run: contenders take turns, round by round, so that the machine's moods meet all of them alike."""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tests.benchmarks.affinity import one_cpu
from tests.benchmarks.cases import MIB, OURS, Case, Contender
from tests.benchmarks.children import ChildProcess, ContenderFailed
from tests.benchmarks.figures import Figure, Spread, Track, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Progress(Protocol):
    """Who is told how far the run is."""

    def begin(self, title: str, steps: int) -> None: ...
    def step(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How a run is made.

    Attributes:
        rounds: How often each contender has its turn, unless a case says less.
        quick: Whether few iterations do: the figures then mean nothing.
        pythons: By contender module; those not named run in `python`.
        settings: Environment variables of the contenders.
        postmaster: Of the server, if it can be pinned to a CPU.
    """

    rounds: int
    quick: bool
    python: Path
    pythons: Mapping[str, Path | None]
    settings: dict[str, str]
    postmaster: int | None = None

    def rounds_of(self, case: Case) -> int:
        return self.rounds if case.rounds is None else min(self.rounds, case.rounds)

    def count_of(self, contender: Contender) -> int:
        return contender.quick if self.quick else contender.count


@dataclass
class Result:
    """What came of one case."""

    case: Case
    tracks: dict[str, Track]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def figures(self) -> list[Figure]:
        """Ratios and facts, as far as those that they need took part."""
        return [*self._ratios(), *self._facts()]

    def complaints(self) -> list[str]:
        """What a reader has to know before trusting the figures."""
        found = []
        for name, track in self.tracks.items():
            if track.failure:
                found.append(f"{name} did not take part to the end: {track.failure}")
            if track.wrong:
                found.append(f"{name} was wrong in {track.wrong} rounds")
            found += [f"{name}: {note}" for note in track.notes]
        return found

    def is_right(self) -> bool:
        """Tell whether loopsafe_db took part in every round and gave only right answers."""
        ours = [track for name, track in self.tracks.items() if name.startswith(OURS)]
        return all(track.took_part and not track.failure and not track.wrong for track in ours)

    def _ratios(self) -> list[Figure]:
        figures = []
        for line in self.case.ratios:
            spread = ratio(self.tracks[line.of], [self.tracks[name] for name in line.over])
            if spread is not None:
                figures.append(Figure(line.what, spread, "x", line.goal))
        return figures

    def _facts(self) -> list[Figure]:
        figures = []
        for line in self.case.facts:
            values = self.tracks[line.of].facts.get(line.fact)
            if values:
                worst = Spread.of([max(values) / (MIB if line.unit == "MiB" else 1)])
                figures.append(Figure(line.what, worst, line.unit, line.goal))
        return figures


def run_case(case: Case, plan: Plan, progress: Progress) -> Result:
    """Measure one case from start to end; a contender that fails is left out and noted."""
    tracks = {item.name: Track(plan.count_of(item)) for item in case.contenders}
    result = Result(case, tracks)
    rounds = plan.rounds_of(case)
    progress.begin(case.name, rounds)
    with ExitStack() as stack:
        pinned = stack.enter_context(one_cpu(plan.postmaster)) if case.serial else {}
        running = _start(plan, {**plan.settings, **pinned}, stack, result)
        if rounds > 1:
            _take_turns(running, result, None)  # to warm up
        for number in range(rounds):
            _take_turns(_shuffled(running, number), result, number)
            progress.step()
    return result


Running = list[tuple[str, ChildProcess]]


def _start(plan: Plan, settings: dict[str, str], stack: ExitStack, result: Result) -> Running:
    """Start all at once, then wait for each."""
    started = []
    for contender in result.case.contenders:
        python = plan.pythons.get(contender.module, plan.python)
        if python is None:
            result.tracks[contender.name].failure = "its packages are not installed for this run"
        else:
            child = stack.enter_context(ChildProcess(contender, python, settings))
            started.append((contender.name, child))
    ready = []
    for name, child in started:
        try:
            versions = child.versions()
            if name == OURS:  # the peers in a venv of their own may have others
                result.versions.update(versions)
            result.versions = {**versions, **result.versions}
        except ContenderFailed as error:
            result.tracks[name].failure = str(error)
        else:
            ready.append((name, child))
    return ready


def _shuffled(running: Running, number: int) -> Running:
    """Nobody always comes after the same one; the same orders in every run."""
    return random.Random(number).sample(running, len(running))


def _take_turns(running: Running, result: Result, number: int | None) -> None:
    """Let everyone have a turn; without a round's number it is shorter, and not kept."""
    for name, child in running:
        track = result.tracks[name]
        if track.failure:
            continue
        try:
            outcome = child.measure(*_share(result.case, track.count, number))
        except ContenderFailed as error:
            track.failure = str(error)
        else:
            if number is not None:
                track.add(number, outcome)


def _share(case: Case, count: int, number: int | None) -> tuple[int, int]:
    """Iterations to measure, and those to settle before."""
    tenth = count // 10 + 1
    return (tenth, 0) if number is None else (count, tenth if case.serial else 0)
