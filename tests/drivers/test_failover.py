"""A primary that takes no writes any more is left, where ``target_session_attrs`` asks for one that does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database
from loopsafe_db.testing.postgres import EmbeddedPostgres
from tests.conftest import SCOPE, skip_without_postgres

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Way = Callable[[Database], Awaitable[Any]]

PID = "SELECT pg_backend_pid()"
INSERT = "INSERT INTO writes VALUES (1)"
DEMOTE = "ALTER SYSTEM SET default_transaction_read_only = on"
PROMOTE = "ALTER SYSTEM RESET default_transaction_read_only"


async def on(url: sa.URL, *statements: str) -> Any:
    """Run them as somebody who may write in any case; the last one's value."""
    settings = {"default_transaction_read_only": "off"}
    async with Database(url, scope="loop", server_settings=settings) as admin:
        return [await admin.execute(statement) for statement in statements][-1]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[sa.URL, sa.URL]]:
    """Two that know the same user."""
    with skip_without_postgres(), EmbeddedPostgres() as first, EmbeddedPostgres() as second:
        urls = sa.make_url(first.url), sa.make_url(second.url)
        for url in urls:
            role = "CREATE ROLE writer SUPERUSER LOGIN PASSWORD 'pw'"
            asyncio.run(on(url, role, "CREATE TABLE writes (n int)"))
        yield urls


@pytest.fixture(params=["asyncpg", "psycopg"])
def database(request: pytest.FixtureRequest, servers: tuple[sa.URL, sa.URL]) -> Iterator[Database]:
    first, second = servers
    query = {
        "host": f"{first.host},{second.host}",
        "port": f"{first.port},{second.port}",
        "target_session_attrs": "read-write",
    }
    url = sa.URL.create(
        f"postgresql+{request.param}", "writer", "pw", database=first.database, query=query
    )
    yield Database(url, scope=SCOPE)
    asyncio.run(fail_back(first))
    asyncio.run(on(second, "TRUNCATE writes"))


async def fail_over(first: sa.URL) -> None:
    await on(first, DEMOTE, "SELECT pg_reload_conf()")
    while True:  # until each backend has heard of it
        async with Database(first, scope="loop") as new:
            if await new.fetch_val("SHOW default_transaction_read_only") == "on":
                return


async def fail_back(first: sa.URL) -> None:
    await on(first, PROMOTE, "SELECT pg_reload_conf()")


async def by_text(database: Database) -> None:
    await database.execute(INSERT)


async def by_clause(database: Database) -> None:
    await database.execute(sa.text(INSERT))


async def by_many(database: Database) -> None:
    await database.execute_many("INSERT INTO writes VALUES (:n)", [{"n": 1}])


async def by_session(database: Database) -> None:
    async with database.session.begin() as session:
        await session.execute(sa.text(INSERT))


async def in_transaction(database: Database) -> None:
    async with database.transaction():
        await database.fetch_val("SELECT 1")
        await database.execute(INSERT)


@pytest.mark.parametrize("way", [by_text, by_clause, by_many, by_session, in_transaction])
async def test_the_next_call_finds_the_new_primary(
    database: Database, servers: tuple[sa.URL, sa.URL], way: Way
) -> None:
    first, second = servers
    port = "SELECT inet_server_port()"
    both = asyncio.Barrier(2)

    async def hold() -> Any:
        async with database.transaction():
            await both.wait()
            return await database.fetch_val(port)

    assert {*await asyncio.gather(hold(), hold())} == {first.port}  # two connections
    await fail_over(first)
    failed = []
    for _ in range(4):
        try:
            await way(database)
        except Exception as error:  # noqa: BLE001 (SQLAlchemy's or the driver's)
            failed.append(str(error))

    assert len(failed) == 1
    assert "read-only" in failed[0]
    assert await on(second, "SELECT count(*) FROM writes") == 3
    assert {*await asyncio.gather(hold(), hold())} == {second.port}  # the other one, too
    await database.disconnect()


async def test_what_the_user_made_read_only_stays(database: Database) -> None:
    async with database.connection():
        pid = await database.fetch_val(PID)
        with pytest.raises(Exception, match="read-only"):
            async with database.transaction(readonly=True):
                await by_text(database)
    assert await database.fetch_val(PID) == pid
    async with database.connection():
        await database.execute("SET default_transaction_read_only = on")
        with pytest.raises(Exception, match="read-only"):
            await by_text(database)
        await database.execute("SET default_transaction_read_only = off")
    assert await database.fetch_val(PID) == pid
    assert database.stats().opened == 1
    await database.disconnect()
