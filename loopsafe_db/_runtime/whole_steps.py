"""What a fork must not cut in two: steps in which C libraries hold locks of their own.

A forked child has its parent's memory, and of its threads only the one that forked. Python mends its own locks there;
those of OpenSSL, Kerberos and libpq, which let go of the GIL, stay locked for ever if another thread had them: the
child hangs when it opens its first connection. So we open connections under a lock that a fork waits for.
"""

from __future__ import annotations

import os
import threading
import time
import types
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

T = TypeVar("T")
FORK_TIMEOUT = 2.0  # seconds that a fork waits for the step under way


class _Fork(threading.local):
    """Of the thread that forks: the locks that it has, and those that it has not got. It may have had some before."""

    def __init__(self, *locks: Any) -> None:
        self.locks = locks
        self.taken: list[Any] = []
        self.missed: list[Any] = []

    def wait_for_step(self) -> None:
        until = time.monotonic() + FORK_TIMEOUT
        for lock in self.locks:
            has_it = lock.acquire(timeout=max(0.0, until - time.monotonic()))
            (self.taken if has_it else self.missed).append(lock)

    def go_on_in_parent(self) -> None:
        while self.taken:
            self.taken.pop().release()
        self.missed.clear()

    def go_on_in_child(self) -> None:
        for lock in self.missed:  # the thread that has it is not here
            lock._at_fork_reinit()  # noqa: SLF001
        self.go_on_in_parent()


def wait_at_forks(*locks: Any) -> None:
    """Have each fork from now on wait for locks, `FORK_TIMEOUT` together; what it has not got is new in the child."""
    fork = _Fork(*locks)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=fork.wait_for_step,
            after_in_parent=fork.go_on_in_parent,
            after_in_child=fork.go_on_in_child,
        )


_lock = threading.RLock()
wait_at_forks(_lock)


def whole(step: Callable[..., T], *args: Any) -> T:
    """Do something that no fork cuts in two. It must not wait."""
    with _lock:
        return step(*args)


@types.coroutine
def in_whole_steps(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Await a coroutine. What it does between two awaits is not cut in two by a fork."""
    sent, error = None, None
    while True:
        try:
            with _lock:
                awaited = coroutine.send(sent) if error is None else coroutine.throw(error)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            error = None  # else it and this frame would keep each other
        try:
            sent = yield awaited
        except BaseException as thrown:  # noqa: BLE001 (it is the coroutine's)
            error = thrown
