"""Opening a connection to a server that is just about to start, or has no room just now."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import random
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loopsafe_db._runtime.tasks import wake_all
from loopsafe_db._runtime.whole_steps import in_whole_steps
from loopsafe_db.errors import ConnectError, ConnectTimeout, TooManyConnections

if TYPE_CHECKING:
    from loopsafe_db.drivers.base import ConnectOptions, Driver

_SHORTEST, _LONGEST = 0.05, 1.0  # seconds from one attempt to the next, at most: first, and ever
_log = logging.getLogger("loopsafe_db")


class Outage:
    """What a pool knows of a server that refuses all that come: who opens a connection tries in turn, one at a time.

    When one is let in, all go on. Any loop and thread may call it.

    Attributes:
        refused: What was met last, while it is so.
    """

    def __init__(self) -> None:
        self.refused: ConnectError | None = None
        self._next_at, self._longest = -math.inf, _SHORTEST
        self._waiting: set[asyncio.Future[None]] = set()
        self._lock = threading.RLock()  # a finalizer may ask whether it `may_open`

    @property
    def is_full(self) -> bool:
        """Whether the server has no room: then callers wait for what comes back, too."""
        return isinstance(self.refused, TooManyConnections)

    def may_open(self) -> bool:
        """Tell whether who waits for a connection may try to open one: while the server is full, one at a time."""
        return not self.is_full or self._claim() <= 0

    async def turn(self, until: float) -> None:
        """Wait until it is time to try.

        Raises:
            ConnectError: It will not be before `until`.
        """
        while (refused := self.refused) is not None and (pause := self._claim()) > 0:
            if time.monotonic() + pause >= until:
                raise copy.copy(refused) from refused.__cause__
            await self._wait(pause)

    def note(self, error: ConnectError, options: ConnectOptions) -> None:
        """Note what somebody has met: the server refuses all that come, or not."""
        if not error.is_temporary:
            self.end()
            return
        with self._lock:
            is_new, self.refused = self.refused is None, error
            if is_new:
                self._longest = _SHORTEST
                self._plan()
        if is_new:
            why = error.reason.splitlines()[0]
            _log.warning(
                "cannot connect to %s yet, tried again for up to %g s: %s",
                *(options.target, options.timeout, why),
            )

    def end(self) -> None:
        """Note that the server does not refuse all that come."""
        if self.refused is not None:
            with self._lock:
                self.refused, waiting = None, list(self._waiting)
            wake_all(waiting)

    def _claim(self) -> float:
        """Give the seconds until somebody may try; 0 if that is the caller, and the others have to wait."""
        with self._lock:
            left = self._next_at - time.monotonic()
            if left <= 0:
                self._plan()
            return max(left, 0.0)

    def _plan(self) -> None:
        # Many processes may wait for the same server: none of them is to come at the same moment.
        self._next_at = time.monotonic() + random.uniform(self._longest / 2, self._longest)
        self._longest = min(self._longest * 2, _LONGEST)

    async def _wait(self, seconds: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.add(waiter)
        try:
            if self.refused is not None:  # who ends it looks at those that wait afterwards
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await waiter
        finally:
            with self._lock:
                self._waiting.discard(waiter)


async def connect(driver: Driver, options: ConnectOptions, outage: Outage) -> Any:
    """Open a connection; while the server refuses all that come, try again until the time for it is over.

    Raises:
        TooManyConnections: It is full; the caller waits for what comes first.
        ConnectError: What the last attempt has met that had the time.
    """
    until, attempt = time.monotonic() + options.timeout, options
    while True:
        if not outage.is_full:  # else it is the caller's turn already
            await outage.turn(until)
        try:
            raw = await in_whole_steps(driver.connect(attempt))
        except ConnectTimeout:
            if attempt is options or (refused := outage.refused) is None:
                raise
            raise copy.copy(refused) from refused.__cause__  # the rest of the time was short
        except ConnectError as error:
            outage.note(error, options)
            if outage.is_full or not error.is_temporary:
                raise
        else:
            outage.end()
            return raw
        attempt = replace(options, timeout=round(max(until - time.monotonic(), 0.001), 3))
