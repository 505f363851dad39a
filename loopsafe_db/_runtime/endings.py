"""Awaiting what must not stop half-way, whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def to_the_end(operation: Coroutine[Any, Any, T], patience: float) -> T:
    """Await an operation to its end; who is cancelled meanwhile learns of it then.

    Args:
        operation: Runs in a task of its own, which is cancelled if it takes longer.
        patience: Seconds that the operation has after the caller was cancelled.
    """
    working = asyncio.create_task(operation)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await outlast(working, patience)
        if not working.cancel() and not working.cancelled():
            working.exception()  # that it failed matters less than the cancellation
        raise


async def outlast(task: asyncio.Task[Any], seconds: float) -> None:
    """Wait until a task is done, or the time over, whatever cancels the caller.

    Once is not enough: AnyIO cancels what is in a cancelled scope again and again.
    """
    give_up = time.monotonic() + seconds
    while not task.done() and (left := give_up - time.monotonic()) > 0:
        try:
            await asyncio.wait([task], timeout=left)
        except asyncio.CancelledError:
            continue  # the caller knows already
