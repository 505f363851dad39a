"""asyncpg without anything around it: what the others are measured against."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

import asyncpg

from tests.benchmarks.harness import (
    CROWDS,
    LAST_ROW,
    MANY,
    NUMBERED,
    ROWS,
    SERIES,
    SETS,
    Child,
    Outcome,
    bursts,
    in_one_loop,
    in_tasks,
    in_threads,
    run_each,
)
from tests.benchmarks.memory import forget_peak, peak_bytes


def empty_run(child: Child) -> Any:
    async def nothing(n: int) -> int:
        return n

    return run_each(child, nothing)


def held_by_turns(child: Child) -> Any:
    """An empty `asyncio.run`, then a query in the loop that the connection was opened in."""
    loop = child.long_loop.get_loop()
    connection = loop.run_until_complete(asyncpg.connect(child.url))

    async def nothing() -> None:
        pass

    def measure(count: int) -> Outcome:
        run, ok = child.run, True
        start = perf_counter()
        for n in range(count):
            run(nothing())
            ok &= loop.run_until_complete(connection.fetchval(NUMBERED, n)) == n
        return Outcome(perf_counter() - start, ok)

    return measure


def connect_per_run(child: Child) -> Any:
    async def job(n: int) -> Any:
        connection = await asyncpg.connect(child.url)
        try:
            return await connection.fetchval(NUMBERED, n)
        finally:
            await connection.close()

    return run_each(child, job)


def held(child: Child) -> Any:
    connection = child.long_loop.run(asyncpg.connect(child.url))
    return in_one_loop(child, lambda n: connection.fetchval(NUMBERED, n))


def pool(child: Child) -> Any:
    async def open_pool() -> Any:
        return await asyncpg.create_pool(child.url, min_size=1, max_size=5)

    opened = child.long_loop.run(open_pool())
    return in_one_loop(child, lambda n: opened.fetchval(NUMBERED, n))


def pool_block(child: Child) -> Any:
    async def open_pool() -> Any:
        return await asyncpg.create_pool(child.url, min_size=1, max_size=5)

    opened = child.long_loop.run(open_pool())

    async def job(n: int) -> Any:
        async with opened.acquire() as connection:
            return n if await connection.execute(SETS) == "SET" else None

    return in_one_loop(child, job)


def pool_transaction(child: Child) -> Any:
    opened = child.long_loop.run(_open_pool(child, 1))

    async def job(n: int) -> Any:
        async with opened.acquire() as connection, connection.transaction():
            await connection.fetchval(NUMBERED, n)
            return await connection.fetchval(NUMBERED, n)

    return in_one_loop(child, job)


def waiting(size: int, tasks: int) -> Any:
    """Many tasks on a pool of that size, all of it open."""

    def prepare(child: Child) -> Any:
        opened = child.long_loop.run(_open_pool(child, size))
        return in_tasks(child, tasks, lambda n: opened.fetchval(NUMBERED, n))

    return prepare


def cold_burst(least: int) -> Any:
    """Many tasks at once on a new pool."""

    def prepare(child: Child) -> Any:
        async def burst(tasks: int) -> tuple[int, Any]:
            opened = await asyncpg.create_pool(child.url, min_size=least, max_size=10)
            done = await asyncio.gather(*(opened.fetchval(NUMBERED, 1) for _ in range(tasks)))
            return sum(done), opened.close

        return bursts(child, burst)

    return prepare


def threads(child: Child) -> Any:
    def job_of(runner: Any) -> Any:
        opened = runner.run(_open_pool(child, 1))
        return lambda n: opened.fetchval(NUMBERED, n)

    return in_threads(8, job_of)


async def _open_pool(child: Child, size: int) -> Any:
    return await asyncpg.create_pool(child.url, min_size=size, max_size=size)


def rows(child: Child) -> Any:
    connection = child.long_loop.run(asyncpg.connect(child.url))

    async def job(n: int) -> Any:
        found = await connection.fetch(ROWS)
        return n if len(found) == LAST_ROW[0] and tuple(found[-1]) == LAST_ROW else found

    return in_one_loop(child, job)


def many(child: Child) -> Any:
    connection = child.long_loop.run(asyncpg.connect(child.url))
    columns = "(a int, b text, c double precision)"
    child.long_loop.run(connection.execute(f"CREATE UNLOGGED TABLE bench_bare {columns}"))

    async def measure(count: int) -> Outcome:
        seconds, ok = 0.0, True
        for _ in range(count):
            await connection.execute("TRUNCATE bench_bare")
            start = perf_counter()
            await connection.executemany("INSERT INTO bench_bare VALUES ($1, $2, $3)", MANY)
            seconds += perf_counter() - start
            ok &= await connection.fetchval("SELECT count(*) FROM bench_bare") == len(MANY)
        return Outcome(seconds, ok)

    return lambda count: child.long_loop.run(measure(count))


def cursor(child: Child) -> Any:
    connection = child.long_loop.run(asyncpg.connect(child.url))

    async def measure(count: int) -> Outcome:
        before, seen = forget_peak(), 0
        start = perf_counter()
        async with connection.transaction():
            async for row in connection.cursor(SERIES.format("$1"), count, prefetch=500):
                seen += row[1] - row[0]
        seconds = perf_counter() - start
        return Outcome(seconds, seen == count, {"peak_bytes": peak_bytes() - before})

    return lambda count: child.long_loop.run(measure(count))


CASES = {
    "empty run": empty_run,
    "connect per run": connect_per_run,
    "held": held,
    "held, by turns": held_by_turns,
    "pool": pool,
    "pool block": pool_block,
    "pool transaction": pool_transaction,
    "threads": threads,
    "cold burst": cold_burst(10),
    "cold burst, as needed": cold_burst(0),
    **{f"pool of {size}, {tasks} tasks": waiting(size, tasks) for size, tasks in CROWDS},
    "rows": rows,
    "many": many,
    "cursor": cursor,
}
