"""A loop in a thread of its own ends what it runs, and is closed, whoever stops it how often."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from loopsafe_db._runtime.background import BackgroundLoop
from loopsafe_db.drivers.adapted import ConnectionLoop

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


async def test_who_comes_while_it_ends_or_later_is_told_so() -> None:
    background, ending = BackgroundLoop(), threading.Event()

    async def end_slowly() -> None:
        try:
            await asyncio.sleep(IN_TIME)
        finally:
            ending.set()
            await asyncio.sleep(0.05)

    work = asyncio.ensure_future(background.run_beside(end_slowly()))
    await asyncio.sleep(0.05)
    background.stop()
    await asyncio.to_thread(ending.wait, IN_TIME)
    async with asyncio.timeout(IN_TIME):
        with pytest.raises(ConnectionError):
            await background.run(asyncio.sleep(2 * IN_TIME))
        with contextlib.suppress(ConnectionError):
            await work
        while not background.loop.is_closed():  # noqa: ASYNC110 (its thread closes it)
            await asyncio.sleep(0.01)
        with pytest.raises(ConnectionError):
            await background.run(asyncio.sleep(0))


async def test_who_is_refused_is_told_why_and_not_that_the_loop_is_closed() -> None:
    async def connect() -> None:
        raise ConnectionRefusedError

    for _ in range(50):  # in a third of them its thread was faster
        with pytest.raises(ConnectionRefusedError):
            await ConnectionLoop(connect).open()
