"""How the end of a loop, or of the process, is noticed.

1. ``loop.shutdown_asyncgens()``, which ``asyncio.run``, ``Runner``, uvloop and anyio all await, closes an
  async generator that we left open: the loop still runs, so everything is closed politely.
2. A bare ``loop.close()`` awaits nothing, but it drops its timers: an object that only a timer holds is
  deallocated there and then, and says so. Nothing can be awaited any more.
3. The sweep (`registry.sweep`) finds loops that were closed in some other way.
4. ``atexit`` for loops that nobody ever closed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Awaitable, Callable

_FAR_AWAY = 10.0**9  # seconds: a timer that never fires, thirty years


def watch_shutdown(on_shutdown: Callable[[], Awaitable[None]]) -> object:
    """Await `on_shutdown` when the running loop shuts down; keep what it returns until then."""
    generator = _left_open(on_shutdown)
    # The first step registers the generator with the running loop; it reaches its `yield`
    # without suspending, so it can be driven by hand.
    with suppress(StopIteration):
        generator.__anext__().send(None)
    return generator


def watch_close(loop: asyncio.AbstractEventLoop, on_closed: Callable[[], None]) -> None:
    """Call `on_closed` once `loop` is closed."""
    # The handle is not kept: nobody but the loop may hold the canary.
    loop.call_later(_FAR_AWAY, _never, _Canary(on_closed))


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


def _never(canary: _Canary) -> None:
    """Be a timer's callback; a clock that jumps thirty years ends the watch early, no more."""
