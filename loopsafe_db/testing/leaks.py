"""LeakWatch: what a test has left behind, and where it took it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from loopsafe_db._runtime.registry import live_states, shared_values
from loopsafe_db.engines.holders import waits_at
from loopsafe_db.engines.pool import ConnectionPool

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUNNERS = ("TestRunner.",)  # anyio's plugin has a task that runs all tests of a loop


class LeakWatch:
    """Compares what is there after a test with what was there before it.

    Only loops that have used this library are known, and looked at while they do not run.
    """

    def __init__(self) -> None:
        self._loops = set(_idle_loops())
        self._tasks = {task for loop in self._loops for task in asyncio.all_tasks(loop)}

    def find(self, *, loops: bool) -> list[str]:
        """Tell what has been left behind since.

        Args:
            loops: Whether the test had to close the loops that it made: not where a plugin runs it in one.
        """
        left = [*_connections(), *self._new_tasks()]
        if loops:
            new = (loop for loop in _idle_loops() if loop not in self._loops)
            left += [f"an event loop was left open: {loop!r}" for loop in new]
        return left

    def _new_tasks(self) -> Iterator[str]:
        for loop in _idle_loops():
            for task in asyncio.all_tasks(loop) - self._tasks:
                name = getattr(task.get_coro(), "__qualname__", "")
                if not name.startswith(_RUNNERS):
                    place = waits_at(task) or name
                    yield f"an asyncio task was left running: {task.get_name()}, {place}"


def _connections() -> Iterator[str]:
    """Tell who has a connection, a transaction or a session of any handle of this process."""
    for pool in shared_values():
        if not isinstance(pool, ConnectionPool):
            continue
        for entry in list(pool.lending.held):
            yield f"a connection was left checked out: {entry.holder}"
        if pool.pinned is not None:
            for holder in pool.pinned.left_open():
                yield f"a transaction or a session was left open: {holder}"


def _idle_loops() -> list[asyncio.AbstractEventLoop]:
    """List the loops that are open, and run nothing now."""
    loops = (state.loop for state in live_states())
    return [
        loop
        for loop in loops
        if loop is not None and not loop.is_closed() and not loop.is_running()
    ]
