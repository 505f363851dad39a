"""What the server does not commit is an error: in blocks, by hand, nested, in sessions, and where all is undone."""

from __future__ import annotations

import asyncio
import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database
from loopsafe_db.errors import TransactionAborted, TransactionError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Work = Callable[[Database, int], Awaitable[None]]

INSERT = "INSERT INTO things (n) VALUES (:n)"
OR_ROLLBACK = "INSERT OR ROLLBACK INTO things (n) VALUES (:n)"
things = sa.Table("things", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True))


@pytest.fixture(params=["plain", "force_rollback"])
async def handle(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Database]:
    """A handle, and one whose work is undone: the same code does the same on both."""
    await database.execute("CREATE TABLE things (n integer PRIMARY KEY)")
    handle = Database(database.url, force_rollback=request.param == "force_rollback")
    yield handle
    assert handle.stats().in_use == 0
    await handle.disconnect()


def kept_open(handle: Database) -> bool:
    """Whether a failed statement leaves its transaction as it was, as it is in SQLite."""
    return handle.url.get_backend_name() == "sqlite"


async def numbers(handle: Database) -> set[int]:
    return {row.n for row in await handle.fetch_all("SELECT n FROM things")}


async def swallow(handle: Database, n: int) -> None:
    """Insert a row, and swallow that its second insert fails."""
    await handle.execute(INSERT, {"n": n})
    with suppress(Exception):
        await handle.execute(INSERT, {"n": n})


async def in_block(handle: Database, n: int) -> None:
    async with handle.transaction():
        await swallow(handle, n)


async def by_hand(handle: Database, n: int) -> None:
    transaction = await handle.transaction()
    await swallow(handle, n)
    await transaction.commit()


async def in_decorated(handle: Database, n: int) -> None:
    await handle.transaction()(swallow)(handle, n)


async def on_connection(handle: Database, n: int) -> None:
    async with handle.connection() as connection, connection.transaction():
        await connection.execute(things.insert().values(n=n))
        with suppress(Exception):
            await connection.execute(things.insert().values(n=n))


async def in_session_begin(handle: Database, n: int) -> None:
    async with handle.session.begin() as session:
        await session.execute(things.insert().values(n=n))
        with suppress(sa.exc.IntegrityError):
            await session.execute(things.insert().values(n=n))


async def in_session_by_hand(handle: Database, n: int) -> None:
    async with handle.session() as session:
        await session.execute(things.insert().values(n=n))
        with suppress(sa.exc.IntegrityError):
            await session.execute(things.insert().values(n=n))
        await session.commit()


async def in_joined_session(handle: Database, n: int) -> None:
    async with handle.transaction():
        await handle.fetch_val("SELECT 1")
        await in_session_by_hand(handle, n)


async def in_engine_begin(handle: Database, n: int) -> None:
    async with handle.engine.begin() as connection:
        await connection.execute(things.insert().values(n=n))
        with suppress(sa.exc.IntegrityError):
            await connection.execute(things.insert().values(n=n))


WORKS: list[Work] = [
    in_block,
    by_hand,
    in_decorated,
    on_connection,
    in_session_begin,
    in_session_by_hand,
    in_joined_session,
    in_engine_begin,
]


@pytest.mark.parametrize("work", WORKS)
async def test_a_swallowed_failure_is_an_error_at_the_commit_or_the_row_is_there(
    handle: Database, work: Work
) -> None:
    if kept_open(handle):
        await work(handle, 1)
    else:
        with pytest.raises(TransactionAborted) as caught:
            await work(handle, 1)
        assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args

    assert await numbers(handle) == ({1} if kept_open(handle) else set())
    await handle.execute(INSERT, {"n": 2})
    async with handle.transaction(), handle.session() as session:
        await session.execute(things.insert().values(n=3))
        await session.commit()
    assert await numbers(handle) >= {2, 3}


@pytest.mark.parametrize("work", WORKS)
async def test_the_outer_transaction_goes_on_after_a_nested_one_that_was_not_committed(
    handle: Database, work: Work
) -> None:
    if work is in_engine_begin:
        pytest.skip("an engine joins no transaction")
    async with handle.transaction():
        await handle.execute(INSERT, {"n": 1})
        if kept_open(handle):
            await work(handle, 2)
        else:
            with pytest.raises(TransactionAborted):
                await work(handle, 2)
        await handle.execute(INSERT, {"n": 3})

    assert await numbers(handle) == ({1, 2, 3} if kept_open(handle) else {1, 3})


async def test_many_rows_that_failed_are_undone_alone_or_with_their_transaction(
    handle: Database,
) -> None:
    committed = True
    try:
        async with handle.transaction():
            await handle.execute_many(INSERT, [{"n": 1}])
            with suppress(Exception):
                await handle.execute_many(INSERT, [{"n": 2}, {"n": 1}])
    except TransactionAborted:
        committed = False

    assert await numbers(handle) == ({1} if committed else set())


async def test_the_first_failure_is_the_cause(handle: Database) -> None:
    if kept_open(handle):
        pytest.skip("nothing is rolled back")
    transaction = await handle.transaction()
    with pytest.raises(Exception, match="nothing") as first:
        await handle.fetch_val("SELECT nothing")
    with pytest.raises(Exception, match="aborted"):
        await handle.fetch_val("SELECT 1")
    with pytest.raises(TransactionAborted, match="LDB109") as caught:
        await transaction.commit()

    assert caught.value.__cause__ is first.value
    with pytest.raises(TransactionError, match="rolled back"):
        await transaction.commit()


async def test_another_open_inside_is_no_end(handle: Database) -> None:
    outer = await handle.transaction()
    await handle.execute(INSERT, {"n": 1})
    inner = await handle.transaction()
    with suppress(TransactionError):
        await outer.commit()
    await inner.rollback()
    with suppress(TransactionError):  # force_rollback lets them end in any order
        await outer.commit()
    assert await numbers(handle) == {1}


async def test_a_transaction_that_sqlite_has_ended_by_itself_is_an_error(handle: Database) -> None:
    if not kept_open(handle):
        pytest.skip("SQLite alone does")
    if handle._options.force_rollback:  # noqa: SLF001
        pytest.skip("it takes along the transaction around everything")

    async def work(_: Database, n: int) -> None:
        await handle.execute(INSERT, {"n": n})
        with suppress(Exception):
            await handle.execute(OR_ROLLBACK, {"n": n})
        with pytest.raises(TransactionAborted):
            await handle.execute(INSERT, {"n": n + 1})

    with pytest.raises(TransactionAborted):
        await handle.transaction()(work)(handle, 1)
    with pytest.raises(TransactionAborted):  # noqa: PT012
        async with handle.transaction():
            with pytest.raises(TransactionAborted):
                await handle.transaction()(work)(handle, 1)
    with pytest.raises(TransactionAborted):  # noqa: PT012
        async with handle.session() as session:
            await session.execute(things.insert().values(n=1))
            with suppress(sa.exc.IntegrityError):
                await session.execute(sa.text(OR_ROLLBACK), {"n": 1})
            await session.commit()

    assert await numbers(handle) == set()
    await handle.execute(INSERT, {"n": 9})
    assert await numbers(handle) == {9}


@pytest.mark.parametrize("clause", [False, True])
async def test_a_deadlock_that_was_swallowed_is_an_error(mariadb_url: str, *, clause: bool) -> None:
    handle = Database(mariadb_url)
    await handle.execute("DROP TABLE IF EXISTS deadlocked")
    await handle.execute("CREATE TABLE deadlocked (n integer PRIMARY KEY, x integer) ENGINE=InnoDB")
    await handle.execute("INSERT INTO deadlocked VALUES (1, 0), (2, 0)")
    both = asyncio.Barrier(2)

    async def update(n: int) -> None:
        query: Any = "UPDATE deadlocked SET x = x + 1 WHERE n = :n"
        await handle.execute(sa.text(query) if clause else query, {"n": n})

    async def work(first: int, second: int) -> Any:
        try:
            async with handle.transaction():
                await update(first)
                await both.wait()
                with suppress(Exception):
                    async with handle.transaction():
                        await update(second)
                await update(3)
        except TransactionAborted as error:
            return error
        return None

    outcomes = await asyncio.gather(work(1, 2), work(2, 1))
    assert sorted(map(type, outcomes), key=str) == [type(None), TransactionAborted]
    rows = await handle.fetch_all("SELECT x FROM deadlocked")
    assert [row.x for row in rows] == [1, 1]
    await handle.execute("DROP TABLE deadlocked")
    await handle.disconnect()
