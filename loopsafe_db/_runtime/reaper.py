"""Reaper: a thread that gives back what a process without a running loop no longer needs.

There is none while a loop can do it by a timer, none before a loop has ended, and none during a fork: it is parked
first, so that a child finds no lock that nobody will open, and Python 3.12 has nothing to warn of. The parent starts
another afterwards, as soon as it may.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PARK_TIMEOUT = 2.0  # seconds that a fork waits for the work under way


class Reaper:
    """Calls its work again and again, until there is none. Should live as long as its process.

    The thread is a daemon and ends by itself; `wake` starts another.
    """

    def __init__(self, work: Callable[[], float | None]) -> None:
        """Say what to do.

        Args:
            work: Called in the thread; gives the seconds until it wants to be called again, or None.
        """
        self._work = work
        self._thread: threading.Thread | None = None
        self._parked = threading.Event()
        self._starting = threading.Lock()

    def wake(self) -> None:
        """See to it that the thread runs. Cheap where it does; a finalizer may call it, so it waits for nobody."""
        # While the interpreter ends, no thread starts any more: start() would wait for it for ever. What is left of
        # loops that nobody closed is collected that late.
        if sys.is_finalizing() or self.is_running or not self._starting.acquire(blocking=False):
            return
        try:
            if not self.is_running:
                self._parked = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._parked,), name="loopsafe_db reaper", daemon=True
                )
                self._thread.start()
                _running.add(weakref.ref(self, _running.discard))
        finally:
            self._starting.release()

    def stop(self) -> None:
        """Have the thread end, as it has nothing to do: it would keep what it works for. Waits for nobody."""
        self._parked.set()

    def go_on(self) -> None:
        """See to it that the thread runs if a fork has parked it."""
        if self._parked.is_set():
            self.wake()

    def park(self) -> None:
        """End the thread; the next `wake` starts another."""
        self._parked.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(PARK_TIMEOUT)
        _running.discard(weakref.ref(self))

    @property
    def is_running(self) -> bool:
        """Whether there is a thread that goes on."""
        return self.is_alive and not self._parked.is_set()

    @property
    def is_alive(self) -> bool:
        """Whether there is a thread, if only to its end."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self, parked: threading.Event) -> None:
        pause = self._work()
        while pause is not None and not parked.wait(pause):
            pause = self._work()


# Weak, for what has ended keeps nobody's pool; and no WeakSet, for others add to it while it is copied.
_running: set[weakref.ref[Reaper]] = set()
_parked: list[Reaper] = []  # for the length of a fork
# CPython 3.12 and later count the threads after their hooks: their parents go on with the next use, or `stats()`.
_GOES_ON = sys.version_info < (3, 12)


def _before_fork() -> None:
    for reaper in [reaper for ref in list(_running) if (reaper := ref()) is not None]:
        if _GOES_ON and reaper.is_running:
            _parked.append(reaper)
        reaper.park()


def _after_fork() -> None:
    """Go on in the parent, which may never use a connection again."""
    while _parked:
        _parked.pop().wake()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_parked.clear
    )
