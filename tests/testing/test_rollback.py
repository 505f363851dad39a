"""RolledBack: what a test does is undone, whoever did it, in whichever loop, and the connection stays."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db.testing.rollback import RolledBack
from loopsafe_db.testing.statements import assert_queries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopsafe_db import Database

COUNT = "SELECT count(*) FROM things"
UNFINISHED = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
)
INSERT = "INSERT INTO things (id) VALUES (:id)"
things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))


@pytest.fixture
def rolled_back(database: Database) -> Iterator[RolledBack]:
    asyncio.run(database.execute("CREATE TABLE things (id integer PRIMARY KEY)"))
    rolled_back = RolledBack(database)
    yield rolled_back
    rolled_back.close()
    assert asyncio.run(database.fetch_val(COUNT)) == 0


@pytest.mark.parametrize("query", [sa.text(INSERT), INSERT], ids=["clause", "text"])
def test_each_block_begins_with_what_was_there_before_on_the_same_connection(
    database: Database, rolled_back: RolledBack, query: str | sa.TextClause
) -> None:
    opened = []
    for _ in range(3):
        with rolled_back:
            asyncio.run(database.execute(query, {"id": 1}))
            assert asyncio.run(database.fetch_val(COUNT)) == 1
            opened.append(database.stats().opened)
        gc.collect()
        assert asyncio.run(database.fetch_val(COUNT)) == 0
    assert opened == [1, 1, 1]


def test_a_block_inside_is_undone_though_the_next_one_begins_at_once(
    database: Database, rolled_back: RolledBack
) -> None:
    with rolled_back:
        asyncio.run(database.execute(INSERT, {"id": 1}))
        for _ in range(3):
            with database.force_rollback():
                asyncio.run(database.execute(INSERT, {"id": 2}))
                assert asyncio.run(database.fetch_val(COUNT)) == 2
        with database.force_rollback(), database.force_rollback():
            assert asyncio.run(database.fetch_val(COUNT)) == 1


def test_a_block_that_is_cancelled_leaves_nothing_to_the_next(
    database: Database, rolled_back: RolledBack
) -> None:
    async def insert(patience: float) -> None:
        async with asyncio.timeout(patience):
            await database.execute(INSERT, {"id": 1})
            await database.fetch_val(things.select())

    for patience in (10, *(number % 40 / 10_000 for number in range(80))):
        with rolled_back, suppress(TimeoutError):
            asyncio.run(insert(patience))
        assert asyncio.run(database.fetch_val(COUNT)) == 0
        if database.url.get_backend_name() == "postgresql":
            while asyncio.run(database.fetch_val(UNFINISHED)):
                pass  # the server hears of a connection that was given up in time; the test has a timeout
    with rolled_back:
        asyncio.run(insert(10))


def test_everybody_takes_part(database: Database, rolled_back: RolledBack) -> None:
    async def write(number: int) -> None:
        async with database.transaction():
            await database.execute(INSERT, {"id": number})
        async with database.session.begin() as session:
            await session.execute(things.insert().values(id=number + 1))

    with rolled_back:
        asyncio.run(write(1))
        thread = threading.Thread(target=lambda: asyncio.run(write(3)))
        thread.start()
        thread.join()
        with asyncio.Runner() as runner:
            runner.run(write(5))
            assert runner.run(database.fetch_val(COUNT)) == 6


def test_an_application_may_disconnect(database: Database, rolled_back: RolledBack) -> None:
    async def lifespan() -> None:
        async with database:
            await database.execute(INSERT, {"id": 1})

    with rolled_back:
        asyncio.run(lifespan())
        asyncio.run(lifespan_again(database))
        assert asyncio.run(database.fetch_val(COUNT)) == 2


def test_an_application_may_dispose_of_its_engine(
    database: Database, rolled_back: RolledBack
) -> None:
    async def lifespan(number: int) -> None:
        async with database.engine.begin() as connection:
            await connection.execute(things.insert().values(id=number))
        await database.engine.dispose()

    with rolled_back:
        asyncio.run(lifespan(1))
        asyncio.run(lifespan(2))
        assert asyncio.run(database.fetch_val(COUNT)) == 2


async def lifespan_again(database: Database) -> None:
    await database.connect()
    await database.execute(INSERT, {"id": 2})
    await database.disconnect()


async def test_where_a_loop_runs_already(database: Database) -> None:
    await database.execute("CREATE TABLE things (id integer PRIMARY KEY)")
    rolled_back = RolledBack(database)
    with rolled_back:
        await database.execute(INSERT, {"id": 1})
    rolled_back.close()
    assert await database.fetch_val(COUNT) == 0


def test_what_was_left_open_is_told_with_its_place(
    database: Database, rolled_back: RolledBack
) -> None:
    async def forget() -> None:
        with pytest.warns(ResourceWarning, match="neither committed nor rolled back"):
            await database.transaction()
        session = database.session()
        await session.execute(things.select())
        kept.append(session)

    kept: list[Any] = []
    with rolled_back:
        asyncio.run(forget())
        transaction, session = rolled_back.left_open
    asyncio.run(kept[0].close())
    assert f"{__file__}:{forget.__code__.co_firstlineno + 2}" in transaction
    assert f"{__file__}:{forget.__code__.co_firstlineno + 4}" in session


@pytest.mark.parametrize("kind", ["rolled back", "plain"])
def test_statements_are_counted_whoever_sends_them(
    database: Database, rolled_back: RolledBack, kind: str
) -> None:
    async def ask() -> None:
        await database.fetch_val(COUNT)
        await database.fetch_all(things.select())
        async with database.session.begin() as session:
            await session.execute(things.select())
        async with database.transaction():
            assert [row async for row in database.iterate(things.select())] == []

    def check() -> None:
        with assert_queries(4, database=database) as sent:
            asyncio.run(ask())
        assert sent[0] == COUNT
        assert all("things" in statement for statement in sent)
        with (
            pytest.raises(
                AssertionError, match=r"4 statements were sent, not at most 3:\n  1\. SE"
            ),
            assert_queries(max=3, database=database),
        ):
            asyncio.run(ask())

    if kind == "rolled back":
        with rolled_back:
            check()
            assert len(rolled_back.statements) == 8
    else:
        check()
