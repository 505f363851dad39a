"""Awaiting what must not stop half-way, whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from loopsafe_db._runtime.contexts import in_no_context
from loopsafe_db._runtime.transport import nowhere

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
ENDING_TIMEOUT = 2.0  # seconds for a statement, a transaction or a connection to end


class Alarm:
    """Gives up what has taken more than `ENDING_TIMEOUT` to end.

    What is set and cleared again and again in one loop has one timer there: a timer for each costs more than the rest
    of what ends.
    """

    __slots__ = ("__weakref__", "_give_up", "_loop", "_since")
    _give_up: Callable[[], None] | None  # while it is set
    _loop: Callable[[], object]  # the one with the timer

    def __init__(self) -> None:
        self._give_up, self._loop, self._since = None, nowhere, 0.0

    def set(self, loop: asyncio.AbstractEventLoop, give_up: Callable[[], None]) -> None:
        """Have this called in time, in the running loop `loop`, unless `clear` is called before."""
        self._give_up, self._since = give_up, time.monotonic()
        if self._loop() is not loop:
            self._loop = weakref.ref(loop)
            in_no_context(loop.call_later, ENDING_TIMEOUT, _look_at, weakref.ref(self))

    def clear(self) -> None:
        """Say that it has ended."""
        self._give_up = None

    def look(self) -> None:
        """Give up if it is time; else look again then, as long as it is set."""
        loop = asyncio.get_running_loop()
        if self._loop() is not loop:
            return  # what is to end is in another loop by now
        left = self._since + ENDING_TIMEOUT - time.monotonic()
        if self._give_up is not None and left > 0:
            in_no_context(loop.call_later, left, _look_at, weakref.ref(self))
            return
        give_up, self._give_up, self._loop = self._give_up, None, nowhere
        if give_up is not None:
            give_up()


def _look_at(ref: Callable[[], Alarm | None]) -> None:
    alarm = ref()
    if alarm is not None:
        alarm.look()


async def to_the_end(
    operation: Awaitable[T], patience: float, give_up: Callable[[], None] | None = None
) -> T:
    """Await an operation to its end; who is cancelled meanwhile learns of it then.

    Also at the end of `asyncio.run`, which cancels all tasks that asyncio knows: so it does not know this one.

    Args:
        operation: Runs in a task of its own, which is cancelled if it takes longer.
        patience: Seconds that the operation has after the caller was cancelled.
        give_up: Called if the operation came to no end: it took too long, or was cancelled itself. Without it, what
            takes too long is cancelled, and awaited as long again.
    """
    working = asyncio.ensure_future(operation)
    asyncio.tasks._unregister_task(working)  # noqa: SLF001 (documented for those who make tasks of their own)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await outlast(working, patience)
        if not working.cancel() and not working.cancelled():
            working.exception()  # that it failed matters less than the cancellation
        elif give_up is not None:
            give_up()
        else:
            await outlast(working, patience)
        raise


async def or_give_up(
    operation: Callable[[], Awaitable[object]], seconds: float, give_up: Callable[[], None]
) -> None:
    """Do what ends something, whoever is cancelled; or give up what it was about.

    Args:
        operation: Runs in a task of its own. Nobody hears of its error.
        seconds: That it may take.
        give_up: Called if it takes longer, or fails; perhaps twice.
    """

    async def work() -> None:
        # First, and then it is cancelled: a driver would use that to stop politely, which takes as long again.
        alarm = asyncio.get_running_loop().call_later(seconds, give_up)
        try:
            async with asyncio.timeout(seconds):
                await operation()
        except BaseException as error:
            give_up()
            if not isinstance(error, Exception):
                raise
        finally:
            alarm.cancel()

    await to_the_end(work(), seconds, give_up)


async def outlast(task: asyncio.Task[Any], seconds: float) -> None:
    """Wait until a task is done, or the time over, whatever cancels the caller.

    Once is not enough: AnyIO cancels what is in a cancelled scope again and again.
    """
    give_up = time.monotonic() + seconds
    while not task.done() and (left := give_up - time.monotonic()) > 0:
        try:
            await asyncio.wait([task], timeout=left)
        except asyncio.CancelledError:
            continue  # the caller knows already
