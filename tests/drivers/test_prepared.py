"""What a connection has prepared may be gone or outdated: at most one failure in a transaction, none outside of one."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Way = Callable[[Database], Awaitable[Any]]

OFTEN = 7  # psycopg prepares what it has seen five times
EVERYTHING = "SELECT * FROM things"


class Colour(enum.Enum):
    """The type that is made anew."""

    red = 1


things = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.Integer),
    sa.Column("colour", sa.Enum(Colour, name="colour")),
)
everything = sa.select(sa.text("*")).select_from(sa.text("things"))


@pytest.fixture(params=["asyncpg", "psycopg"])
def database(request: pytest.FixtureRequest, postgres_url: str) -> Database:
    url = sa.make_url(postgres_url).set(drivername=f"postgresql+{request.param}")
    return Database(url, scope=SCOPE, max_size=1)


async def other(database: Database, *statements: str) -> None:
    """Run them on a connection that nobody else has."""
    async with Database(database.url, scope="loop") as admin:
        for statement in statements:
            await admin.execute(statement)


async def failures(database: Database, way: Way, times: int = 4) -> list[str]:
    failed = []
    for _ in range(times):
        try:
            await way(database)
        except Exception as error:  # noqa: BLE001 (any is counted)
            failed.append(f"{type(error).__name__}: {error}")
    return failed


# -- gone: DISCARD ALL, DEALLOCATE ALL


async def by_execute(database: Database, sql: str) -> None:
    await database.execute(sql)


async def by_fetch(database: Database, sql: str) -> None:
    await database.fetch_all(sql)


async def by_clause(database: Database, sql: str) -> None:
    await database.execute(sa.text(sql))


async def by_script(database: Database, sql: str) -> None:
    await database.execute("SELECT 1; DEALLOCATE ALL" if sql.startswith("DEALL") else sql)


async def by_raw_connection(database: Database, sql: str) -> None:
    async with database.connection() as connection:
        await connection.raw_connection.execute(sql)


async def by_engine(database: Database, sql: str) -> None:
    engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(sa.text(sql))


async def ask_text(database: Database) -> None:
    assert await database.fetch_val("SELECT CAST(:n AS int)", {"n": 5}) == 5


async def ask_execute(database: Database) -> None:
    assert await database.execute("SELECT CAST(:n AS int) + 1", {"n": 5}) == 6


async def ask_clause(database: Database) -> None:
    assert await database.fetch_val(sa.select(sa.literal(5))) == 5


async def ask_many(database: Database) -> None:
    await database.execute_many("SELECT CAST(:n AS bigint)", [{"n": 1}, {"n": 2}])


async def ask_stream(database: Database) -> None:
    query = "SELECT n FROM generate_series(1, :n) AS n"
    assert [row[0] async for row in database.iterate(query, {"n": 3})] == [1, 2, 3]


async def ask_session(database: Database) -> None:
    async with database.session() as session:
        assert await session.scalar(sa.select(sa.literal(7))) == 7
        await session.commit()


async def ask_in_transaction(database: Database) -> None:
    async with database.transaction():
        await ask_text(database)
        await ask_clause(database)


ASKS = (ask_text, ask_execute, ask_clause, ask_many, ask_stream, ask_session, ask_in_transaction)
OUTSIDE = (ask_text, ask_execute, ask_clause, ask_many)


@pytest.mark.parametrize("sql", ["DISCARD ALL", "DEALLOCATE ALL", " deallocate all"])
@pytest.mark.parametrize(
    "way", [by_execute, by_fetch, by_clause, by_script, by_raw_connection, by_engine]
)
async def test_what_was_discarded_is_prepared_again(
    database: Database, way: Callable[[Database, str], Awaitable[None]], sql: str
) -> None:
    # asyncpg tells of no answer where rows are wanted: it is noticed by the next statement
    asks = OUTSIDE if way is by_fetch and database.url.driver == "asyncpg" else ASKS
    for _ in range(2):
        for ask in ASKS:
            assert await failures(database, ask, OFTEN) == []
        await way(database, sql)
        for ask in asks:
            assert await failures(database, ask) == []
    assert database.stats().opened == 1


@pytest.mark.parametrize("ask", OUTSIDE)
async def test_what_is_discarded_behind_our_back_is_prepared_again(
    database: Database, ask: Way
) -> None:
    assert await failures(database, ask, OFTEN) == []
    await database.execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ' || 'ALL'; END $$")
    assert await failures(database, ask) == []


# -- outdated: a type made anew

MAKE = (
    "CREATE TYPE colour AS ENUM ('red', 'blue')",
    "CREATE TABLE things (id serial, colour colour)",
    "INSERT INTO things (colour) VALUES ('red')",
)
SWAP = (
    "ALTER TYPE colour RENAME TO old_colour",
    "CREATE TYPE colour AS ENUM ('red', 'blue', 'green')",
    "ALTER TABLE things ALTER COLUMN colour TYPE colour USING colour::text::colour",
    "DROP TYPE old_colour",
)


async def insert(database: Database) -> None:
    await database.execute("INSERT INTO things (colour) VALUES (:c)", {"c": "red"})


async def insert_many(database: Database) -> None:
    query = "INSERT INTO things (id, colour) VALUES (7, :c)"
    await database.execute_many(query, [{"c": "red"}, {"c": "blue"}])


async def insert_clause(database: Database) -> None:
    await database.execute(sa.insert(things).values(id=8, colour=Colour.red))


async def count(database: Database) -> None:
    query = "SELECT count(*) FROM things WHERE colour = :c"
    assert await database.fetch_val(query, {"c": "red"}) > 0


async def read(database: Database) -> None:
    query = "SELECT colour FROM things WHERE id = :id"
    assert await database.fetch_val(query, {"id": 1}) == "red"


async def select_clause(database: Database) -> None:
    query = sa.select(things.c.colour).where(things.c.colour == Colour.red)
    assert await database.fetch_val(query) is Colour.red


async def insert_in_transaction(database: Database) -> None:
    async with database.transaction():
        await insert(database)
        await insert_clause(database)


async def insert_in_session(database: Database) -> None:
    async with database.session.begin() as session:
        await session.execute(sa.insert(things).values(id=9, colour=Colour.red))


@pytest.mark.parametrize(
    ("way", "most"),
    [
        *((way, 0) for way in (insert, insert_many, insert_clause, count, read, select_clause)),
        (insert_in_transaction, 1),
        (insert_in_session, 1),
    ],
)
async def test_a_type_that_was_made_anew_is_found(database: Database, way: Way, most: int) -> None:
    await other(database, *MAKE)
    assert await failures(database, way, OFTEN) == []
    await other(database, *SWAP)
    assert len(await failures(database, way)) <= most
    assert await failures(database, way) == []
    assert database.stats().opened == 1


# -- outdated: a table of another shape


async def rows_of_text(database: Database) -> list[Any]:
    return await database.fetch_all(EVERYTHING)


async def rows_of_clause(database: Database) -> list[Any]:
    return await database.fetch_all(everything)


async def rows_of_stream(database: Database) -> list[Any]:
    return [row async for row in database.iterate(EVERYTHING)]


async def rows_of_clauses_stream(database: Database) -> list[Any]:
    return [row async for row in database.iterate(everything)]


async def rows_of_execute(database: Database) -> list[Any]:
    await database.execute("UPDATE things SET a = a RETURNING *")
    return await database.fetch_all(EVERYTHING)


@pytest.fixture
def tenants(database: Database) -> Database:
    asyncio.run(
        other(
            database,
            "CREATE SCHEMA a",
            "CREATE SCHEMA b",
            "CREATE TABLE a.things (a int)",
            "CREATE TABLE b.things (a int, b text)",
            "INSERT INTO a.things VALUES (1)",
            "INSERT INTO b.things VALUES (1, 'x')",
        )
    )
    return database


ROWS = [rows_of_text, rows_of_clause, rows_of_stream, rows_of_clauses_stream, rows_of_execute]


@pytest.mark.parametrize("way", ROWS)
@pytest.mark.parametrize("streak", [1, OFTEN])
def test_one_text_serves_tables_of_other_shapes(
    tenants: Database, way: Callable[[Database], Awaitable[list[Any]]], streak: int
) -> None:
    async def ask(tenant: str, width: int) -> None:
        async with tenants.transaction():
            await tenants.execute(f"SET LOCAL search_path = {tenant}")
            assert [len(row) for row in await way(tenants)] == [width]

    async def ask_both() -> int:
        failed = 0
        for turn in range(4 * streak):
            tenant, width = (("a", 1), ("b", 2))[turn // streak % 2]
            failed += len(await failures(tenants, lambda _, t=tenant, w=width: ask(t, w), 1))  # type: ignore[misc]
        await tenants.disconnect()
        return failed

    texts = 2 if way is rows_of_execute else 1
    assert asyncio.run(ask_both()) <= texts
    assert tenants.stats().opened == 1


@pytest.mark.parametrize("way", ROWS[:4])
def test_no_failure_outside_of_a_transaction(
    tenants: Database, way: Callable[[Database], Awaitable[list[Any]]]
) -> None:
    async def ask_both() -> None:
        async with tenants.connection() as connection:
            for turn in range(4 * OFTEN):
                tenant, width = (("a", 1), ("b", 2))[turn // OFTEN % 2]
                await connection.execute(f"SET search_path = {tenant}")
                assert [len(row) for row in await way(tenants)] == [width]
        await tenants.disconnect()

    asyncio.run(ask_both())
    assert tenants.stats().opened == 1


async def test_a_row_that_was_written_is_not_written_again(database: Database) -> None:
    make = (
        "CREATE TYPE pair AS (x int, y int)",
        "CREATE TABLE pairs (p pair)",
        "INSERT INTO pairs VALUES (ROW(1, 2))",
        "CREATE TABLE things (id int)",
    )
    await other(database, *make)
    query = "INSERT INTO things VALUES (1) RETURNING (SELECT p FROM pairs)"
    for ask in (query, sa.text(query)):
        for _ in range(OFTEN):
            await database.fetch_all(ask)
    await other(database, "ALTER TYPE pair ADD ATTRIBUTE z int")
    for ask in (query, sa.text(query)):
        # asyncpg finds out in the answer: the row is there
        assert len(await failures(database, lambda _, ask=ask: database.fetch_all(ask))) <= 1  # type: ignore[misc]
    assert await database.fetch_val("SELECT count(*) FROM things") == 2 * (OFTEN + 4)
