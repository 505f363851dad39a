"""A job that a queue delivers at least once is done again in its place when the database fails."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from loopsafe_db._runtime.left_running import end_left_running
from loopsafe_db.errors import CommitUnknown, ConnectionLost, RunningLoopError
from loopsafe_db.retry import Attempts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

T = TypeVar("T")
ATTEMPTS = Attempts(5, within=20.0)
"""How often a job is done in its place, before the queue is told that it failed."""


@asynccontextmanager
async def repeatable() -> AsyncIterator[None]:
    """A job may be done twice: so it may be done again where nobody knows what has been stored."""
    try:
        yield
    except (ConnectionLost, CommitUnknown) as error:
        error.retryable = True
        raise


def run_in_own_loop(what: str, work: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run a job in a new event loop.

    Raises:
        RunningLoopError: One runs in this thread, as where Celery's ``task_always_eager`` meets an ``async def``.
    """
    end_left_running()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass  # and what the job raises has no such context
    else:
        raise RunningLoopError(what)
    return asyncio.run(work())
