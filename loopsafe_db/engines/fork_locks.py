"""SQLAlchemy's locks at a fork: one that another thread has just then would stay locked in the child for ever.

Sessions and queries of the ORM count themselves under such a lock, and mappers are configured under one. A fork waits
for them, as for steps of our own. What it has not got by then is new in the child, where nobody has it.
"""

from __future__ import annotations

import os
import threading
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects.postgresql._psycopg_common import _server_side_id
from sqlalchemy.orm.loading import _new_runid
from sqlalchemy.orm.mapper import _CONFIGURE_MUTEX
from sqlalchemy.orm.session import _new_sessionid

from loopsafe_db._runtime.whole_steps import FORK_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable


def _lock_of(counter: Callable[[], int]) -> Any:
    """Give the lock of a ``sqlalchemy.util.counter()``, which only its closure knows."""
    (lock,) = (
        cell.cell_contents
        for cell in counter.__closure__ or ()
        if hasattr(cell.cell_contents, "acquire")
    )
    return lock


_LOCKS: list[Any] = [
    _CONFIGURE_MUTEX,
    *map(_lock_of, (_new_sessionid, _new_runid, _server_side_id)),
]


class _Fork(threading.local):
    """Of the thread that forks: the locks that it has, and those that it has not got."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.missed: list[Any] = []

    def take(self) -> None:
        until = time.monotonic() + FORK_TIMEOUT
        for lock in _LOCKS:
            has_it = lock.acquire(timeout=max(0.0, until - time.monotonic()))
            (self.taken if has_it else self.missed).append(lock)

    def go_on_in_parent(self) -> None:
        while self.taken:
            self.taken.pop().release()
        self.missed.clear()

    def go_on_in_child(self) -> None:
        for lock in self.missed:
            lock._at_fork_reinit()  # noqa: SLF001
        self.go_on_in_parent()


@cache
def guard_locks() -> None:
    """Have each fork from now on wait for SQLAlchemy's locks."""
    fork = _Fork()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=fork.take,
            after_in_parent=fork.go_on_in_parent,
            after_in_child=fork.go_on_in_child,
        )
