"""LoopLag: how long an event loop was busy with something else while somebody waited for an answer."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

PERIOD = 0.02  # seconds from one beat to the next
_TOLERANCE = 0.005  # seconds that a beat may be late in a loop that has time


class LoopLag:
    """Beats in one loop while somebody watches, and adds up how late the beats are. One thread uses it: its loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop_ref = weakref.ref(loop)
        self._watchers = 0
        self._late = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, loop: asyncio.AbstractEventLoop) -> float:
        """Begin to watch; give what `leave` is to be called with."""
        self._watchers += 1
        if self._watchers == 1:
            self._arm(loop)
        return self._so_far(loop)

    def leave(self, loop: asyncio.AbstractEventLoop, entered: float) -> float:
        """Watch no more; give the seconds that the loop was late since."""
        self._watchers -= 1
        lag = self._so_far(loop) - entered
        if not self._watchers and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return max(lag, 0.0)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + PERIOD
        self._timer = loop.call_later(PERIOD, self._beat)

    def _beat(self) -> None:
        loop = self._loop_ref()
        if loop is not None:
            self._late = self._so_far(loop)
            self._arm(loop)

    def _so_far(self, loop: asyncio.AbstractEventLoop) -> float:
        """Give what is late in all, with the beat that is due and has not come."""
        late = loop.time() - self._due
        return self._late + late if late > _TOLERANCE else self._late


_lags: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopLag] = weakref.WeakKeyDictionary()


def lag_of(loop: asyncio.AbstractEventLoop) -> LoopLag:
    """Give the one of a loop."""
    lag = _lags.get(loop)
    if lag is None:
        lag = _lags[loop] = LoopLag(loop)
    return lag
