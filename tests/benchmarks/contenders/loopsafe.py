"""loopsafe_db, by its public API."""

from __future__ import annotations

import asyncio
import os
from time import perf_counter
from typing import Any

from loopsafe_db import (
    Database,
    PoolLimits,
    Statement,
    create_async_engine,
    get_database,
    on_statement,
)
from tests.benchmarks.contenders.calls import calls_of
from tests.benchmarks.contenders.plain_sqlalchemy import ask_engine, ask_in
from tests.benchmarks.harness import (
    CROWDS,
    LAST_ROW,
    MANY,
    NAMED,
    ROWS,
    SERIES,
    SETS,
    Child,
    Outcome,
    bursts,
    call_each,
    in_one_loop,
    in_tasks,
    in_threads,
    run_each,
    waits_in_threads,
)
from tests.benchmarks.memory import Occupied, forget_peak, peak_bytes

WARM_UP = 200


def _run_each(child: Child, url: str) -> Any:
    database = Database(url)
    return run_each(child, lambda n: database.fetch_val(NAMED, {"n": n}))


def run_per_job(child: Child) -> Any:
    return _run_each(child, child.url)


def run_per_job_psycopg(child: Child) -> Any:
    return _run_each(child, child.url_of("postgresql+psycopg"))


def run_per_job_aiosqlite(child: Child) -> Any:
    return _run_each(child, f"sqlite:///{child.sqlite_file}")


def long_loop(child: Child) -> Any:
    database = Database(child.url)
    return in_one_loop(child, lambda n: database.fetch_val(NAMED, {"n": n}))


def long_loop_process_scope(child: Child) -> Any:
    database = Database(child.url, scope="process")
    return in_one_loop(child, lambda n: database.fetch_val(NAMED, {"n": n}))


def no_listener_left(child: Child) -> Any:
    on_statement(_hear)()
    return long_loop(child)


def listener(child: Child) -> Any:
    on_statement(_hear)
    return long_loop(child)


def _hear(statement: Statement) -> None:
    """Listen, and do nothing with it."""


def touched_block(child: Child) -> Any:
    database = Database(child.url)

    async def job(n: int) -> Any:
        async with database.connection() as connection:
            return n if await connection.execute(SETS) is None else None

    return in_one_loop(child, job)


def waiting(size: int, tasks: int, dialect: str = "postgresql") -> Any:
    """Many tasks on a pool of that size."""

    def prepare(child: Child) -> Any:
        database = Database(child.url_of(dialect), pool=PoolLimits(size))
        return in_tasks(child, tasks, lambda n: database.fetch_val(NAMED, {"n": n}))

    return prepare


def cold_burst(child: Child) -> Any:
    async def burst(tasks: int) -> tuple[int, Any]:
        database = Database(child.url, pool=PoolLimits(10))
        done = await asyncio.gather(*(database.fetch_val(NAMED, {"n": 1}) for _ in range(tasks)))
        return sum(done), database.disconnect

    return bursts(child, burst)


def starvation(child: Child) -> Any:
    database = Database(child.url, pool=PoolLimits(4))

    async def timed() -> float:
        await database.execute("SELECT pg_sleep(0.002)")
        return perf_counter()

    return waits_in_threads(4, 200, timed)


def threads(child: Child) -> Any:
    database = Database(child.url, pool=PoolLimits(8))
    return in_threads(8, lambda _: lambda n: database.fetch_val(NAMED, {"n": n}))


def rows(child: Child) -> Any:
    database = Database(child.url)

    async def job(n: int) -> Any:
        found = await database.fetch_all(ROWS)
        last = tuple(found[-1].values())
        return n if len(found) == LAST_ROW[0] and last == LAST_ROW else found

    return in_one_loop(child, job)


def many(child: Child) -> Any:
    database = Database(child.url)
    columns = "(a int, b text, c double precision)"
    child.long_loop.run(database.execute(f"CREATE UNLOGGED TABLE bench_loopsafe {columns}"))
    values = [dict(zip("abc", row, strict=True)) for row in MANY]

    async def measure(count: int) -> Outcome:
        seconds, ok = 0.0, True
        for _ in range(count):
            await database.execute("TRUNCATE bench_loopsafe")
            start = perf_counter()
            await database.execute_many("INSERT INTO bench_loopsafe VALUES (:a, :b, :c)", values)
            seconds += perf_counter() - start
            ok &= await database.fetch_val("SELECT count(*) FROM bench_loopsafe") == len(MANY)
        return Outcome(seconds, ok)

    return lambda count: child.long_loop.run(measure(count))


def iterate(child: Child) -> Any:
    database = Database(child.url)

    async def measure(count: int) -> Outcome:
        before, seen = forget_peak(), 0
        start = perf_counter()
        async for row in database.iterate(SERIES.format(":n"), {"n": count}):
            seen += row[1] - row[0]
        seconds = perf_counter() - start
        return Outcome(seconds, seen == count, {"peak_bytes": peak_bytes() - before})

    return lambda count: child.long_loop.run(measure(count))


def sessions(child: Child) -> Any:
    database = Database(child.url)
    return in_one_loop(child, lambda n: ask_in(database.session(), n))


def engine(child: Child) -> Any:
    made = create_async_engine(child.url)
    return in_one_loop(child, lambda n: ask_engine(made, n))


def engine_in_runs(child: Child) -> Any:
    made = create_async_engine(child.url)
    return run_each(child, lambda n: ask_engine(made, n))


def handle(child: Child) -> Any:
    os.environ["LOOPSAFE_DB_URL"] = child.url
    assert get_database() is get_database()
    return call_each(get_database)


def empty_call(child: Child) -> Any:
    def nothing() -> None:
        """Do what any call has to."""

    return call_each(nothing)


def growth(child: Child) -> Any:
    """Many runs; what the process has more of afterwards."""
    run = run_per_job(child)

    def measure(count: int) -> Outcome:
        run(WARM_UP)
        before = Occupied.now()
        outcome: Outcome = run(count)
        return Outcome(outcome.seconds, outcome.ok, Occupied.now().growth_since(before))

    return measure


CASES = {
    "run": run_per_job,
    "run psycopg": run_per_job_psycopg,
    "run aiosqlite": run_per_job_aiosqlite,
    "loop": long_loop,
    "no listener left": no_listener_left,
    "listener": listener,
    "touched block": touched_block,
    "process scope": long_loop_process_scope,
    "threads": threads,
    "cold burst": cold_burst,
    "starvation": starvation,
    **{f"pool of {size}, {tasks} tasks": waiting(size, tasks) for size, tasks in CROWDS},
    **{
        f"psycopg, pool of {size}, {tasks} tasks": waiting(size, tasks, "postgresql+psycopg")
        for size, tasks in CROWDS
    },
    "rows": rows,
    "many": many,
    "iterate": iterate,
    "sessions": sessions,
    "engine": engine,
    "engine in runs": engine_in_runs,
    "handle": handle,
    "empty call": empty_call,
    "growth": growth,
    **calls_of(lambda child: Database(child.url)),
}
