"""A network that takes no more in the middle of what is sent: time limits and cancellations hold there, too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, Timeouts
from loopsafe_db.errors import StatementTimeout
from tests.conftest import SCOPE
from tests.faults.wire import Wire, nothing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Way = Callable[[Database], Awaitable[Any]]

IN_TIME = 20  # seconds, of a machine that is busy
FOR_EVER = 600
BIG = {"v": "x" * (16 << 20)}  # more than all buffers on the way take
MANY = [{"v": "y" * (1 << 17)} for _ in range(128)]
INSERT = "INSERT INTO t VALUES (:v)"
TABLE = sa.table("t", sa.column("v"))


@pytest.fixture
def wire(postgres_url: str) -> Iterator[Wire]:
    with Wire(postgres_url) as wire:
        yield wire


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def text(database: Database) -> None:
    await database.execute(INSERT, BIG)


async def clause(database: Database) -> None:
    await database.execute(TABLE.insert(), BIG)


async def transaction(database: Database) -> None:
    async with database.transaction():
        await database.execute(INSERT, BIG)


async def session(database: Database) -> None:
    async with database.session.begin() as session:
        await session.execute(TABLE.insert(), BIG)


async def stream(database: Database) -> None:
    async for _ in database.iterate("SELECT CAST(:v AS text)", BIG):
        pass


async def many(database: Database) -> None:
    await database.execute_many(INSERT, MANY)


async def many_of_a_clause(database: Database) -> None:
    await database.execute_many(TABLE.insert(), MANY)


async def many_of_a_session(database: Database) -> None:
    async with database.session.begin() as session:
        await session.execute(TABLE.insert(), MANY)


WAYS = [text, clause, transaction, session, stream, many, many_of_a_clause, many_of_a_session]


async def clogged(wire: Wire, driver: str, statement: float) -> Database:
    """Give a handle with one warm connection, whose network takes no more as soon as much is sent."""
    url = wire.url.set(drivername=f"postgresql+{driver}")
    database = Database(url, max_size=1, timeouts=Timeouts(statement=statement), scope=SCOPE)
    await database.execute("CREATE TABLE t (v text)")
    wire.clogs = lambda data: len(data) > 5000
    return database


async def works_again(wire: Wire, database: Database) -> None:
    wire.clogs = nothing
    async with asyncio.timeout(IN_TIME):
        assert await database.fetch_val("SELECT count(*) FROM t") == 0
        assert database.stats().in_use == 0
        await database.disconnect()


@pytest.mark.parametrize("way", WAYS)
async def test_what_cannot_be_sent_fails_after_the_time_of_a_statement(
    wire: Wire, driver: str, way: Way
) -> None:
    database = await clogged(wire, driver, statement=0.5)

    async with asyncio.timeout(IN_TIME):
        with pytest.raises(StatementTimeout):
            await way(database)

    await works_again(wire, database)


@pytest.mark.parametrize("way", WAYS)
async def test_who_is_cancelled_while_sending_learns_of_it(
    wire: Wire, driver: str, way: Way
) -> None:
    database = await clogged(wire, driver, statement=FOR_EVER)
    task: Any = asyncio.ensure_future(way(database))
    while not wire.is_clogged:  # noqa: ASYNC110 (the wire has threads of its own)
        await asyncio.sleep(0.01)

    task.cancel()
    await asyncio.wait([task], timeout=IN_TIME)

    assert task.cancelled()
    await works_again(wire, database)
