"""The package `databasez`."""

from __future__ import annotations

import importlib
from typing import Any

from tests.benchmarks.harness import NAMED, Child, in_one_loop, run_each


def connect_per_run(child: Child) -> Any:
    package = importlib.import_module("databasez")

    async def job(n: int) -> Any:
        async with package.Database(child.url_of("postgresql+asyncpg")) as database:
            return await database.fetch_val(NAMED, {"n": n})

    return run_each(child, job)


def long_loop(child: Child) -> Any:
    package = importlib.import_module("databasez")
    database = package.Database(child.url_of("postgresql+asyncpg"))
    child.long_loop.run(database.connect())
    return in_one_loop(child, lambda n: database.fetch_val(NAMED, {"n": n}))


CASES = {"connect per run": connect_per_run, "loop": long_loop}
