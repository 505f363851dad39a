"""psycopg 3, its pool, and what it costs to connect anew. Autocommit, as asyncpg has it."""

from __future__ import annotations

import importlib
from typing import Any

import psycopg

from tests.benchmarks.harness import CROWDS, FORMAT, Child, in_one_loop, in_tasks, run_each


async def _one(connection: Any, n: int) -> Any:
    cursor = await connection.execute(FORMAT, (n,))
    (value,) = await cursor.fetchone()
    return value


async def _open_pool(child: Child, least: int, most: int) -> Any:
    pools = importlib.import_module("psycopg_pool")
    opened = pools.AsyncConnectionPool(
        child.url, min_size=least, max_size=most, open=False, kwargs={"autocommit": True}
    )
    await opened.open(wait=True)
    return opened


def connect_per_run(child: Child) -> Any:
    async def job(n: int) -> Any:
        async with await psycopg.AsyncConnection.connect(child.url, autocommit=True) as connection:
            return await _one(connection, n)

    return run_each(child, job)


def held(child: Child) -> Any:
    async def connect() -> Any:
        return await psycopg.AsyncConnection.connect(child.url, autocommit=True)

    connection = child.long_loop.run(connect())
    return in_one_loop(child, lambda n: _one(connection, n))


def pool(child: Child) -> Any:
    opened = child.long_loop.run(_open_pool(child, 1, 5))

    async def job(n: int) -> Any:
        async with opened.connection() as connection:
            return await _one(connection, n)

    return in_one_loop(child, job)


def waiting(size: int, tasks: int) -> Any:
    """Many tasks on a pool of that size, all of it open."""

    def prepare(child: Child) -> Any:
        opened = child.long_loop.run(_open_pool(child, size, size))

        async def job(n: int) -> Any:
            async with opened.connection() as connection:
                return await _one(connection, n)

        return in_tasks(child, tasks, job)

    return prepare


CASES = {
    "connect per run": connect_per_run,
    "held": held,
    "pool": pool,
    **{f"pool of {size}, {tasks} tasks": waiting(size, tasks) for size, tasks in CROWDS},
}
