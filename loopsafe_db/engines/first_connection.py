"""FirstConnection: on the first connection of an engine, SQLAlchemy asks the server what it has to know of it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from loopsafe_db._runtime.tasks import wake_all

LOOK_AGAIN = 1.0  # seconds until those who wait look whether the task that asks still lives


class FirstConnection:
    """Lets one new connection through to SQLAlchemy's questions; the others, open by then, wait for the answers.

    SQLAlchemy itself has them go on without. Any loop and thread may call it.
    """

    def __init__(self) -> None:
        self._is_known = False
        self._asking: asyncio.Task[object] | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._lock = threading.RLock()  # a finalizer may leave

    @property
    def is_asking(self) -> bool:
        """Whether SQLAlchemy has begun to ask, and knows part of the answers."""
        return self._asking is not None

    async def turn(self) -> None:
        """Wait until SQLAlchemy knows the server, or it is this task that has it ask."""
        while (waiter := self._claim()) is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):
                    await waiter

    def leave(self, task: asyncio.Task[object] | None, *, known: bool) -> None:
        """Let the others go on, if it was `task` that had SQLAlchemy ask."""
        if self._asking is None or self._asking is not task:
            return
        with self._lock:
            self._asking, self._is_known = None, self._is_known or known
            waiting, self._waiting = self._waiting, []
        wake_all(waiting)

    def _claim(self) -> asyncio.Future[None] | None:
        """Go on, or have this task ask; what it has to wait for, if another one does, not done, in an open loop."""
        with self._lock:
            other = self._asking
            if self._is_known:
                return None
            if other is None or other.done() or other.get_loop().is_closed():
                self._asking = asyncio.current_task()
                return None
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            return waiter
