"""A loop in a thread of its own ends what it runs, and is closed, whoever stops it how often."""

from __future__ import annotations

import asyncio
import contextlib

from loopsafe_db._runtime.background import BackgroundLoop

IN_TIME = 20  # seconds, of a machine that is busy


async def test_who_stops_it_twice_cuts_off_nothing_of_what_ends() -> None:
    background, ended = BackgroundLoop(), False

    async def end_slowly() -> None:
        nonlocal ended
        try:
            await asyncio.sleep(IN_TIME)
        finally:
            background.stop()
            await asyncio.sleep(0.01)
            ended = True

    work = asyncio.ensure_future(background.run(end_slowly()))
    await asyncio.sleep(0.05)
    background.stop()
    async with asyncio.timeout(IN_TIME):
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await work
        while not background.loop.is_closed():  # noqa: ASYNC110 (its thread closes it)
            await asyncio.sleep(0.01)
    assert ended
