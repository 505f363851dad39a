"""psycopg 3, its pool, and what it costs to connect anew. Autocommit, as asyncpg has it."""

from __future__ import annotations

import importlib
from typing import Any

import psycopg

from tests.benchmarks.harness import FORMAT, Child, in_one_loop, run_each


async def _one(connection: Any, n: int) -> Any:
    cursor = await connection.execute(FORMAT, (n,))
    (value,) = await cursor.fetchone()
    return value


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
    pools = importlib.import_module("psycopg_pool")

    async def open_pool() -> Any:
        opened = pools.AsyncConnectionPool(
            child.url, min_size=1, max_size=5, open=False, kwargs={"autocommit": True}
        )
        await opened.open(wait=True)
        return opened

    opened = child.long_loop.run(open_pool())

    async def job(n: int) -> Any:
        async with opened.connection() as connection:
            return await _one(connection, n)

    return in_one_loop(child, job)


CASES = {"connect per run": connect_per_run, "held": held, "pool": pool}
