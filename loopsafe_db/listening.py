"""What is notified on a channel of PostgreSQL's, over a connection that is opened again when it is lost."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loopsafe_db._runtime.generators import Inner
from loopsafe_db.errors import ConnectError, ConnectionLost
from loopsafe_db.failures import drivers_own

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

_log = logging.getLogger("loopsafe_db")
_LONGEST = 5.0  # seconds between two attempts to connect again


@dataclass(frozen=True, slots=True)
class Notification:
    """What was sent by ``NOTIFY channel, 'payload'``.

    Attributes:
        channel: Where.
        payload: The text; "" if there is none.
        sender: The server's process of who has sent it.
    """

    channel: str
    payload: str
    sender: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Comes when it is listened again after the connection was lost: what was sent meanwhile is lost, too.

    Attributes:
        channel: Where.
        reason: What ended the connection.
    """

    channel: str
    reason: str


async def listen(
    make_handle: Callable[[], Any], channel: str
) -> AsyncGenerator[Notification | Gap, None]:
    """Give what comes, and a `Gap` where something may be missing.

    Args:
        make_handle: Makes a handle that has one connection.
        channel: The name.
    """
    reason, pause = "", 0.0
    while True:
        heard = False
        try:
            async with Inner(_listen_once(make_handle(), channel)) as told:
                async for one in told:
                    if one is not None:
                        yield Notification(channel, one[1], one[0])
                    elif reason:
                        yield Gap(channel, reason)
                    heard, pause = True, 0.0
            reason = "the server has ended it"
        except (ConnectError, ConnectionLost) as error:
            if not (heard or reason):
                raise  # it has never been listened
            reason = str(drivers_own(error)).strip().splitlines()[0]
        _log.warning("listening on %r was interrupted, and begins again: %s", channel, reason)
        await asyncio.sleep(random.uniform(0, pause))
        pause = min(2 * pause + 0.1, _LONGEST)


async def _listen_once(handle: Any, channel: str) -> AsyncGenerator[tuple[int, str] | None, None]:
    """Give what comes over one connection; first None, when it listens."""
    async with (
        handle,
        handle.connection() as connection,
        Inner(connection.notifications(channel)) as told,
    ):
        async for one in told:
            yield one
