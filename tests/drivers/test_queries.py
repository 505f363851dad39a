"""Queries, rows and transactions mean the same on every driver."""

from __future__ import annotations

import asyncio
import contextvars
import pickle
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import sqlalchemy as sa

from loopsafe_db import Database, PoolLimits, Timeouts
from loopsafe_db.errors import (
    AcquireTimeout,
    ForeignTaskError,
    QueryError,
    ReleasedError,
    StatementTimeout,
)
from loopsafe_db.testing.conformance import SLOW
from tests.conftest import anyio_timeout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from loopsafe_db import Connection

table = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, default=lambda: "by default"),
    sa.Column("data", sa.JSON),
)


async def make_table(database: Database) -> None:
    await database.execute("DROP TABLE IF EXISTS things")
    await database.execute(sa.schema.CreateTable(table))


async def test_a_row_is_mapping_tuple_and_has_attributes(database: Database) -> None:
    row = await database.fetch_one("SELECT 1 AS a, 'x' AS b")
    assert row is not None
    a, b = row
    assert (a, b) == (row["a"], row["b"]) == (row[0], row[1]) == (row.a, row.b) == (1, "x")
    assert dict(row) == {"a": 1, "b": "x"} == dict(**row)
    assert pickle.loads(pickle.dumps(row)) == row
    with pytest.raises(AttributeError, match="no column 'c'"):
        _ = row.c


async def test_named_parameters_may_repeat_and_casts_are_not_parameters(database: Database) -> None:
    query = "SELECT CAST(:x AS int) + CAST(:y AS int) * CAST(:x AS int) AS n"
    assert await database.fetch_val(query, {"x": 2, "y": 3}) == 8


@pytest.mark.parametrize("values", [{}, {"x": 1, "z": 2}, None])
async def test_values_that_do_not_fit_are_refused(
    database: Database, values: dict[str, int] | None
) -> None:
    with pytest.raises(QueryError, match="LDB108"):
        await database.fetch_val("SELECT :x", values)


async def test_clauses_keep_defaults_keys_and_types(database: Database) -> None:
    await make_table(database)
    key = await database.execute(table.insert().values(data={"k": [1]}))
    row = await database.fetch_one(table.select().where(table.c.id == key))
    assert row is not None
    assert (row.name, row.data) == ("by default", {"k": [1]})
    assert await database.execute(table.update().values(name="n")) == 1
    assert await database.execute("UPDATE things SET name = :n", {"n": "m"}) == 1
    assert (
        await database.execute("DELETE FROM things WHERE id = :i RETURNING name", {"i": key}) == "m"
    )


async def test_execute_many_is_all_or_nothing(database: Database) -> None:
    await make_table(database)
    insert = "INSERT INTO things (id, name) VALUES (:id, :name)"
    with pytest.raises(Exception, match=r"(?i)unique"):
        await database.execute_many(insert, [{"id": i % 3, "name": "x"} for i in range(4)])
    assert await database.fetch_val("SELECT count(*) FROM things") == 0
    await database.execute_many(insert, [{"id": i, "name": "x"} for i in range(1500)])
    assert [row.id async for row in database.iterate("SELECT id FROM things ORDER BY id")] == [
        *range(1500)
    ]


async def test_a_clause_is_streamed_as_text_is(database: Database) -> None:
    await make_table(database)
    await database.execute_many(table.insert(), [{"id": n, "data": [n]} for n in range(1200)])
    seen = []
    async for row in database.iterate(table.select().order_by(table.c.id)):
        seen.append((row.id, row["data"]))
        if len(seen) == 700:
            break
    assert seen == [(n, [n]) for n in range(700)]
    assert await database.fetch_val(sa.select(sa.func.count()).select_from(table)) == 1200


async def test_what_is_done_while_rows_are_read_is_not_undone_with_the_reading(
    postgres_url: str,
) -> None:
    database = Database(postgres_url)
    await make_table(database)
    async for row in database.iterate("SELECT 7 AS id UNION SELECT 8 ORDER BY id"):
        await database.execute("INSERT INTO things (id) VALUES (:id)", {"id": row.id})
        break
    assert await database.fetch_val("SELECT id FROM things") == 7


async def test_a_transaction_is_joined_by_its_task_and_those_started_inside(
    database: Database,
) -> None:
    await make_table(database)

    async def count() -> int:
        return int(await database.fetch_val("SELECT count(*) FROM things"))

    async with database.transaction():
        await database.execute("INSERT INTO things (id) VALUES (1)")
        assert await count() == 1
        assert await asyncio.create_task(count()) == 1
        assert await asyncio.create_task(count(), context=contextvars.Context()) == 0
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with database.transaction():
                await database.execute("INSERT INTO things (id) VALUES (2)")
                raise ZeroDivisionError
        assert await count() == 1
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with database.transaction():
            await database.execute("DELETE FROM things")
            raise ZeroDivisionError
    assert await asyncio.create_task(count()) == 1


async def test_a_transaction_that_nobody_ended_is_undone_at_release(database: Database) -> None:
    await make_table(database)
    async with database.connection() as connection:
        forgotten = await connection.transaction()
        await connection.execute("INSERT INTO things (id) VALUES (1)")
    del forgotten  # of a block that has ended, nothing is open any more
    async with database.transaction():
        await database.execute("INSERT INTO things (id) VALUES (2)")
    assert [row.id for row in await database.fetch_all("SELECT id FROM things")] == [2]


async def test_a_shared_connection_joins_the_transaction(database: Database) -> None:
    await make_table(database)

    async def child(connection: Connection) -> int:
        async with connection.share():
            return int(await database.fetch_val("SELECT count(*) FROM things"))

    async with database.transaction() as transaction:
        connection = transaction.connection
        await database.execute("INSERT INTO things (id) VALUES (1)")
        assert await asyncio.gather(*(child(connection) for _ in range(3))) == [1, 1, 1]


async def test_a_connection_used_by_a_stranger_names_both_tasks_and_the_place(
    database: Database,
) -> None:
    shown: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    async def steal() -> None:
        await (await shown).fetch_val("SELECT 1")

    thief = asyncio.create_task(steal(), name="the-thief")
    async with database.connection() as connection:
        shown.set_result(connection)
        with pytest.raises(ForeignTaskError) as caught:
            await thief
    text = str(caught.value)
    assert "the-thief" in text
    assert f"{__file__}:" in text
    with pytest.raises(ReleasedError, match="LDB103"):
        await connection.fetch_val("SELECT 1")


async def test_a_full_pool_says_who_holds_what(database: Database) -> None:
    small = Database(database.url, pool=PoolLimits(1), timeouts=Timeouts(acquire=0.05))
    async with small.connection():
        with pytest.raises(AcquireTimeout, match=r"test_queries\.py:"):
            await asyncio.create_task(small.fetch_val("SELECT 1"))
    assert await small.fetch_val("SELECT 1") == 1


async def test_cancelled_queries_leave_a_usable_pool(postgres_url: str) -> None:
    database = Database(postgres_url, pool=PoolLimits(2))

    async def job(number: int) -> int:
        async with asyncio.timeout(0.001 * (number % 7)):
            return int(await database.fetch_val("SELECT 1 FROM pg_sleep(0.003)"))

    await asyncio.gather(*(job(number) for number in range(60)), return_exceptions=True)
    assert await asyncio.gather(*(database.fetch_val("SELECT 7") for _ in range(9))) == [7] * 9
    assert database.stats().in_use == 0


async def run_text(database: Database, query: str) -> None:
    await database.fetch_val(query)


async def run_clause(database: Database, query: str) -> None:
    await database.fetch_val(sa.text(query))


async def run_transaction(database: Database, query: str) -> None:
    async with database.transaction():
        await database.fetch_val(query)
        await database.fetch_val(sa.text(query))


async def run_session(database: Database, query: str) -> None:
    async with database.session() as session:
        await session.execute(sa.text(query))


async def run_joined_session(database: Database, query: str) -> None:
    async with database.transaction(), database.session.begin() as session:
        await session.execute(sa.text(query))


async def run_engine(database: Database, query: str) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(sa.text(query))


@pytest.mark.parametrize("timeout", [asyncio.timeout, anyio_timeout])
@pytest.mark.parametrize(
    "run", [run_text, run_clause, run_transaction, run_session, run_joined_session, run_engine]
)
async def test_a_query_that_is_cut_off_is_stopped_and_costs_no_connection(
    database: Database,
    run: Callable[[Database, str], Awaitable[None]],
    timeout: Callable[[float], AbstractAsyncContextManager[Any]],
) -> None:
    await database.fetch_val("SELECT 1")
    for number in range(8):
        with pytest.raises(TimeoutError):
            async with timeout(0.01 + number / 1000):
                await run(database, SLOW[database.url.get_backend_name()])
    async with asyncio.timeout(2):  # that query would take longer
        assert await database.fetch_val("SELECT 1") == 1
    if run is not run_joined_session or not sa.__version__.startswith("2.0."):
        assert database.stats().opened == 1


async def lock_by_text(database: Database, lock: str, query: str) -> None:
    async with database.connection() as connection:
        await connection.execute(lock)
        await connection.execute(query)


async def lock_by_engine(database: Database, lock: str, query: str) -> None:
    async with database.engine.connect() as connection:
        await connection.execute(sa.text(lock))
        await connection.execute(sa.text(query))


@pytest.mark.parametrize("lock", [lock_by_text, lock_by_engine])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_who_is_cut_off_leaves_no_lock_of_the_session(
    postgres_url: str, driver: str, lock: Callable[[Database, str, str], Awaitable[None]]
) -> None:
    url = sa.make_url(postgres_url).set(drivername=f"postgresql+{driver}")
    database, other = Database(url), Database(url)
    await database.connect()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await lock(database, "SELECT pg_advisory_lock(7)", SLOW["postgresql"])
    assert await other.fetch_val("SELECT pg_try_advisory_lock(7)")
    assert database.stats().opened == 1


async def test_whoever_gives_up_while_connecting_leaves_no_socket(database: Database) -> None:
    kept = []  # as a log may keep what it has seen, or a debugger
    before = set(psutil.Process().net_connections())
    for number in range(60):
        hasty = Database(database.url)
        try:
            async with asyncio.timeout(number % 30 / 5000):
                await hasty.fetch_val("SELECT 1")
        except TimeoutError as error:
            kept.append(error)
        await hasty.disconnect()
    await asyncio.sleep(0.1)
    assert set(psutil.Process().net_connections()) <= before
    assert kept


async def test_a_statement_that_takes_too_long_is_stopped(postgres_url: str) -> None:
    database = Database(postgres_url, pool=PoolLimits(1))
    with pytest.raises(StatementTimeout, match="LDB404"):
        await database.fetch_val("SELECT pg_sleep(60)", timeout=0.1)
    assert await database.fetch_val("SELECT 1") == 1


async def test_the_row_of_a_clause_knows_its_columns(database: Database) -> None:
    parents = sa.Table(
        "parents", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("n", sa.Integer)
    )
    children = sa.Table("children", sa.MetaData(), sa.Column("id", sa.Integer))
    for table in (parents, children):
        await database.execute(sa.schema.CreateTable(table))
    await database.execute(parents.insert().values(id=1, n=7))
    await database.execute(children.insert().values(id=2))
    columns = parents.c.id, children.c.id, parents.c.n.label("number")
    query = sa.select(*columns).where(parents.c.id != children.c.id)

    (row,) = await database.fetch_all(query)
    (streamed,) = [row async for row in database.iterate(query)]

    for one in (row, streamed):
        assert [one[column] for column in columns] == [1, 2, 7]
        assert (one["number"], one.number, one[2], tuple(one)) == (7, 7, 7, (1, 2, 7))
    assert await database.fetch_val(query, column=children.c.id) == 2
    assert pickle.loads(pickle.dumps(row)) == row
    with pytest.raises(KeyError):
        row[children.c.id.label("other")]
    with pytest.raises(QueryError):
        await database.fetch_val(sa.select(parents.c.id), column=parents.c.n)
    with pytest.raises(KeyError):
        (await database.fetch_all("SELECT 1 AS id"))[0][parents.c.id]
