"""What every contender's process has: a way to run coroutines, and loops that take the time.

Nothing but the standard library at import: this also runs in an environment without loopsafe_db.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from threading import Barrier
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

NAMED = "SELECT CAST(:n AS int)"  # the query of nearly every case, in each parameter style
NUMBERED = "SELECT CAST($1 AS int)"
FORMAT = "SELECT CAST(%s AS int)"

ROWS = "SELECT i AS a, i * 2 AS b, 'row ' || i AS c FROM generate_series(1, 100) AS i"
LAST_ROW = (100, 200, "row 100")

MANY = [(n, f"name {n}", n / 7) for n in range(10_000)]

CROWDS = [
    (size, tasks) for size in (5, 10) for tasks in (10, 20, 200, 2000)
]  # a pool's size, and how many tasks use it

BURST = 50  # tasks that come at once to a pool that has nothing open

SETS = "SET statement_timeout = '54321ms'"  # for the session
SERIES = "SELECT i, i + 1 AS j FROM generate_series(1, CAST({} AS int)) AS i"


@dataclass(frozen=True)
class Outcome:
    """What one measurement gave.

    Attributes:
        seconds: For all iterations together.
        ok: Whether every answer was right.
        facts: Other figures: bytes, backends, errors.
        note: What a reader should know of it.
    """

    seconds: float
    ok: bool
    facts: dict[str, float] = field(default_factory=dict)
    note: str = ""


Measure = "Callable[[int], Outcome]"


class Child:
    """This process: where the database is, and how coroutines are run.

    Args:
        url: ``postgresql://…``
        loop_factory: None for asyncio's own loop.
    """

    def __init__(
        self, url: str, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    ) -> None:
        self.url = url
        self.sqlite_file = os.environ.get("BENCH_SQLITE", "")
        self.quick = bool(os.environ.get("BENCH_QUICK"))
        self._loop_factory = loop_factory
        self.run: Callable[[Coroutine[Any, Any, Any]], Any] = (
            asyncio.run if loop_factory is None else self._run
        )

    def url_of(self, dialect: str) -> str:
        """The URL with SQLAlchemy's ``dialect+driver`` in front."""
        return f"{dialect}:{self.url.partition(':')[2]}"

    @cached_property
    def long_loop(self) -> asyncio.Runner:
        """One loop for the life of the process."""
        return asyncio.Runner(loop_factory=self._loop_factory)

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            return runner.run(coroutine)


def run_each(child: Child, job: Callable[[int], Coroutine[Any, Any, Any]]) -> Any:
    """Measure ``asyncio.run(job(n))``, again and again; `job` answers with its `n`."""

    def measure(count: int) -> Outcome:
        run, ok = child.run, True
        start = perf_counter()
        for n in range(count):
            ok &= run(job(n)) == n
        return Outcome(perf_counter() - start, ok)

    return measure


def in_one_loop(child: Child, job: Callable[[int], Awaitable[Any]]) -> Any:
    """Measure ``await job(n)`` in one long loop."""

    async def loop(count: int) -> Outcome:
        ok = True
        start = perf_counter()
        for n in range(count):
            ok &= await job(n) == n
        return Outcome(perf_counter() - start, ok)

    return lambda count: child.long_loop.run(loop(count))


def in_tasks(child: Child, tasks: int, job: Callable[[int], Awaitable[Any]]) -> Any:
    """Measure ``await job(n)`` in so many tasks of one long loop at once."""
    return lambda count: child.long_loop.run(_share(count, tasks, job))


def in_threads(threads: int, job_of: Callable[[asyncio.Runner], Any]) -> Any:
    """Measure jobs in so many threads at once, each with a long loop of its own, for which `job_of` makes the job."""
    runners = [asyncio.Runner() for _ in range(threads)]
    jobs = [(runner, job_of(runner)) for runner in runners]

    def measure(count: int) -> Outcome:
        each = max(count // threads, 1)
        start = perf_counter()
        with ThreadPoolExecutor(threads) as executor:
            done = executor.map(lambda one: one[0].run(_share(each, 1, one[1])), jobs)
            ok = all(outcome.ok for outcome in done)
        return Outcome(perf_counter() - start, ok)

    return measure


def bursts(child: Child, burst: Callable[[int], Awaitable[Any]]) -> Any:
    """Measure bursts of `BURST` tasks, each on a pool that has nothing open.

    `burst` answers with how many are done, and what closes the pool: that is not counted.
    """

    async def loop(count: int) -> Outcome:
        seconds, ok = 0.0, True
        for _ in range(count):
            start = perf_counter()
            done, close = await burst(BURST)
            seconds += perf_counter() - start
            ok &= done == BURST
            await close()
        return Outcome(seconds, ok)

    return lambda count: child.long_loop.run(loop(count))


def waits_in_threads(
    threads: int, tasks: int, timed: Callable[[], Coroutine[Any, Any, float]]
) -> Any:
    """Measure how long each of many tasks waits for one connection, in so many threads with a loop each.

    `timed` gives the second at which it was served.
    """

    async def all_of(started: Barrier) -> list[float]:
        started.wait()
        began = perf_counter()
        served = await asyncio.gather(*(timed() for _ in range(tasks // threads)))
        return [at - began for at in served]

    def measure(count: int) -> Outcome:
        worst, start = 0.0, perf_counter()
        with ThreadPoolExecutor(threads) as executor:
            for _ in range(count):
                started = Barrier(threads)
                parts = list(
                    executor.map(lambda one: asyncio.run(all_of(one)), [started] * threads)
                )
                waits = [wait for part in parts for wait in part]
                worst = max(worst, max(waits) / statistics.median(waits))
        return Outcome(perf_counter() - start, ok=True, facts={"longest": worst})

    return measure


async def _share(count: int, tasks: int, job: Callable[[int], Awaitable[Any]]) -> Outcome:
    numbers = iter(range(count))

    async def work() -> bool:
        answers = [await job(n) == n for n in numbers]
        return all(answers)

    start = perf_counter()
    right = await asyncio.gather(*(work() for _ in range(min(tasks, count))))
    return Outcome(perf_counter() - start, all(right))


def call_each(function: Callable[[], object]) -> Any:
    """Measure a plain call."""

    def measure(count: int) -> Outcome:
        start = perf_counter()
        for _ in itertools.repeat(None, count):
            function()
        return Outcome(perf_counter() - start, ok=True)

    return measure
