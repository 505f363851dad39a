"""aiosqlite without anything around it."""

from __future__ import annotations

from typing import Any

import aiosqlite

from tests.benchmarks.harness import Child, in_one_loop, run_each

QUERY = "SELECT CAST(? AS int)"


async def _one(connection: aiosqlite.Connection, n: int) -> Any:
    async with connection.execute(QUERY, (n,)) as cursor:
        row = await cursor.fetchone()
    return None if row is None else row[0]


def connect_per_run(child: Child) -> Any:
    async def job(n: int) -> Any:
        async with aiosqlite.connect(child.sqlite_file) as connection:
            return await _one(connection, n)

    return run_each(child, job)


def held(child: Child) -> Any:
    async def connect() -> aiosqlite.Connection:
        return await aiosqlite.connect(child.sqlite_file)

    connection = child.long_loop.run(connect())
    return in_one_loop(child, lambda n: _one(connection, n))


CASES = {"connect per run": connect_per_run, "held": held}
