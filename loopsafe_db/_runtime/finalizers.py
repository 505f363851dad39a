"""How the end of a loop, or of the process, is noticed.

1. ``loop.shutdown_asyncgens()``, which ``asyncio.run``, ``Runner``, uvloop and anyio all await, closes an
  async generator that we left open: the loop still runs, so everything is closed politely.
2. A bare ``loop.close()`` awaits nothing, but it drops its timers: an object that only a timer holds is
  deallocated there and then, and says so. Nothing can be awaited any more.
3. Qt's loops know of no async generators, and keep their timers when they are closed: there, their own methods say it.
4. The sweep (`registry.sweep`) finds loops that were closed in some other way.
5. ``atexit`` for loops that nobody ever closed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from loopsafe_db._runtime.contexts import in_no_context

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

_PERIOD = 10.0**6  # seconds, eleven days: Qt's loops count milliseconds in 32 bits


def watch_shutdown(on_shutdown: Callable[[], Awaitable[None]]) -> None:
    """Await `on_shutdown` when the running loop shuts down."""
    generator = _left_open(on_shutdown)
    # Only the loop keeps it, for it refers to the loop, which may be dropped.
    in_no_context(asyncio.get_running_loop().call_later, _PERIOD, _go_on, generator)
    if sys.get_asyncgen_hooks().firstiter is None:
        _close_first(asyncio.get_running_loop(), generator)
    # The first step registers the generator with the running loop; it reaches its `yield`
    # without suspending, so it can be driven by hand.
    with suppress(StopIteration):
        generator.__anext__().send(None)


def watch_close(loop: asyncio.AbstractEventLoop, on_closed: Callable[[], None]) -> None:
    """Call `on_closed` once `loop` is closed."""
    # The handle is not kept: nobody but the loop may hold the canary.
    in_no_context(loop.call_later, _PERIOD, _go_on, _Canary(on_closed))
    if not _drops_timers(loop):
        _tell_at_close(loop, on_closed)


def _drops_timers(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether a loop has asyncio's own timers, or uvloop's."""
    ours = type(loop).call_later is asyncio.BaseEventLoop.call_later
    return ours or hasattr(loop, "_get_backend_id")


def _close_first(inner: Any, generator: AsyncGenerator[None, None]) -> None:
    """Have a loop that knows of no async generators close this one as it shuts down."""
    shutdown = inner.shutdown_asyncgens

    async def close_and_shutdown() -> None:
        await generator.aclose()
        await shutdown()

    inner.shutdown_asyncgens = close_and_shutdown


def _tell_at_close(inner: Any, on_closed: Callable[[], None]) -> None:
    """Have a loop that keeps its timers tell when it is closed."""
    close, pid = inner.close, os.getpid()

    def close_and_tell() -> None:
        close()
        if os.getpid() == pid:
            on_closed()

    with suppress(AttributeError):  # then the sweep finds it
        inner.close = close_and_tell


async def _left_open(on_shutdown: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == pid:  # a forked child that runs down its parent's loop ends nothing
            await on_shutdown()


class _Canary:
    """Held by a timer alone; dies when the loop drops its timers, which is when it is closed."""

    __slots__ = ("_on_closed", "_pid")

    def __init__(self, on_closed: Callable[[], None]) -> None:
        self._on_closed, self._pid = on_closed, os.getpid()

    def __del__(self) -> None:
        if os.getpid() == self._pid:
            self._on_closed()


def _go_on(kept: object) -> None:
    """Be a timer's callback: wait as long again."""
    in_no_context(asyncio.get_running_loop().call_later, _PERIOD, _go_on, kept)
