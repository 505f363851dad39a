"""A time limit that leaves its event loop behind as the running one costs the worker no later job."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.util import greenlet_spawn

from loopsafe_db.errors import RunningLoopError
from loopsafe_db.integrations.repeating import run_in_own_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

# Time limits until one strikes where CPython 3.14's `run_forever` has no handler: some in a hundred of them do.
STRIKES = """
import asyncio, signal, sys
from loopsafe_db.integrations.repeating import run_in_own_loop

class TimeLimit(Exception): pass

def raise_it(*_):
    if limited: raise TimeLimit

async def job(): return 7

signal.signal(signal.SIGALRM, raise_it)
for strikes in range(1000):
    loop = asyncio.SelectorEventLoop()
    loop._run_once = int  # the turns of a loop that has nothing to do
    signal.setitimer(signal.ITIMER_REAL, 0.003)
    try:
        limited = True
        loop.run_forever()
    except TimeLimit:
        limited = False
    if asyncio._get_running_loop() is not None:
        break
    loop.close()
assert run_in_own_loop("a job", job) == 7
assert loop.is_closed()
print("left" if strikes < 999 else "never left")
"""


async def job() -> int:
    return 7


@pytest.fixture
def left() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that is marked as the running one, as an exception in the wrong place leaves it."""
    loop = asyncio.SelectorEventLoop()
    loop._thread_id = 1  # type: ignore[attr-defined]  # noqa: SLF001
    asyncio._set_running_loop(loop)  # noqa: SLF001
    yield loop
    asyncio._set_running_loop(None)  # noqa: SLF001


def test_a_loop_that_was_left_running_is_closed_and_the_next_job_runs(
    left: asyncio.AbstractEventLoop,
) -> None:
    assert asyncio.get_running_loop() is left
    assert [run_in_own_loop("a job", job) for _ in range(2)] == [7, 7]
    assert left.is_closed()


@pytest.mark.skipif(sys.version_info < (3, 14), reason="here a loop is never left so")
def test_so_it_is_with_a_real_time_limit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRIKES], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("left\n", "")


async def test_a_loop_that_runs_is_left_alone() -> None:
    def refused() -> None:
        with pytest.raises(RunningLoopError):
            run_in_own_loop("a job", job)

    refused()
    await greenlet_spawn(refused)  # whose stack is another
    over = asyncio.get_running_loop().create_future()

    def in_no_task() -> None:
        refused()
        over.set_result(None)

    asyncio.get_running_loop().call_soon(in_no_task)
    async with asyncio.timeout(5):
        await over
