"""An engine on asyncpg sends BEGIN with the first statement, where that is prepared: one round trip less."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from loopsafe_db import create_async_engine
from loopsafe_db.drivers import asyncpg_adapter
from tests.drivers.tls import TlsServer, tls_server
from tests.faults.wire import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

QUERY = sa.text("SELECT CAST(:n AS int)")
LEVEL = sa.text("SELECT current_setting('transaction_isolation')")
BACKEND = sa.text("SELECT pg_backend_pid()")
INSERT = sa.text("INSERT INTO things VALUES (CAST(:n AS int))")
COUNT = sa.text("SELECT count(*) FROM things")
SLEEP = sa.text("SELECT pg_sleep(CAST(:n AS int))")


@pytest.fixture(scope="module")
def server() -> Iterator[TlsServer]:
    with tls_server() as server:
        server.use("good")
        yield server


@pytest.fixture(params=["clear", "tls"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "clear":
        return str(request.getfixturevalue("postgres_url"))
    return f"{request.getfixturevalue('server').url}?sslmode=require"


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    """One connection, with all statements of this file prepared on it."""
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    async with engine.begin() as connection:
        await connection.execute(sa.text("DROP TABLE IF EXISTS things"))
        await connection.execute(sa.text("CREATE TABLE things (id int PRIMARY KEY)"))
    async with engine.connect() as connection:
        await prepare(connection)
    yield engine
    await engine.dispose()


async def prepare(connection: AsyncConnection) -> None:
    for statement in (QUERY, INSERT, SLEEP):
        await connection.execute(statement, {"n": 0})
    for statement in (LEVEL, BACKEND, COUNT):
        await connection.execute(statement)


async def test_begin_and_a_prepared_statement_are_one_message(postgres_url: str) -> None:
    sent: list[bytes] = []

    def note(data: bytes) -> bool:
        sent.append(data)
        return False

    with Wire(postgres_url) as wire:
        engine = create_async_engine(wire.url)
        async with engine.connect() as connection:
            await connection.execute(QUERY, {"n": 1})
        wire.hush = note
        async with engine.connect() as connection:
            assert await connection.scalar(QUERY, {"n": 2}) == 2
        await engine.dispose()
    assert [b"BEGIN" in data for data in sent[:2]] == [True, False]
    assert [b"ROLLBACK" in data for data in sent[:2]] == [False, True]


async def test_what_was_done_with_begin_is_undone_and_done(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert (await connection.execute(INSERT, {"n": 1})).rowcount == 1
    async with engine.connect() as connection:
        assert await connection.scalar(COUNT) == 0
    async with engine.begin() as connection:
        await connection.execute(INSERT, {"n": 1})
    async with engine.connect() as connection:
        assert await connection.scalar(COUNT) == 1


async def test_begin_has_the_options_of_its_connection(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        before = await connection.scalar(BACKEND)
    async with engine.connect() as connection:
        await connection.execution_options(
            isolation_level="SERIALIZABLE", postgresql_readonly=True, postgresql_deferrable=True
        )
        assert await connection.scalar(LEVEL) == "serializable"
        with pytest.raises(DBAPIError, match="read-only transaction"):
            await connection.execute(INSERT, {"n": 1})
    async with engine.connect() as connection:
        assert await connection.scalar(LEVEL) == "read committed"
        assert await connection.scalar(BACKEND) == before


async def test_in_autocommit_nothing_begins(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(INSERT, {"n": 1})
        await connection.rollback()
        assert await connection.scalar(COUNT) == 1


async def test_after_a_value_that_cannot_be_sent_the_next_statement_begins(
    engine: AsyncEngine,
) -> None:
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError, match="invalid input for query argument"):
            await connection.execute(INSERT, {"n": "no number"})
        await connection.execute(INSERT, {"n": 1})
    async with engine.connect() as connection:
        assert await connection.scalar(COUNT) == 0


async def test_after_a_statement_that_fails_the_transaction_has_failed(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        await connection.execute(INSERT, {"n": 1})
        before = await connection.scalar(BACKEND)
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError, match="duplicate key"):
            await connection.execute(INSERT, {"n": 1})
        with pytest.raises(DBAPIError, match="transaction is aborted"):
            await connection.execute(QUERY, {"n": 1})
        await connection.rollback()
        assert await connection.scalar(BACKEND) == before


async def test_after_a_begin_that_fails_the_next_statement_begins(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine.connect() as connection:
        with monkeypatch.context() as staged:
            wrong = asyncpg_adapter._begin(None, False, False).replace(b"BEGIN", b"BEGUN")  # noqa: FBT003, SLF001
            staged.setattr(asyncpg_adapter, "_begin", lambda *_: wrong)
            with pytest.raises(DBAPIError, match="syntax error"):
                await connection.execute(INSERT, {"n": 1})
        await connection.execute(INSERT, {"n": 1})
    async with engine.connect() as connection:
        assert await connection.scalar(COUNT) == 0


async def test_a_statement_that_is_cancelled_leaves_nothing_open(engine: AsyncEngine) -> None:
    async def sleep() -> None:
        async with engine.connect() as connection:
            await connection.execute(SLEEP, {"n": 60})

    task = asyncio.create_task(sleep())
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(task), 0.1)
    task.cancel()
    await asyncio.wait([task])
    async with engine.connect() as connection:
        await connection.execute(INSERT, {"n": 1})
    async with engine.connect() as connection:
        assert await connection.scalar(COUNT) == 0


async def test_two_tasks_on_one_connection_take_turns(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        answers = await asyncio.gather(
            *(connection.scalar(QUERY, {"n": number}) for number in range(5))
        )
    assert answers == list(range(5))
