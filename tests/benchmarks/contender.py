"""A contender's process: reads ``{"count": 100, "settle": 10}`` from stdin line by line, answers with an `Outcome`.

Run as ``python -m tests.benchmarks.contender MODULE CASE LOOP``, in the contender's own environment. The first
line that it writes tells the versions in use, or why it cannot take part.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from tests.benchmarks.harness import Child

PACKAGES = (
    "aiosqlite",
    "asyncpg",
    "databases",
    "databasez",
    "loopsafe-db",
    "psycopg",
    "psycopg-pool",
    "sqlalchemy",
    "uvloop",
)


def main(module: str, case: str, loop: str) -> None:
    _level_the_ground()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what a library prints is not an answer
        try:
            measure = _prepare(module, case, loop)
        except Exception as error:  # noqa: BLE001 (the parent reports whatever it is)
            _say(answers, {"error": _told(error)})
            return
        _say(answers, {"versions": _versions()})
        for line in sys.stdin:
            _say(answers, _measured(measure, **json.loads(line)))
        os._exit(0)  # connections are left open on purpose: how they end is not measured


def _level_the_ground() -> None:
    """Give every contender the same CPU and the same allocator.

    asyncio reads into 256 KiB. glibc maps and unmaps such a block each time, 40 µs, until the process has once freed a
    larger one; importing a large package does that by accident, so a contender that imports little would seem slow.
    """
    if cpu := os.environ.get("BENCH_CPU"):
        os.sched_setaffinity(0, {int(cpu)})
    bytearray(1024 * 1024)


def _prepare(module: str, case: str, loop: str) -> Any:
    contender = importlib.import_module(f"tests.benchmarks.contenders.{module}")
    factory = importlib.import_module("uvloop").new_event_loop if loop == "uvloop" else None
    return contender.CASES[case](Child(os.environ["BENCH_URL"], factory))


def _measured(measure: Any, count: int, settle: int) -> dict[str, Any]:
    gc.collect()  # what went before is not this measurement's
    try:
        if settle:
            measure(settle)  # others have had the CPU and its caches meanwhile
        return asdict(measure(count))
    except Exception as error:  # noqa: BLE001 (the parent reports whatever it is)
        return {"error": _told(error)}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _say(answers: Any, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
