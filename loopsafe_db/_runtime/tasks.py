"""What asyncio's tasks wait for, and what wakes them: private names of asyncio, in one place."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable


def stuck_on(task: asyncio.Task[Any] | None) -> asyncio.Future[Any] | None:
    """Give the future that a task still waits for although it is done, or None.

    The loop that runs the task wakes it up in its next turn. If it has not, an exception has struck in the loop itself,
    out of a signal handler, and the task never runs again.
    """
    future: asyncio.Future[Any] | None = getattr(task, "_fut_waiter", None)
    return future if future is not None and future.done() else None


def may_be_left(task: asyncio.Task[Any]) -> None:
    """Have nothing be said if the loop is closed before a task is done."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001


def wake_all(waiting: Iterable[asyncio.Future[None]]) -> None:
    """Have futures be done, each in its own loop, if that is open; any thread may ask."""
    for waiter in waiting:
        with suppress(RuntimeError):  # its loop is closed
            waiter.get_loop().call_soon_threadsafe(_wake, waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
