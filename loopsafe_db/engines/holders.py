"""Who has a connection, since when and where, told only when somebody asks."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy
from greenlet import getcurrent

from loopsafe_db.engines.stats import Holder

if TYPE_CHECKING:
    from types import FrameType

_LIBRARIES = tuple(
    os.path.dirname(path) + os.sep
    for path in (os.path.dirname(__file__), asyncio.__file__, sqlalchemy.__file__)
)
_drivers: tuple[str, ...] = ()  # the folders of their packages


def leave_out(package: str) -> None:
    """Take no line of a driver's package for the user's."""
    global _drivers
    path = getattr(sys.modules.get(package), "__file__", None)
    if path is not None:
        _drivers = tuple({*_drivers, os.path.dirname(path) + os.sep})
        _is_of_library.cache_clear()


def describe(task: asyncio.Task[Any] | None, since: float, taken_at: str) -> str:
    """Say who has a connection.

    Args:
        task: The asyncio task; None for a callback.
        since: On the monotonic clock, in seconds.
        taken_at: File and line where it was taken, or "": then the task's own place tells.
    """
    return str(holder_of(task, since, taken_at))


def holder_of(
    task: asyncio.Task[Any] | None,
    since: float,
    taken_at: str,
    *,
    nobody: str = "a callback",
    nowhere: str = "an unknown place",
) -> Holder:
    """Tell the same in parts; `nobody` is said without a task, `nowhere` without a place."""
    name = task.get_name() if task is not None else nobody
    place = taken_at or waits_at(task) or nowhere
    return Holder(name, time.monotonic() - since, place)


def caller() -> str:
    """Name the file and line outside this library that called it."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    greenlet = None
    while frame is not None:
        while frame is not None:
            if not _is_inside(frame):
                return f"{frame.f_code.co_filename}:{frame.f_lineno}"
            frame = frame.f_back
        # SQLAlchemy's greenlet was started by another
        greenlet = (getcurrent() if greenlet is None else greenlet).parent
        frame = None if greenlet is None else greenlet.gr_frame
    return "an unknown place"


def waits_at(task: asyncio.Task[Any] | None) -> str:
    """Name the innermost line outside this library and its drivers that a suspended task waits at."""
    coroutine: Any = task.get_coro() if task is not None else None
    found = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and not _is_inside(frame):
            found = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None)
    return found


def _is_inside(frame: FrameType) -> bool:
    """Tell whether a line is of a library; what SQLAlchemy makes at run time has its module, but no file."""
    filename = frame.f_code.co_filename
    if filename.startswith("<"):
        return str(frame.f_globals.get("__name__")).startswith("sqlalchemy.")
    return _is_of_library(filename)


@lru_cache(1024)
def _is_of_library(filename: str) -> bool:
    return filename.startswith((*_LIBRARIES, *_drivers)) or filename.endswith("contextlib.py")
