"""What becomes of a connection that comes back: the next user gets it idle, whatever the one before has done."""

from __future__ import annotations

import asyncio
import itertools
import logging
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database
from loopsafe_db.errors import ReleasedError, TransactionError
from loopsafe_db.testing.children import call_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

THINGS = sa.table("things", sa.column("id"))
INSERT = "INSERT INTO things VALUES (:id)"


@pytest.fixture
def database(database: Database) -> Database:
    """One connection, and a table."""
    asyncio.run(database.execute("CREATE TABLE things (id int PRIMARY KEY)"))
    asyncio.run(database.disconnect())
    return Database(database.url, **{**database.options, "max_size": 1})


@pytest.fixture
def any_lone(any_database: Database) -> Database:
    """The same for every driver."""
    asyncio.run(any_database.execute("CREATE TABLE things (id int PRIMARY KEY)"))
    asyncio.run(any_database.disconnect())
    return Database(any_database.url, **{**any_database.options, "max_size": 1})


async def by_text(database: Database) -> None:
    await database.execute(INSERT, {"id": 1})


async def by_clause(database: Database) -> None:
    await database.execute(THINGS.insert(), {"id": 1})


async def by_many(database: Database) -> None:
    await database.execute_many(INSERT, [{"id": 1}])


async def in_a_transaction(database: Database) -> None:
    async with database.transaction(isolation="serializable"):
        await database.execute(INSERT, {"id": 1})


async def in_a_session(database: Database) -> None:
    async with database.session.begin() as session:
        await session.execute(THINGS.insert(), {"id": 1})


async def in_an_engines_block(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(THINGS.insert(), {"id": 1})


async def begin_by_text(database: Database) -> None:
    await database.execute("BEGIN")


async def begin_by_text_in_a_block(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute("BEGIN")
        await connection.execute("INSERT INTO things VALUES (7)")


async def begin_by_a_clause(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute(sa.text("BEGIN"))


async def begin_on_the_raw_connection(database: Database) -> None:
    async with database.connection() as connection:
        raw = connection.raw_connection
        if database.url.dialect == "mysql":
            async with raw.driver_connection.cursor() as cursor:
                await cursor.execute("BEGIN")
        else:
            await raw.execute("BEGIN")


async def begin_and_fail(database: Database) -> None:
    async with database.connection() as connection:
        with suppress(Exception):
            await connection.execute("BEGIN")
            await connection.execute("SELECT * FROM nowhere")


async def stream_begun_by_hand(database: Database) -> None:
    with suppress(Exception):
        async for _ in database.iterate("SELECT 1 FROM nowhere"):
            pass


LEAVES = [
    begin_by_text,
    begin_by_text_in_a_block,
    begin_by_a_clause,
    begin_on_the_raw_connection,
    begin_and_fail,
    stream_begun_by_hand,
]
WORKS = [by_text, by_clause, by_many, in_a_transaction, in_a_session, in_an_engines_block]


async def ids(database: Database) -> list[int]:
    return [row.id for row in await database.fetch_all("SELECT id FROM things ORDER BY id")]


def committed(database: Database) -> list[int]:
    """What another connection sees."""
    return asyncio.run(ids(Database(database.url)))


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("leave", LEAVES)
def test_a_transaction_that_is_left_open_takes_no_later_work_along(
    any_lone: Database,
    leave: Callable[[Database], Coroutine[Any, Any, None]],
    work: Callable[[Database], Coroutine[Any, Any, None]],
) -> None:
    mysql = any_lone.url.dialect == "mysql"

    async def main() -> None:
        with suppress(TransactionError) if mysql else nullcontext():  # it refuses a BEGIN by text
            await leave(any_lone)
        await work(any_lone)
        await any_lone.disconnect()

    asyncio.run(main())
    assert committed(any_lone) == [1]
    # a file whose connection was handed out is opened anew, and so is that of MySQL
    reset = leave is begin_on_the_raw_connection and any_lone.url.dialect != "postgresql"
    assert any_lone.stats().opened == (2 if reset else 1)


def test_a_transaction_that_is_left_open_takes_no_work_of_a_forked_child_along(
    database: Database,
) -> None:
    def child() -> list[int]:
        async def main() -> None:
            await begin_by_text_in_a_block(database)
            await by_text(database)

        asyncio.run(main())
        return committed(database)

    asyncio.run(begin_by_text(database))
    assert call_in_child(child) == [1]


@pytest.mark.parametrize("leave", [begin_by_text, begin_by_text_in_a_block])
def test_who_leaves_a_transaction_open_is_named(
    database: Database,
    leave: Callable[[Database], Coroutine[Any, Any, None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "loopsafe_db"):
        asyncio.run(leave(database))
    (record,) = [record for record in caplog.records if record.name == "loopsafe_db"]
    first = leave.__code__.co_firstlineno
    assert f"{__file__}:{first + 1}" in record.getMessage()


def test_a_script_that_failed_half_way_fails_nobody_after_it(postgres_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        url = sa.make_url(postgres_url).set(drivername=f"postgresql+{driver}")
        database = Database(url, max_size=1)

        async def main(database: Database = database) -> None:
            with pytest.raises(Exception, match="division by zero"):
                await database.execute("BEGIN; SELECT 1 / 0; COMMIT")
            assert await database.fetch_val("SELECT 1") == 1
            async with database.transaction():
                assert await database.fetch_val("SELECT 1") == 1

        asyncio.run(main())
        assert database.stats().opened == 1


def test_an_answer_of_the_server_costs_no_connection(database: Database) -> None:
    async def main() -> None:
        await by_text(database)
        for work in WORKS:
            with pytest.raises(Exception, match=r"(?i)unique"):
                await work(database)

    asyncio.run(main())
    assert database.stats().opened == 1


class TimeLimit(Exception):
    """What a job's limit raises out of a signal handler."""


class Struck:
    """A coroutine that `TimeLimit` is raised in while it waits for the n-th time, before what it waits for has come."""

    def __init__(self, coroutine: Any, turn: int) -> None:
        self._waits, self._turn = coroutine.__await__(), turn

    def __await__(self) -> Generator[Any, Any, Any]:
        go_on: Callable[[Any], Any] = self._waits.send
        value: BaseException | None = None
        for turn in itertools.count():
            try:
                awaited = go_on(value)
            except StopIteration as end:
                return end.value
            if turn == self._turn:
                go_on, value = self._waits.throw, TimeLimit()
                continue
            try:
                yield awaited
                go_on, value = self._waits.send, None
            except BaseException as error:  # noqa: BLE001 (what came of it)
                go_on, value = self._waits.throw, error
        return None


@pytest.mark.parametrize("work", WORKS)
def test_an_exception_out_of_a_signal_handler_costs_one_job(
    database: Database, work: Callable[[Database], Coroutine[Any, Any, None]]
) -> None:
    async def job(turn: int) -> bool:
        await database.fetch_val("SELECT 1")
        try:
            await Struck(work(database), turn)
        except TimeLimit:
            return True
        except sa.exc.StatementError:  # so SQLAlchemy tells it where it has no cursor yet
            return True
        await database.execute("DELETE FROM things")
        return False

    async def later(number: int) -> None:
        await database.execute(INSERT, {"id": number})
        async with asyncio.timeout(20), database.transaction():
            await database.execute(INSERT, {"id": number + 1})

    turn = 0
    while asyncio.run(job(turn)):
        asyncio.run(later(100))
        assert committed(database)[-2:] == [100, 101]
        asyncio.run(database.execute("DELETE FROM things"))
        turn += 1
    assert turn > 0
    assert database.stats().in_use == 0


def test_who_waits_for_its_turn_is_refused_when_the_block_has_ended(database: Database) -> None:
    async def main() -> Any:
        async with database.connection() as connection:
            async with connection._turn:  # noqa: SLF001 (somebody is at work)
                waiting = [
                    asyncio.create_task(connection.execute(INSERT, {"id": 1})),
                    asyncio.create_task(connection.execute(THINGS.insert(), {"id": 2})),
                    asyncio.create_task(connection.execute_many(INSERT, [{"id": 3}])),
                    asyncio.create_task(connection.transaction().start()),
                ]
                await asyncio.sleep(0)
                await connection.__aexit__(None, None, None)
            told = await asyncio.gather(*waiting, return_exceptions=True)
            await connection.__aenter__()
        return told

    told = asyncio.run(main())
    assert [type(error) for error in told] == [ReleasedError] * 4
    assert committed(database) == []


async def test_a_connection_that_its_user_has_ended_is_replaced(postgres_url: str) -> None:
    database = Database(postgres_url)
    async with database.connection() as connection:
        connection.raw_connection.terminate()

    assert await database.fetch_val("SELECT 1") == 1
