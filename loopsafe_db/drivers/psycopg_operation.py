"""One operation of psycopg's, run by the loop itself as its socket allows; its task sleeps until it is done.

psycopg's own ``wait_async`` wakes the task for each piece of an answer. An exception out of a signal handler, as a time
limit raises it, may strike there in the loop, which logs it and goes on: the task is never woken. Here it ends the
operation.
"""

from __future__ import annotations

import asyncio
import select
import time
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.waiting import READY_R, READY_W, WAIT_R, WAIT_W

if TYPE_CHECKING:
    from collections.abc import Generator

_AT_ONCE = (
    0.01  # seconds for which it is sent without a turn of the loop, while the network takes all
)


class Operation:
    """A generator of psycopg's, which says what it waits for, and is told what is ready."""

    __slots__ = ("_error", "_fd", "_gen", "_is_over", "_loop", "_over", "_value", "_watched")

    def __init__(self, gen: Generator[Any, Any, Any], fd: int) -> None:
        self._gen, self._fd = gen, fd
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] | None = None
        self._is_over, self._watched = False, 0
        self._value: Any = None
        self._error: BaseException | None = None

    async def run(self, ready: int | None = None) -> Any:
        """Go on until it is done, and give what it gives.

        Args:
            ready: What it is told first; None begins it.
        """
        try:
            self._go_on(ready)
            if not self._is_over:
                self._over = self._loop.create_future()
                await self._over
        finally:
            self._watch(0)
        if self._error is None:
            return self._value
        error, self._error = self._error, None
        try:
            if isinstance(error, OSError) and error.errno:  # a time limit's TimeoutError has none
                raise psycopg.OperationalError("connection socket closed") from error
            raise error
        finally:
            del error  # else it and this frame would keep each other

    def _go_on(self, ready: int | None) -> None:
        try:
            self._watch(0)
            wanted = self._gen.send(ready)
            until = time.monotonic() + _AT_ONCE
            while (
                wanted & WAIT_W and time.monotonic() < until and (now := _ready(self._fd, wanted))
            ):
                wanted = self._gen.send(now)
            self._watch(wanted)
        except StopIteration as done:
            self._value = done.value
        except BaseException as error:  # noqa: BLE001 (its task is to have it, not the loop)
            self._error = error
        else:
            return
        self._is_over = True
        if self._over is None:
            return
        try:
            self._over.done()  # where a call returns, a signal strikes that has come while psycopg's C worked
        except BaseException as error:  # noqa: BLE001
            self._error = error
        try:  # noqa: SIM105 (as few calls as can be: each is one more place for a signal)
            self._over.set_result(None)
        except asyncio.InvalidStateError:  # its task was cancelled
            pass

    def _watch(self, wanted: int) -> None:
        """Have the loop watch for this alone. It watches nothing while psycopg works, which may close the socket."""
        if self._watched & WAIT_R:
            self._loop.remove_reader(self._fd)
        if self._watched & WAIT_W:
            self._loop.remove_writer(self._fd)
        self._watched = wanted
        if wanted & WAIT_R:
            self._loop.add_reader(self._fd, self._go_on, READY_R)
        if wanted & WAIT_W:
            self._loop.add_writer(self._fd, self._go_on, READY_W)


def _ready(fd: int, wanted: int) -> int:
    """Tell what of it is ready, without waiting."""
    poll = select.poll()
    reads = select.POLLIN if wanted & WAIT_R else 0
    writes = select.POLLOUT if wanted & WAIT_W else 0
    poll.register(fd, reads | writes)
    for _, event in poll.poll(0):
        has_failed = event & ~(reads | writes)
        return (READY_R if has_failed or event & reads else 0) | (
            READY_W if has_failed or event & writes else 0
        )
    return 0
