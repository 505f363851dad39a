"""No two connections, of any process, call a prepared statement by the same name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database
from loopsafe_db.testing import call_in_child
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

OFTEN = 7  # psycopg prepares what it has seen five times


async def by_text(database: Database, number: int) -> None:
    await database.fetch_val("SELECT CAST(:n AS int)", {"n": number})


async def by_execute_many(database: Database, number: int) -> None:
    await database.execute_many("INSERT INTO things VALUES (:n)", [{"n": number}] * OFTEN)


async def by_clause(database: Database, number: int) -> None:
    await database.fetch_val(sa.select(sa.literal(number)))


async def by_cursor(database: Database, number: int) -> None:
    async for _ in database.iterate("SELECT CAST(:n AS bigint)", {"n": number}):
        pass


WAYS = [by_text, by_execute_many, by_clause, by_cursor]


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, postgres_url: str) -> str:
    made = sa.make_url(postgres_url).set(drivername=f"postgresql+{request.param}")

    async def make_table() -> None:
        async with Database(made, scope="loop") as other:
            await other.execute("CREATE TABLE things (n int)")

    asyncio.run(make_table())
    return made.render_as_string(hide_password=False)


async def names(
    database: Database | str, way: Callable[[Database, int], Awaitable[None]]
) -> set[str]:
    """Prepare something on a connection, and give the names that its server has then."""
    if isinstance(database, str):
        database = Database(database, scope=SCOPE)
    async with database.connection() as connection:
        for number in range(OFTEN):
            await way(database, number)
        rows = await connection.fetch_all("SELECT name FROM pg_prepared_statements")
    return {str(row[0]) for row in rows}


@pytest.mark.parametrize("way", WAYS)
def test_each_process_and_connection_has_its_own(url: str, way: Any) -> None:
    database = Database(url, scope=SCOPE, max_size=3)

    async def two_connections() -> tuple[set[str], set[str]]:
        return await asyncio.gather(names(database, way), names(database, way))

    seen = [
        *asyncio.run(two_connections()),
        call_in_child(lambda: asyncio.run(names(database, way)), start_method="fork"),
        call_in_child(names, url, way, start_method="spawn"),
        call_in_child(names, url, way, start_method="spawn"),
    ]

    if (by_cursor, "psycopg") != (way, sa.make_url(url).get_driver_name()):  # its cursors are not
        assert all(seen)
    assert len(set().union(*seen)) == sum(map(len, seen))
