"""Transactions as a block, as a decorator, and begun and ended by hand, on every driver."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from loopsafe_db import Database
from loopsafe_db.errors import StatementTimeout, TransactionAborted, TransactionError
from loopsafe_db.testing.conformance import SLOW
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Numbers = Callable[[], Awaitable[set[int]]]


@pytest.fixture
async def numbers(database: Database) -> Numbers:
    """Give what another handle sees of the table: only what is committed."""
    await database.execute("CREATE TABLE things (n INTEGER UNIQUE)")
    other = Database(database.url, scope=SCOPE)

    async def look() -> set[int]:
        return {row.n for row in await other.fetch_all("SELECT n FROM things")}

    return look


async def insert(database: Database, n: int) -> None:
    await database.execute("INSERT INTO things (n) VALUES (:n)", {"n": n})


async def test_one_begun_by_hand_and_never_ended_is_named_when_its_task_is_done(
    database: Database,
) -> None:
    handle = Database(database.url, max_size=1, scope=SCOPE)

    async def forget() -> None:
        transaction = await handle.transaction()
        assert transaction.connection.in_transaction

    with pytest.warns(ResourceWarning) as told:
        await asyncio.create_task(forget(), name="forgets")
    place = f"{__file__}:{forget.__code__.co_firstlineno + 1}"
    text = str(told.pop(ResourceWarning).message)
    assert text.startswith("a transaction was neither committed nor rolled back: forgets for ")
    assert text.endswith(place)
    assert await handle.fetch_val("SELECT 1") == 1


@pytest.mark.usefixtures("numbers")
async def test_one_that_nobody_can_end_any_more_locks_nothing(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def forget() -> None:
        await database.transaction()
        await insert(database, 1)

    with pytest.warns(ResourceWarning, match="neither committed nor rolled back"):
        await asyncio.create_task(forget(), name="forgets")
    async with asyncio.timeout(10):
        await insert(database, 1)  # which would wait for the other one

    assert await database.fetch_val("SELECT count(*) FROM things") == 1
    place = f"{__file__}:{forget.__code__.co_firstlineno + 1}"
    assert [one for one in caplog.messages if "not given back" in one and place in one]


async def test_one_begun_by_hand_is_ended_by_hand(database: Database, numbers: Numbers) -> None:
    first = await database.transaction()
    await insert(database, 1)
    await first.commit()
    second = await database.transaction().start()
    await insert(database, 2)
    assert await numbers() == {1}
    await second.rollback()
    await insert(database, 3)

    assert await numbers() == {1, 3}
    assert database.stats().in_use == 0


async def test_by_hand_they_nest(database: Database, numbers: Numbers) -> None:
    outer = await database.transaction()
    await insert(database, 1)
    inner = await database.transaction()
    await insert(database, 2)
    await inner.rollback()
    on_its_connection = await outer.connection.transaction()
    await insert(database, 3)
    await on_its_connection.commit()
    await outer.commit()

    assert await numbers() == {1, 3}
    with pytest.raises(TransactionError):
        await outer.commit()
    with pytest.raises(TransactionError):
        outer.connection  # noqa: B018
    assert database.stats().in_use == 0


async def test_a_block_may_end_its_own(database: Database, numbers: Numbers) -> None:
    async with database.transaction() as transaction:
        await insert(database, 1)
        await transaction.rollback()
    async with database.transaction() as transaction:
        await insert(database, 2)
        await transaction.commit()

    assert await numbers() == {2}


async def test_what_follows_an_interrupted_transaction_is_not_lost(
    database: Database, numbers: Numbers
) -> None:
    async with database.connection() as connection:
        began = time.perf_counter()
        async with connection.transaction():
            await insert(database, 0)
        took = time.perf_counter() - began
        for n in range(1, 121):
            with suppress(TimeoutError):
                async with asyncio.timeout(took * n / 100), connection.transaction():
                    await insert(database, -n)
            await insert(database, n)
    assert await numbers() >= set(range(1, 121))


async def test_a_transaction_by_text_is_all_or_nothing_though_a_query_in_it_is_cut_off(
    database: Database, numbers: Numbers
) -> None:
    async with database.connection() as connection:
        await connection.execute("BEGIN")
        await insert(database, 1)
        with pytest.raises(StatementTimeout):
            await connection.fetch_val(SLOW[database.url.get_backend_name()], timeout=0.1)
        with suppress(Exception):  # PostgreSQL refuses it, SQLite takes it
            await insert(database, 2)
        with suppress(TransactionAborted):
            await connection.execute("COMMIT")
    assert await numbers() in (set(), {1, 2})


async def test_who_gives_up_waiting_to_commit_has_committed_nothing(
    database: Database, numbers: Numbers
) -> None:
    async def query(slow: str) -> None:
        with suppress(StatementTimeout):
            await connection.fetch_val(slow, timeout=0.5)

    async with database.connection() as connection:
        transaction = await connection.transaction()
        await insert(database, 1)
        other = asyncio.create_task(query(SLOW[database.url.get_backend_name()]))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await transaction.commit()
        await other
        await insert(database, 2)
    assert await numbers() == {2}


async def test_each_call_of_a_decorated_function_is_a_transaction(
    database: Database, numbers: Numbers
) -> None:
    @database.transaction()
    async def add(n: int, *, fail: bool) -> int:
        """Add a number."""
        await insert(database, n)
        await asyncio.sleep(0)
        if fail:
            raise ZeroDivisionError
        return n

    done = await asyncio.gather(
        *(add(n, fail=n % 2 == 1) for n in range(6)), return_exceptions=True
    )

    assert (add.__name__, add.__doc__) == ("add", "Add a number.")
    assert [0 if isinstance(one, ZeroDivisionError) else one for one in done] == [0, 0, 2, 0, 4, 0]
    assert await numbers() == {0, 2, 4}
    async with database.transaction(force_rollback=True):
        await add(6, fail=False)
        with pytest.raises(ZeroDivisionError):
            await add(7, fail=True)
        assert await database.fetch_val("SELECT count(*) FROM things") == 4
    assert await numbers() == {0, 2, 4}


async def test_a_transaction_takes_nothing_of_another_database(
    database: Database, numbers: Numbers
) -> None:
    other = Database(database.url, scope=SCOPE)
    with suppress(LookupError):
        async with database.transaction(readonly=True):  # what came into it would be refused
            await insert(other, 1)
            async with other.session() as session:
                await session.execute(sa.text("INSERT INTO things (n) VALUES (2)"))
                await session.commit()
            await asyncio.gather(
                other.execute(sa.insert(sa.table("things", sa.column("n"))), {"n": 3})
            )
            raise LookupError
    assert await numbers() == {1, 2, 3}
    await other.disconnect()


async def test_a_block_that_is_always_undone_is_undone(
    database: Database, numbers: Numbers
) -> None:
    async with database.transaction(force_rollback=True):
        await insert(database, 1)
        async with database.transaction():
            await insert(database, 2)
    async with database.connection() as connection:
        async with connection.transaction(force_rollback=True):
            await insert(database, 3)
        assert await connection.fetch_all("SELECT n FROM things") == []

    assert await numbers() == set()


async def test_an_inner_one_may_ask_for_what_the_outer_one_has(database: Database) -> None:
    async with database.transaction(isolation="serializable"):
        async with database.transaction(isolation="serializable"), database.transaction():
            assert await database.fetch_val("SELECT 1") == 1
        with pytest.raises(TransactionError):
            await database.transaction(readonly=True)
        assert await database.fetch_val("SELECT 1") == 1


async def test_many_rows_may_come_from_a_generator(database: Database, numbers: Numbers) -> None:
    query = "INSERT INTO things (n) VALUES (:n)"
    await database.execute_many(query, ({"n": n} for n in range(3)))
    async with database.transaction():
        await database.execute_many(query, ({"n": n} for n in range(3, 5)))

    assert await numbers() == {0, 1, 2, 3, 4}
    assert await database.execute_many(query, iter(())) == 0
