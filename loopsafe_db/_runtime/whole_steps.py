"""What a fork must not cut in two: steps in which C libraries hold locks of their own.

A forked child has its parent's memory, and of its threads only the one that forked. Python mends its own locks there;
those of OpenSSL, Kerberos and libpq, which let go of the GIL, stay locked for ever if another thread had them: the
child hangs when it opens its first connection. So we open connections under a lock that a fork waits for.
"""

from __future__ import annotations

import os
import threading
import types
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

T = TypeVar("T")
FORK_TIMEOUT = 2.0  # seconds that a fork waits for the step under way


class _Steps:
    """The lock, and whether the fork under way has it. A thread may fork in the middle of a step of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._fork_has_it = False

    def wait_for_step(self) -> None:
        self._fork_has_it = self.lock.acquire(timeout=FORK_TIMEOUT)

    def go_on_in_parent(self) -> None:
        if self._fork_has_it:
            self.lock.release()

    def go_on_in_child(self) -> None:
        if self._fork_has_it:
            self.lock.release()
        else:
            self.lock = threading.RLock()  # the thread that has the other one is not here


_steps = _Steps()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_steps.wait_for_step,
        after_in_parent=_steps.go_on_in_parent,
        after_in_child=_steps.go_on_in_child,
    )


def whole(step: Callable[..., T], *args: Any) -> T:
    """Do something that no fork cuts in two. It must not wait."""
    with _steps.lock:
        return step(*args)


@types.coroutine
def in_whole_steps(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Await a coroutine. What it does between two awaits is not cut in two by a fork."""
    sent, error = None, None
    while True:
        try:
            with _steps.lock:
                awaited = coroutine.send(sent) if error is None else coroutine.throw(error)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            error = None  # else it and this frame would keep each other
        try:
            sent = yield awaited
        except BaseException as thrown:  # noqa: BLE001 (it is the coroutine's)
            error = thrown
