"""COPY by text: what needs the client's rows is refused before anything is sent; the server's own works."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import make_url

from loopsafe_db import Database
from loopsafe_db.errors import CopyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REFUSED = [
    "COPY things FROM STDIN",
    "copy things (n)\n  from stdin with (format csv)",
    "COPY (SELECT n FROM things WHERE n IN (1, 2)) TO STDOUT",
    "/* a comment /* nests */ */ COPY things TO -- here\n STDOUT",
    "INSERT INTO things VALUES (9); COPY things TO STDOUT; SELECT 1",
]
ALLOWED = [
    "SELECT 'COPY things FROM STDIN'",
    "SELECT 1 AS copy; SELECT $$; COPY things TO STDOUT; $$",
    "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null'",
    "COPY (SELECT n FROM stdin) TO '/dev/null' -- TO STDOUT",
    "COPY \"to stdout\" TO '/dev/null'",
]


@pytest.fixture(params=["asyncpg", "psycopg"])
async def handle(request: pytest.FixtureRequest, postgres_url: str) -> AsyncIterator[Database]:
    handle = Database(
        make_url(postgres_url).set(drivername=f"postgresql+{request.param}"), max_size=1
    )
    for name in ("things", "stdin", '"to stdout"'):
        await handle.execute(f"CREATE TABLE {name} (n integer)")
    yield handle
    assert (await handle.fetch_val("SELECT 7"), handle.stats().opened) == (7, 1)
    await handle.disconnect()


@pytest.mark.parametrize("text", REFUSED)
async def test_what_needs_the_clients_rows_is_refused(handle: Database, text: str) -> None:
    queries: list[Any] = [text, sa.text(text)]
    for query in queries:
        with pytest.raises(CopyError, match="raw_connection"):
            await handle.execute(query)
        with pytest.raises(CopyError):
            await handle.fetch_all(query)
        with pytest.raises(CopyError):
            await handle.fetch_val(query)
        with pytest.raises(CopyError):
            await handle.execute_many(query, [{}])
        with pytest.raises(CopyError):
            async for _ in handle.iterate(query):
                pass


@pytest.mark.parametrize("text", REFUSED)
async def test_a_transaction_is_not_aborted_by_it(handle: Database, text: str) -> None:
    async with handle.transaction():
        await handle.execute("INSERT INTO things VALUES (1)")
        with pytest.raises(CopyError):
            await handle.execute(text)
        with pytest.raises(CopyError):
            await handle.execute(sa.text(text))
        async with handle.session() as session:
            with pytest.raises(CopyError):
                await session.execute(sa.text(text))
            await session.execute(sa.text("INSERT INTO things VALUES (2)"))
            await session.commit()
    async with handle.engine.begin() as connection:
        with pytest.raises(CopyError):
            await connection.exec_driver_sql(text)

    assert await handle.fetch_val("SELECT sum(n) FROM things") == 3


@pytest.mark.parametrize("text", ALLOWED)
async def test_what_only_looks_like_it_or_is_the_servers_runs(handle: Database, text: str) -> None:
    await handle.execute(text)
    await handle.execute(sa.text(text.partition(";")[0]))


async def test_the_drivers_own_methods_are_the_way(handle: Database) -> None:
    async with handle.connection() as connection:
        raw = connection.raw_connection
        if handle.url.drivername.endswith("asyncpg"):
            await raw.copy_to_table("things", source=io.BytesIO(b"1\n2\n"))
        else:
            async with raw.cursor() as cursor, cursor.copy("COPY things FROM STDIN") as copy:
                await copy.write(b"1\n2\n")

    assert await handle.fetch_val("SELECT sum(n) FROM things") == 3
