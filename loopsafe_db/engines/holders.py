"""Who has a connection, since when and where, told only when somebody asks."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

import sqlalchemy

_LIBRARIES = tuple(
    os.path.dirname(path) + os.sep
    for path in (os.path.dirname(__file__), asyncio.__file__, sqlalchemy.__file__)
)


def describe(task: asyncio.Task[Any] | None, since: float, taken_at: str) -> str:
    """Say who has a connection.

    Args:
        task: The asyncio task; None for a callback.
        since: On the monotonic clock, in seconds.
        taken_at: File and line where it was taken, or "": then the task's own place tells.
    """
    name = task.get_name() if task is not None else "a callback"
    place = taken_at or waits_at(task) or "an unknown place"
    return f"{name} for {time.monotonic() - since:.1f} s, {place}"


def caller() -> str:
    """Name the file and line outside this library that called it."""
    frame = sys._getframe(1)  # noqa: SLF001
    while frame.f_back is not None and _is_inside(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def waits_at(task: asyncio.Task[Any] | None) -> str:
    """Name the innermost line outside this library that a suspended task waits at."""
    coroutine: Any = task.get_coro() if task is not None else None
    found = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and not _is_inside(frame.f_code.co_filename):
            found = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None)
    return found


def _is_inside(filename: str) -> bool:
    return filename.startswith(_LIBRARIES) or filename.endswith("contextlib.py")
