"""A step that holds a lock which no fork mends, as those of OpenSSL and Kerberos are, and a fork in its middle."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class StagedStep:
    """Lasts until another thread has forked, or waits for it with that."""

    def __init__(self) -> None:
        self._locked = threading.Lock()
        self._began, self._forked = threading.Event(), threading.Event()
        self._forking = threading.get_ident()

    def take(self) -> None:
        """Be the step."""
        with self._locked:
            self._began.set()
            while not (self._forked.is_set() or self._fork_waits()):
                time.sleep(0.001)

    def is_whole_in_a_child(self, work: Callable[[], object]) -> bool:
        """Do what takes the step in another thread, fork meanwhile, and look at the lock in the child."""
        working = threading.Thread(target=work)
        working.start()
        assert self._began.wait(10)
        child = os.fork()
        if child == 0:
            os._exit(not self._locked.acquire(blocking=False))
        self._forked.set()
        working.join()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def _fork_waits(self) -> bool:
        frame = sys._current_frames()[self._forking]  # noqa: SLF001
        return frame.f_code.co_name == "wait_for_step"
