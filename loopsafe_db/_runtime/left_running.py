"""A loop that an exception has left behind as the one that runs, though nobody runs it.

In CPython 3.14 what a signal handler raises, as a time limit does, may come out of ``run_forever`` past its
``finally``: the bytecode by which its ``while`` turns is in no handler's range. From then on that thread runs no loop.
"""

from __future__ import annotations

import asyncio
import sys


def end_left_running() -> None:
    """Close such a loop, if this thread has one: another may run then."""
    loop = asyncio._get_running_loop()  # noqa: SLF001
    if isinstance(loop, asyncio.BaseEventLoop) and not _is_run(loop):
        loop._thread_id = None  # type: ignore[attr-defined]  # noqa: SLF001
        asyncio._set_running_loop(None)  # noqa: SLF001
        sys.set_asyncgen_hooks(None, None)
        loop.close()


def _is_run(loop: asyncio.BaseEventLoop) -> bool:
    """Tell whether a loop is run further up this stack; or in a way that nobody here knows, or has a task at work."""
    run = asyncio.BaseEventLoop.run_forever
    if type(loop).run_forever is not run or asyncio.current_task(loop) is not None:
        return True
    frame = sys._getframe()  # noqa: SLF001
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is run.__code__ and frame.f_locals.get("self") is loop:
            return True
    return False
