"""A task has one connection at a time; what it starts may use that when it is handed over, in turn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db import ancestry
from loopsafe_db.errors import ReleasedError, TransactionError

if TYPE_CHECKING:
    from loopsafe_db import Connection, Database

COUNT = "SELECT count(*) FROM things"
INSERT = "INSERT INTO things (id) VALUES (:id)"


@pytest.fixture
async def database(database: Database) -> Database:
    await database.execute("CREATE TABLE things (id integer)")
    return database


async def test_a_task_has_one_connection_at_a_time(database: Database) -> None:
    async with database.connection() as outer:
        async with database.connection() as inner, database.transaction() as transaction:
            assert outer is inner is transaction.connection
        assert await outer.fetch_val("SELECT 1") == 1
        assert database.stats().in_use == 1
    assert database.stats().in_use == 0


async def test_the_handle_uses_the_connection_of_the_block(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute("CREATE TEMPORARY TABLE mine (id integer)")
        await database.execute("INSERT INTO mine VALUES (7)")
        assert await database.fetch_val("SELECT id FROM mine") == 7
        assert [row.id async for row in database.iterate("SELECT id FROM mine")] == [7]


async def test_a_connection_that_is_not_checked_out_says_so(database: Database) -> None:
    connection = database.connection()
    with pytest.raises(ReleasedError, match="has not been entered"):
        await connection.fetch_val("SELECT 1")
    for _ in range(2):
        async with connection:
            assert await connection.fetch_val("SELECT 1") == 1
    with pytest.raises(ReleasedError, match=r"test_connections\.py:\d+\) has been released"):
        await connection.fetch_val("SELECT 1")


async def test_children_work_in_the_transaction_of_the_connection_they_are_handed(
    database: Database,
) -> None:
    async with database.transaction(force_rollback=True):
        connection = database.connection()
        writes = (connection.execute(INSERT, {"id": n}) for n in range(5))
        reads = (connection.fetch_all("SELECT * FROM things") for _ in range(5))
        await asyncio.gather(*writes, *reads)
        assert await database.fetch_val(COUNT) == 5
        assert await asyncio.create_task(database.fetch_val(COUNT)) == 5
    assert await database.fetch_val(COUNT) == 0


async def test_rows_are_streamed_and_written_on_one_connection_at_once(database: Database) -> None:
    async with database.transaction() as transaction:
        await database.execute_many(INSERT, [{"id": n} for n in range(1200)])

        async def read() -> int:
            return len(
                [row async for row in transaction.connection.iterate("SELECT * FROM things")]
            )

        counts = await asyncio.gather(read(), read(), transaction.connection.fetch_val(COUNT))
    assert set(counts) == {1200}


async def test_transactions_of_children_on_one_connection_wait_for_each_other(
    database: Database,
) -> None:
    order: list[str] = []

    async def work(connection: Connection, name: str) -> None:
        async with connection.transaction():
            order.append(name)
            await asyncio.sleep(0.03)
            order.append(name)

    async with database.connection() as connection, connection.transaction():
        await asyncio.gather(*(work(connection, name) for name in "abc"))
    assert order == ["a", "a", "b", "b", "c", "c"]


async def test_a_child_that_outlives_the_block_keeps_what_it_has_entered(
    database: Database,
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def stay(connection: Connection) -> Any:
        async with connection:
            entered.set()
            await go_on.wait()
            return await connection.fetch_val("SELECT 3")

    async with database.connection() as connection:
        child = asyncio.create_task(stay(connection))
        await entered.wait()
    go_on.set()
    assert await child == 3
    assert database.stats().in_use == 0


async def test_transactions_end_from_the_inside_out(database: Database) -> None:
    outer = await database.transaction()
    inner = await database.transaction()
    await database.execute(INSERT, {"id": 1})
    with pytest.raises(TransactionError, match="another one open inside"):
        await outer.commit()
    await outer.rollback()
    with pytest.raises(TransactionError, match="was undone with the one around it"):
        await inner.commit()
    assert await database.fetch_val(COUNT) == 0
    assert database.stats().in_use == 0


async def test_what_the_handle_does_while_it_streams_is_not_undone_with_the_reading(
    database: Database,
) -> None:
    await database.execute(INSERT, {"id": 1})
    async with database.connection():
        async for row in database.iterate("SELECT * FROM things"):
            await database.execute(INSERT, {"id": row.id + 1})
            break
    assert await database.fetch_val(COUNT) == 2


async def test_streams_left_half_way_leave_nothing_in_the_context(database: Database) -> None:
    await database.execute(INSERT, {"id": 1})
    for _ in range(20):
        async for _row in database.iterate("SELECT * FROM things"):
            break
        while database.stats().in_use:  # noqa: ASYNC110 (the collector closes it)
            await asyncio.sleep(0.001)
    async with database.connection():
        assert len(ancestry._blocks.get()) <= 3  # noqa: SLF001
