"""`min_connections`: `connect` opens them side by side, and they are kept until `disconnect`."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, PoolLimits
from loopsafe_db.errors import ConnectError
from tests.faults.test_starting import STARTING, Refusing, before

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LEAST, IDLE = 3, 0.05
LIMITS = PoolLimits(LEAST + 2, idle_timeout=IDLE, min_connections=LEAST)


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, postgres_url: str) -> sa.URL:
    return sa.make_url(postgres_url).set(drivername=f"postgresql+{request.param}")


@pytest.fixture
async def database(url: sa.URL) -> AsyncIterator[Database]:
    async with Database(url, pool=LIMITS, scope="process") as database:
        yield database


class OneThenAll(Refusing):
    """Lets the first in, and the others only when all of them have come."""

    def __init__(self, url: sa.URL) -> None:
        super().__init__(url, STARTING, 0)
        self.others = asyncio.Barrier(LEAST - 1)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.came > 1:
            await self.others.wait()
        await super()._forward(reader, writer)


async def count(database: Database, least: int) -> None:
    """Wait until so many are idle, and no other is in use."""
    async with asyncio.timeout(20):
        while (database.stats().idle, database.stats().in_use) != (least, 0):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def use_at_once(database: Database, number: int) -> None:
    barrier = asyncio.Barrier(number)

    async def use() -> None:
        async with database.connection():
            await barrier.wait()

    await asyncio.gather(*(use() for _ in range(number)))


async def test_they_are_opened_side_by_side(url: sa.URL) -> None:
    server = OneThenAll(url)
    async with before(url, server, pool=PoolLimits(LEAST, min_connections=LEAST)) as database:
        await database.connect()
        assert database.stats().idle == LEAST
        await database.connect()  # there is nothing left to open
        assert server.came == LEAST


async def test_one_that_cannot_be_opened_is_an_error(url: sa.URL) -> None:
    class LetsInOne(Refusing):
        async def __call__(self, reader: Any, writer: Any) -> None:
            self.sqlstate, self.times = "28P01", 10 if self.came else 0
            await super().__call__(reader, writer)

    async with before(url, LetsInOne(url, "28P01", 0), pool=LIMITS) as database:
        with pytest.raises(ConnectError):
            await database.connect()
        assert (database.stats().idle, database.stats().in_use) == (1, 0)


async def test_one_that_ends_in_use_is_replaced_and_all_that_expire(database: Database) -> None:
    async with database.connection() as connection:
        await connection.raw_connection.close()
    await count(database, LEAST)
    assert database.stats().opened == LEAST + 1
    database.expire_connections()
    await count(database, LEAST)
    assert database.stats().opened == LEAST + 1 + LEAST


async def test_they_stay_when_nobody_uses_them_and_others_are_closed(database: Database) -> None:
    await use_at_once(database, LEAST + 2)
    await count(database, LEAST)
    opened = database.stats().opened
    await asyncio.sleep(4 * IDLE)  # several looks at what is idle
    await use_at_once(database, LEAST)
    assert (database.stats().opened, database.stats().idle) == (opened, LEAST)


async def test_after_disconnect_none_is_kept(database: Database) -> None:
    async with database.connection() as connection:
        await asyncio.create_task(database.disconnect(), context=Context())
        await count_idle(database, 0)
        connection.raw_connection  # noqa: B018 (it is in use)
    await count(database, 0)


async def count_idle(database: Database, number: int) -> None:
    async with asyncio.timeout(20):
        while database.stats().idle != number:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
