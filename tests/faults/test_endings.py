"""Closing what a silent server never closes: all at once, in bounded time, and nothing of it stays open."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db import Database, Timeouts
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

    assert (database.stats().idle, database.stats().in_use) == (0, 0)
    await asyncio.to_thread(until_all_have_ended, wire)


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
