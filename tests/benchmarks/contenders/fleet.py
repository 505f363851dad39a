"""A fleet of worker processes with several threads each, on one small budget of connections.

Run as ``python -m tests.benchmarks.contenders.fleet JOBS`` it is one of the workers: it says that it is ready, waits
for a line, works, and reports.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import asyncpg

from loopsafe_db import get_database
from tests.benchmarks.harness import NAMED, Child, Outcome

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

THREADS = 4
SAMPLE_EVERY = 0.002  # seconds between two looks at the server
BACKENDS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'"
)


@dataclass(frozen=True)
class FleetSize:
    """How many workers, and how many connections all of them may open together."""

    processes: int
    connections: int


FULL, QUICK = FleetSize(15, 20), FleetSize(3, 4)


def fleet(child: Child) -> Any:
    """Measure the whole fleet; `count` is the number of jobs of each thread."""
    size = QUICK if child.quick else FULL
    return lambda count: child.long_loop.run(_run_fleet(child.url, size, count))


async def _run_fleet(url: str, size: FleetSize, jobs: int) -> Outcome:
    async with _database_for_fleet(url) as (witness, name):
        workers = [await _start(f"{url.rpartition('/')[0]}/{name}", size, jobs)
                   for _ in range(size.processes)]  # fmt: skip
        for worker in workers:
            await _line_of(worker)  # it is ready
        watching = asyncio.create_task(_watch(witness, name))
        await asyncio.sleep(0)  # the witness looks before the first worker moves
        start = perf_counter()
        reports = await asyncio.gather(*(_work(worker) for worker in workers))
        seconds = perf_counter() - start
        watching.cancel()
        return _summed_up(reports, jobs, seconds, await watching)


@asynccontextmanager
async def _database_for_fleet(url: str) -> AsyncIterator[tuple[Any, str]]:
    """Give a connection beside, and the name of an empty database that only the fleet uses."""
    name = f"bench_fleet_{os.getpid()}"
    witness = await asyncpg.connect(url)
    await witness.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        yield witness, name
    finally:
        await witness.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await witness.close()


async def _start(url: str, size: FleetSize, jobs: int) -> Process:
    environment = {
        **os.environ,
        "LOOPSAFE_DB_URL": url,
        "LOOPSAFE_DB_FLEET_CONNECTIONS": str(size.connections),
        "LOOPSAFE_DB_FLEET_WORKERS": str(size.processes),
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, str(jobs)),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def _line_of(worker: Process) -> Any:
    assert worker.stdout is not None
    return json.loads(await worker.stdout.readline())


async def _work(worker: Process) -> Any:
    assert worker.stdin is not None
    worker.stdin.write(b"go\n")
    await worker.stdin.drain()
    report = await _line_of(worker)
    await worker.wait()
    return report


async def _watch(witness: Any, database: str) -> int:
    """Count the fleet's backends, from a connection to another database, until cancelled."""
    most = 0
    try:
        while True:
            most = max(most, await witness.fetchval(BACKENDS, database))
            await asyncio.sleep(SAMPLE_EVERY)
    except asyncio.CancelledError:
        return most


def _summed_up(reports: list[Any], jobs: int, seconds: float, most: int) -> Outcome:
    done: list[list[float]] = [times for report in reports for times in report["done"]]
    errors: Counter[str] = sum((Counter(report["errors"]) for report in reports), Counter())
    first_finish = min((times[-1] for times in done if len(times) == jobs), default=0.0)
    facts = {
        "backends": float(most),
        "errors": float(errors.total()),
        "undone": float(jobs - min(len(times) for times in done)),
        "done at first finish": float(
            min(sum(time <= first_finish for time in times) for times in done)
        ),
        "longest job": max(report["longest"] for report in reports),
    }
    note = "; ".join(f"{count} times {error}" for error, count in errors.most_common(3))
    return Outcome(seconds, not errors, facts, note)


# -- a worker


async def _job(n: int) -> None:
    database = get_database()
    async with database.transaction():
        await database.fetch_val("SELECT pg_sleep(0.002)")
        if await database.fetch_val(NAMED, {"n": n}) != n:
            raise AssertionError("somebody else's answer")
    await database.fetch_val(NAMED, {"n": n})


class _Worker:
    """Threads that run jobs, and what became of them."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._done: list[list[float]] = [[] for _ in range(THREADS)]
        self._errors: Counter[str] = Counter()
        self._longest = 0.0
        self._start = threading.Barrier(THREADS)

    def work(self) -> None:
        threads = [threading.Thread(target=self._run, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def report(self) -> dict[str, Any]:
        return {"done": self._done, "errors": self._errors, "longest": self._longest}

    def _run(self, number: int) -> None:
        self._start.wait()
        for n in range(self._jobs):
            began = perf_counter()
            try:
                asyncio.run(_job(n))
            except Exception as error:  # noqa: BLE001 (counted)
                self._errors[f"{type(error).__name__}: {error}"] += 1
            else:
                self._done[number].append(monotonic())  # one clock for all processes
            self._longest = max(self._longest, perf_counter() - began)


def _say(message: object) -> None:
    print(json.dumps(message), flush=True)


CASES = {"fleet": fleet}

if __name__ == "__main__":
    worker = _Worker(int(sys.argv[1]))
    _say("ready")
    sys.stdin.readline()
    worker.work()
    _say(worker.report())
