"""The statement timeout of sessions and of the engine: what takes longer is stopped, on the server, too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, PoolLimits, Timeouts
from loopsafe_db.errors import StatementTimeout
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SLOW = {
    "postgresql": "SELECT pg_sleep(:n)",
    "sqlite": "WITH RECURSIVE slow(n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM slow WHERE n < :n * 3000000)"
    " SELECT max(n) FROM slow",
}
# Some rows come at once, the others never. SQLAlchemy asks asyncpg for 50 at a time.
SLOW_LATER = {
    "postgresql": "SELECT n, CASE WHEN n > 60 THEN pg_sleep(60) END FROM generate_series(1, 100) n",
    "sqlite": "WITH RECURSIVE slow(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM slow) SELECT n FROM slow WHERE n < 3",
}
RUNNING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"


@pytest.fixture
def limited(database: Database) -> Database:
    """A handle of one connection, whose statements may take 0.2 s."""
    return Database(database.url, scope=SCOPE, pool=PoolLimits(1), timeouts=Timeouts(statement=0.2))


def slow(database: Database, seconds: int = 60) -> sa.TextClause:
    return sa.text(SLOW[database.url.get_backend_name()]).bindparams(n=seconds)


async def in_a_session(database: Database) -> None:
    async with database.session() as session:
        with pytest.raises(StatementTimeout, match=r"LDB404.*within 0.2 s"):
            await session.execute(slow(database))
        await session.rollback()
        assert await session.scalar(sa.text("SELECT 1")) == 1


async def on_the_engine(database: Database) -> None:
    async with database.engine.connect() as connection:
        with pytest.raises(StatementTimeout):
            await connection.execute(slow(database))


async def in_a_transaction(database: Database) -> None:
    with pytest.raises(StatementTimeout):
        async with database.transaction(), database.session.begin() as session:
            await session.execute(slow(database))


def slow_later(database: Database) -> sa.TextClause:
    return sa.text(SLOW_LATER[database.url.get_backend_name()])


async def streamed_by_a_session(database: Database) -> None:
    async with database.session() as session:
        with pytest.raises(StatementTimeout, match=r"LDB404.*\n.*SELECT"):
            async for _ in await session.stream(slow(database)):
                pass
        await session.rollback()
        assert await session.scalar(sa.text("SELECT 1")) == 1


async def streamed_later_by_a_session(database: Database) -> None:
    async with database.session() as session:
        rows = await session.stream(slow_later(database))
        assert (await anext(aiter(rows)))[0] == 1
        with pytest.raises(StatementTimeout, match=r"LDB404.*\n.*SELECT"):
            await rows.fetchall()
        await session.rollback()
        assert await session.scalar(sa.text("SELECT 1")) == 1


async def streamed_later_on_the_engine(database: Database) -> None:
    async with database.engine.connect() as connection:
        rows = await connection.stream(slow_later(database))
        assert await rows.fetchone() is not None
        with pytest.raises(StatementTimeout):
            await rows.fetchmany(98)


async def streamed_under_force_rollback(database: Database) -> None:
    with database.force_rollback():
        await streamed_by_a_session(database)
        await streamed_later_on_the_engine(database)
        await database.disconnect()


async def streamed_by_the_handle(database: Database) -> None:
    for query in (slow_later(database), slow_later(database).text):
        rows = database.iterate(query)
        with pytest.raises(StatementTimeout, match=r"LDB404.*\nquery: .*SELECT"):
            async for _ in rows:
                pass


WAYS: list[Callable[[Database], Awaitable[None]]] = [
    in_a_session,
    on_the_engine,
    in_a_transaction,
    streamed_by_a_session,
    streamed_later_by_a_session,
    streamed_later_on_the_engine,
    streamed_under_force_rollback,
    streamed_by_the_handle,
]


@pytest.mark.parametrize("way", WAYS)
async def test_a_statement_that_takes_too_long_is_stopped(
    limited: Database, database: Database, way: Callable[[Database], Awaitable[None]]
) -> None:
    async with asyncio.timeout(10):
        await way(limited)
        assert await limited.fetch_val("SELECT 1") == 1
        if database.url.get_backend_name() == "postgresql":
            while await database.fetch_val(RUNNING):  # noqa: ASYNC110 (no event tells of it)
                await asyncio.sleep(0.01)
    assert limited.stats().in_use == 0


async def test_quick_statements_and_what_is_done_between_them_may_take_their_time(
    limited: Database,
) -> None:
    async with limited.session.begin() as session:
        for _ in range(2):
            assert await session.scalar(sa.text("SELECT 1")) == 1
            await asyncio.sleep(0.25)
        with pytest.raises(sa.exc.DBAPIError):
            await session.execute(sa.text("SELECT nothing FROM nowhere"))
        await session.rollback()
        await asyncio.sleep(0.25)


async def test_the_timeout_of_one_call_goes_before_that_of_all(limited: Database) -> None:
    await limited.fetch_all(slow(limited, 1), timeout=60)


async def test_a_timeout_of_the_caller_s_is_left_to_the_caller(limited: Database) -> None:
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.05), limited.session() as session:
            await session.execute(slow(limited))
    assert not isinstance(caught.value, StatementTimeout)
    await cancelled(limited)
    assert await limited.fetch_val("SELECT 1") == 1


async def cancelled(database: Database) -> None:
    async def use() -> Any:
        async with database.session() as session:
            return await session.execute(slow(database))

    task = asyncio.create_task(use())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
