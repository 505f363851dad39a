"""Closing what a silent server never closes: all at once, in bounded time, and nothing of it stays open."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db import Database, Timeouts
from loopsafe_db.errors import ConnectionLost
from tests.faults.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY = 15
IN_TIME = 20  # seconds: less than MANY times the 2 s that one may take


@pytest.fixture
def wire(postgres_url: str) -> Iterator[Wire]:
    """A way to a server that falls silent as soon as somebody says goodbye."""
    with Wire(postgres_url) as wire:
        wire.hush = lambda data: data == b"X\0\0\0\4"
        yield wire


@pytest.fixture(params=["asyncpg", "psycopg"])
def database(request: pytest.FixtureRequest, wire: Wire) -> Database:
    url = wire.url.set(drivername=f"postgresql+{request.param}")
    return Database(url, max_size=MANY, timeouts=Timeouts(acquire=10))


async def use_all(database: Database) -> None:
    """Open as many connections as there may be."""
    queries = (database.fetch_val("SELECT CAST(pg_sleep(0.1) AS text)") for _ in range(MANY))
    await asyncio.gather(*queries)


def until_all_have_ended(wire: Wire) -> None:
    end = time.monotonic() + IN_TIME
    while wire.open and time.monotonic() < end:
        time.sleep(0.01)
    assert wire.open == 0


async def test_all_connections_are_closed_at_once(wire: Wire, database: Database) -> None:
    await use_all(database)

    async with asyncio.timeout(IN_TIME):
        await database.disconnect()

    stats = database.stats()
    assert (stats.idle, stats.in_use) == (0, 0)
    assert (stats.closed, stats.terminated) == (MANY, 0)  # nothing is to come after a farewell
    await asyncio.to_thread(until_all_have_ended, wire)


async def test_who_has_swallowed_a_cancellation_is_told_why_the_connection_is_gone(
    wire: Wire, database: Database
) -> None:
    async def swallow() -> None:
        async with database.transaction():
            with suppress(asyncio.CancelledError):
                async with database.transaction():
                    await database.fetch_val("SELECT 1")
            await database.fetch_val("SELECT 2")

    asked = threading.Event()

    def hush(data: bytes) -> bool:
        if b"RELEASE" not in data:
            return False
        asked.set()
        return True

    wire.hush = hush
    swallowing = asyncio.ensure_future(swallow())
    await asyncio.to_thread(asked.wait, IN_TIME)
    swallowing.cancel()
    with pytest.raises(ConnectionLost, match=r"LDB406.*swallowed.*Let CancelledError pass") as told:
        await swallowing
    assert told.value.retryable
    assert await database.fetch_val("SELECT 3") == 3
    await database.disconnect()


async def test_a_disconnect_that_is_cancelled_half_way_leaves_nothing_open(
    wire: Wire, database: Database
) -> None:
    await use_all(database)
    opened = database.stats().opened

    closing = asyncio.ensure_future(database.disconnect())
    for _ in range(3):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])

    await asyncio.to_thread(until_all_have_ended, wire)
    stats = database.stats()
    assert (stats.idle, stats.in_use, stats.closed + stats.terminated) == (0, 0, opened)
    async with asyncio.timeout(IN_TIME):
        await use_all(database)  # all places are there
        await database.disconnect()


async def test_no_more_are_open_than_may_be_while_some_are_closed(
    wire: Wire, database: Database
) -> None:
    await use_all(database)

    async with asyncio.timeout(IN_TIME):
        await asyncio.gather(database.disconnect(), use_all(database))
        await database.disconnect()

    assert wire.most_open <= MANY


@pytest.mark.parametrize("scope", ["process", "loop"])
def test_loops_that_end_leave_nothing_open(wire: Wire, database: Database, scope: Any) -> None:
    one = Database(database.url, max_size=MANY, scope=scope, timeouts=Timeouts(acquire=10))
    for _ in range(4):
        asyncio.run(use_all(one))
        if scope == "loop":
            until_all_have_ended(wire)

    assert wire.most_open <= MANY
