"""A server, or the way to it, that falls silent: whoever waits gets an error in bounded time, and all goes on."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, Timeouts
from loopsafe_db.errors import CommitUnknown, ConnectTimeout, StatementTimeout
from tests.conftest import SCOPE
from tests.faults.wire import Wire, nothing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Way = Callable[[Database], Awaitable[Any]]

IN_TIME = 20  # seconds, of a machine that is busy: what is not bounded takes for ever
MANY_ROWS = "SELECT g FROM generate_series(1, 3000) AS g"
READY = b"Z\0\0\0\5I"  # what a server says when it has let somebody in


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def wire(postgres_url: str) -> Iterator[Wire]:
    with Wire(postgres_url) as wire:
        yield wire


def handle(wire: Wire, driver: str, max_size: int = 2, **timeouts: Any) -> Database:
    url = wire.url.set(drivername=f"postgresql+{driver}")
    return Database(url, max_size=max_size, timeouts=Timeouts(**timeouts), scope=SCOPE)


async def text(database: Database) -> None:
    await database.fetch_val("SELECT 1")


async def transaction(database: Database) -> None:
    async with database.transaction():
        await database.fetch_val("SELECT 1")


async def savepoint(database: Database) -> None:
    async with database.transaction(), database.transaction():
        await database.fetch_val("SELECT 1")


async def session(database: Database) -> None:
    async with database.session() as session:
        await session.execute(sa.text("SELECT 1"))
        await session.commit()


async def stream_of_a_session(database: Database) -> None:
    async with database.session() as session:
        async for _ in await session.stream(sa.text(MANY_ROWS)):
            pass


async def stream(database: Database) -> None:
    async for _ in database.iterate(MANY_ROWS):
        pass


async def stream_of_a_clause(database: Database) -> None:
    async for _ in database.iterate(sa.text(MANY_ROWS)):
        pass


async def ends_in_error(way: Way, database: Database, error: type[BaseException]) -> str:
    """See that it does, in time, and give what the error says."""
    async with asyncio.timeout(IN_TIME) as limit:
        with pytest.raises(error) as caught:
            await way(database)
    assert not limit.expired()  # the error may have come of that
    return str(caught.value)


async def works_again(wire: Wire, database: Database) -> None:
    wire.hush = wire.hush_after = nothing
    assert (database.stats().in_use, database.stats().waiting) == (0, 0)
    async with asyncio.timeout(IN_TIME):
        await database.fetch_val("SELECT 1")
        await database.disconnect()


WAITS: list[tuple[Way, bytes, type[BaseException]]] = [
    (transaction, b"BEGIN", StatementTimeout),
    (transaction, b"COMMIT", CommitUnknown),
    (savepoint, b"SAVEPOINT", StatementTimeout),
    (savepoint, b"RELEASE", StatementTimeout),
    (session, b"BEGIN", StatementTimeout),
    (session, b"COMMIT", CommitUnknown),
    (stream, b"BEGIN", StatementTimeout),
    (stream, b"generate_series", StatementTimeout),
    (stream_of_a_clause, b"generate_series", StatementTimeout),
    (stream_of_a_session, b"generate_series", StatementTimeout),
    (stream, b"COMMIT", StatementTimeout),
]


@pytest.mark.parametrize(
    ("way", "word", "error"), WAITS, ids=[f"{way.__name__} {word!r}" for way, word, _ in WAITS]
)
async def test_what_gets_no_answer_fails_after_the_time_of_a_statement(
    wire: Wire, driver: str, way: Way, word: bytes, error: type[BaseException]
) -> None:
    database = handle(wire, driver, statement=0.5)
    await text(database)
    wire.hush = lambda data: word in data

    said = await ends_in_error(way, database, error)
    assert re.search(r"at \S*test_silent_servers\.py:\d+\n(query: .*\n)?on postgresql", said), said
    await works_again(wire, database)


@pytest.mark.parametrize("query", [MANY_ROWS, sa.text(MANY_ROWS)])
async def test_a_later_batch_of_a_stream_has_the_time_of_a_statement_too(
    wire: Wire, driver: str, query: Any
) -> None:
    database = handle(wire, driver, statement=0.5)

    async def read(database: Database) -> None:
        async for _ in database.iterate(query):
            wire.hush = lambda _: True

    await ends_in_error(read, database, StatementTimeout)
    await works_again(wire, database)


async def test_a_begin_that_gets_no_answer_fails_though_statements_have_no_limit(
    wire: Wire, driver: str
) -> None:
    database = handle(wire, driver, acquire=0.5)
    await text(database)
    wire.hush = lambda data: b"BEGIN" in data

    await ends_in_error(transaction, database, StatementTimeout)
    await works_again(wire, database)


async def roll_back(database: Database) -> None:
    async with database.transaction():
        raise LookupError


async def roll_a_session_back(database: Database) -> None:
    async with database.session() as session:
        await session.execute(sa.text("SELECT 1"))
        await session.rollback()
        raise LookupError


@pytest.mark.parametrize("way", [roll_back, roll_a_session_back])
async def test_a_rollback_that_gets_no_answer_ends_the_connection_and_asks_nothing_more(
    wire: Wire, driver: str, way: Way
) -> None:
    database = handle(wire, driver)
    await text(database)
    opened = wire.connections
    wire.hush = lambda data: b"ROLLBACK" in data

    await ends_in_error(way, database, LookupError)
    if (
        driver == "psycopg"
    ):  # which would ask the server to cancel the rollback, and take as long again
        assert wire.connections == opened
    await works_again(wire, database)


@pytest.mark.parametrize("is_another_loop", [False, True])
def test_a_reset_that_gets_no_answer_ends_the_connection(
    wire: Wire, driver: str, *, is_another_loop: bool
) -> None:
    database = handle(wire, driver, max_size=1)

    async def set_something() -> None:
        async with asyncio.timeout(IN_TIME), database.connection() as connection:
            await connection.execute("SET statement_timeout = '54321ms'")

    async def set_it_in_silence() -> None:
        wire.hush = lambda data: b"RESET" in data
        await set_something()
        assert database.stats().idle == 0
        await works_again(wire, database)

    with asyncio.Runner() as runner:
        runner.run(set_something())
        if is_another_loop:  # else the two share a timer
            asyncio.run(set_it_in_silence())
        else:
            runner.run(set_it_in_silence())


@pytest.mark.parametrize("way", [text, transaction, session, stream])
async def test_a_server_that_is_silent_after_the_login_is_noticed(
    wire: Wire, driver: str, way: Way
) -> None:
    database = handle(wire, driver, connect=0.5)
    wire.hush_after = lambda data: READY in data

    await ends_in_error(way, database, ConnectTimeout)
    await works_again(wire, database)


async def test_it_is_also_where_the_connection_is_ended_before_the_wait_for_it(
    wire: Wire, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopsafe_db.engines.entry.call_within", lambda _, do: do())
    database = handle(wire, driver, connect=0.5)
    wire.hush_after = lambda data: READY in data

    await ends_in_error(text, database, ConnectTimeout)
    await works_again(wire, database)


async def test_a_caller_that_has_less_time_than_connecting_may_take_gets_it(
    wire: Wire, driver: str
) -> None:
    database = handle(wire, driver)
    wire.hush = lambda _: True

    async def acquire(database: Database) -> None:
        async with database.connection(timeout=0.3):
            pass

    await ends_in_error(acquire, database, ConnectTimeout)
    await works_again(wire, database)
