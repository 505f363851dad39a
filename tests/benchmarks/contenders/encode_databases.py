"""The package `databases`. Its pool opens ten connections unless it is told otherwise: it is told."""

from __future__ import annotations

import importlib
from typing import Any

from tests.benchmarks.contenders.calls import calls_of
from tests.benchmarks.harness import NAMED, Child, in_one_loop, run_each


def connect_per_run(child: Child) -> Any:
    package = importlib.import_module("databases")

    async def job(n: int) -> Any:
        async with package.Database(child.url, min_size=1, max_size=5) as database:
            return await database.fetch_val(NAMED, {"n": n})

    return run_each(child, job)


def _connected(child: Child) -> Any:
    package = importlib.import_module("databases")
    database = package.Database(child.url, min_size=1, max_size=5)
    child.long_loop.run(database.connect())
    return database


def long_loop(child: Child) -> Any:
    database = _connected(child)
    return in_one_loop(child, lambda n: database.fetch_val(NAMED, {"n": n}))


CASES = {"connect per run": connect_per_run, "loop": long_loop, **calls_of(_connected)}
