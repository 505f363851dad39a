"""One CPU for a contender and its server, where one always waits for the other.

A scheduler that wakes the two on different CPUs, or on one, makes a round trip take two times as long or half as long,
and stays with its choice for seconds: more than most of what is compared here.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncpg
import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "BENCH_CPU"


def postmaster_of(url: str) -> int | None:
    """Give the process that starts the backends of a server on this machine; None where nothing can be pinned."""
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
        return None

    async def ask() -> int:
        connection = await asyncpg.connect(url)
        try:
            return psutil.Process(connection.get_server_pid()).ppid()
        finally:
            await connection.close()

    return asyncio.run(ask())


@contextmanager
def one_cpu(postmaster: int | None) -> Iterator[dict[str, str]]:
    """Have new backends run on one CPU; gives the settings that bring a contender there too."""
    if postmaster is None or sys.platform != "linux":
        yield {}
        return
    before = os.sched_getaffinity(postmaster)
    cpu = max(before)
    os.sched_setaffinity(postmaster, {cpu})
    try:
        yield {VARIABLE: str(cpu)}
    finally:
        os.sched_setaffinity(postmaster, before)
