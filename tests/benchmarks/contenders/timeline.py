"""Where the time of one query goes: a clock read at each step, by hand, so that nothing is slowed by a profiler."""

from __future__ import annotations

import itertools
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import asyncpg

from loopsafe_db import Database
from loopsafe_db.drivers import asyncpg as driver
from tests.benchmarks.harness import NAMED, NUMBERED, Child, Outcome
from tests.benchmarks.timeline import ALL_STEPS, Step

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class Clock:
    """The times of one operation, in the order in which they were taken."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self) -> None:
        self.times.append(perf_counter())

    def watch_driver(self) -> None:
        """Tick before and after each of asyncpg's queries, from now on: all come by here."""
        driver._run = self._watched(driver._run)  # noqa: SLF001

    def _watched(self, call: Callable[..., Awaitable[Any]]) -> Any:
        async def watched(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            try:
                return await call(*args, **kwargs)
            finally:
                self.tick()

        return watched


class Laps:
    """The steps of many operations."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._laps: list[list[float]] = []
        self.ok = True

    def add(self, times: Sequence[float], *, right: bool) -> None:
        if len(times) != len(self._steps) + 1:
            raise RuntimeError(f"{len(times)} readings of the clock for {len(self._steps)} steps")
        self.ok &= right
        self._laps.append([after - before for before, after in itertools.pairwise(times)])

    def outcome(self) -> Outcome:
        columns = zip(*self._laps, strict=True)
        facts = {
            step.key: median(column) for step, column in zip(self._steps, columns, strict=True)
        }
        return Outcome(sum(facts.values()), self.ok, facts)


def _runs(child: Child, clock: Clock, job: Any, steps: Sequence[Step]) -> Any:
    """Measure ``asyncio.run``, with the opening and the closing of the loop as steps."""

    async def inside(n: int) -> Any:
        clock.tick()
        value = await job(n)
        clock.tick()
        return value

    def measure(count: int) -> Outcome:
        laps = Laps(steps)
        for n in range(count):
            clock.times.clear()
            clock.tick()
            value = child.run(inside(n))
            clock.tick()
            laps.add(clock.times, right=value == n)
        return laps.outcome()

    return measure


def _loop(child: Child, clock: Clock, job: Any, steps: Sequence[Step]) -> Any:
    async def loop(count: int) -> Outcome:
        laps = Laps(steps)
        for n in range(count):
            clock.times.clear()
            clock.tick()
            value = await job(n)
            clock.tick()
            laps.add(clock.times, right=value == n)
        return laps.outcome()

    return lambda count: child.long_loop.run(loop(count))


async def _itself(n: int) -> int:
    return n


def empty_run(child: Child) -> Any:
    steps = [Step.OPEN, Step.NOTHING, Step.CLOSE]
    return _runs(child, Clock(), _itself, steps)


def held(child: Child) -> Any:
    connection = child.long_loop.run(asyncpg.connect(child.url))
    return _loop(child, Clock(), lambda n: connection.fetchval(NUMBERED, n), [Step.DRIVER])


def _warm(url: str, run: Callable[..., Any]) -> Database:
    """Give a handle that has connected, for which asyncpg 0.30 makes queries of its own."""
    database = Database(url)
    run(database.connect())
    return database


def ours_in_runs(child: Child) -> Any:
    database, clock = _warm(child.url, child.run), Clock()
    clock.watch_driver()
    return _runs(child, clock, lambda n: database.fetch_val(NAMED, {"n": n}), ALL_STEPS)


def ours_in_one_loop(child: Child) -> Any:
    database, clock = _warm(child.url, child.long_loop.run), Clock()
    clock.watch_driver()
    steps = [Step.THERE, Step.DRIVER, Step.BACK]
    return _loop(child, clock, lambda n: database.fetch_val(NAMED, {"n": n}), steps)


CASES = {
    "empty run": empty_run,
    "held": held,
    "ours in runs": ours_in_runs,
    "ours in one loop": ours_in_one_loop,
}
