"""A table is altered while connections have plans for it: what may be asked again is, once; nothing stays stale."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import NotSupportedError

from loopsafe_db import Database, PoolLimits
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from loopsafe_db.testing.servers import PostgresServer

    Ask = Callable[[Any], Awaitable[Any]]

OFTEN = 8  # after five times psycopg prepares a query, and the server makes a generic plan
CHANGES = {
    "added column": "ALTER TABLE meetings ADD COLUMN seats int NOT NULL DEFAULT 7",
    "changed type": "ALTER TABLE meetings ALTER COLUMN room TYPE text",
}
AFTER = {"added column": (1, 2, 7), "changed type": (1, "2")}
EVERYTHING = "SELECT * FROM meetings WHERE id > :id"
meetings = sa.table("meetings", sa.column("id", sa.Integer), sa.column("room"))
ONE = {"id": 0}


async def by_fetch_all(asked: Any) -> Any:
    return tuple((await asked.fetch_all(EVERYTHING, ONE))[0])


async def by_fetch_one(asked: Any) -> Any:
    return tuple(await asked.fetch_one(EVERYTHING, ONE))


async def by_fetch_val(asked: Any) -> Any:
    return await asked.fetch_val(f"{EVERYTHING} ORDER BY id", ONE, "id")


async def by_execute(asked: Any) -> Any:
    return await asked.execute("UPDATE meetings SET id = id WHERE id > :id RETURNING *", ONE)


async def by_clause(asked: Any) -> Any:
    return tuple((await asked.fetch_all(sa.select(meetings).where(meetings.c.id > 0)))[0])


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, postgres_url: str) -> sa.URL:
    """A database with one row, for each driver that prepares statements."""
    made = sa.make_url(postgres_url).set(drivername=f"postgresql+{request.param}")
    asyncio.run(run(made, "CREATE TABLE meetings (id int PRIMARY KEY, room int)"))
    asyncio.run(run(made, "INSERT INTO meetings VALUES (1, 2)"))
    return made


async def run(url: sa.URL, statement: str) -> None:
    """Run it on a connection that nobody else has."""
    async with Database(url, scope="loop") as other:
        await other.execute(statement)


def handle(url: sa.URL, connections: int = 1) -> Database:
    return Database(url, pool=PoolLimits(max_connections=connections), scope=SCOPE)


async def warm(database: Database, *asks: Ask) -> None:
    for ask in asks:
        for _ in range(OFTEN):
            await ask(database)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("ask", [by_fetch_all, by_fetch_one, by_fetch_val, by_execute])
async def test_text_is_asked_again_outside_a_transaction(
    url: sa.URL, change: str, ask: Ask
) -> None:
    database = handle(url)
    await warm(database, ask)
    await run(url, CHANGES[change])

    for _ in range(3):
        assert await ask(database) in (1, AFTER[change])
    assert database.stats().opened == 1  # whatever was prepared is forgotten
    assert database.stats().in_use == 0


@pytest.mark.parametrize("change", CHANGES)
def test_every_loop_and_thread_goes_on(
    url: sa.URL, change: str, postgres_server: PostgresServer
) -> None:
    count = 3
    database, together = handle(url, count), threading.Barrier(count + 1, timeout=60)
    asks = (by_fetch_all, by_fetch_one, by_fetch_val)
    asyncio.run(begin_and_end(database))

    def thread(_: int) -> list[Any]:
        with asyncio.Runner() as runner:
            runner.run(hold(database, together, asks))
            together.wait()  # all have plans
            together.wait()  # the table is altered
            return [runner.run(ask(database)) for ask in asks for _ in range(2)]

    with ThreadPoolExecutor(count) as threads:
        answers = threads.map(thread, range(count))
        together.wait()  # all have a connection
        together.wait()
        asyncio.run(run(url, CHANGES[change]))
        before = rolled_back(postgres_server, url)
        together.wait()
        rows = list(answers)

    assert rows == [[AFTER[change]] * 4 + [1] * 2] * count
    assert asyncio.run(by_fetch_all(database)) == AFTER[change]
    asyncio.run(database.disconnect())
    # The server counts what failed as rolled back: for each connection once, then its plans are new.
    assert 0 < rolled_back(postgres_server, url) - before <= count


async def begin_and_end(database: Database) -> None:
    """Let SQLAlchemy do, and roll back, what it does with an engine's first connection."""
    async with database:
        pass


async def hold(database: Database, together: threading.Barrier, asks: tuple[Ask, ...]) -> None:
    async with database.connection() as connection:
        together.wait()
        for ask in asks:
            for _ in range(OFTEN):
                await ask(connection)


def rolled_back(server: PostgresServer, url: sa.URL) -> int:
    """Give the transactions that the server has rolled back in this database, of sessions that are over."""
    query = "SELECT xact_rollback FROM pg_stat_database WHERE datname = :name"

    async def ask() -> int:
        async with Database(server.url, scope="loop") as other:
            return int(await other.fetch_val(query, {"name": url.database}))

    return asyncio.run(ask())


async def test_a_clause_that_names_its_columns_does_not_notice_a_new_one(url: sa.URL) -> None:
    database = handle(url)
    await warm(database, by_clause)
    await run(url, CHANGES["added column"])

    assert await by_clause(database) == (1, 2)


# -- inside a transaction the server has to be obeyed


@pytest.mark.parametrize("change", CHANGES)
async def test_in_a_transaction_the_error_arrives_and_the_next_one_works(
    url: sa.URL, change: str
) -> None:
    async def ask(database: Database) -> Any:
        async with database.transaction():
            await database.execute("INSERT INTO meetings (id) VALUES (9)")
            first = await by_fetch_all(database)
            await database.execute("DELETE FROM meetings WHERE id = 9")
        return first

    database = handle(url)
    await warm(database, ask)
    await run(url, CHANGES[change])

    with pytest.raises(Exception, match="cached"):  # a driver's own
        await ask(database)
    assert database.stats().in_use == 0
    assert await database.fetch_val("SELECT count(*) FROM meetings") == 1
    assert await ask(database) == AFTER[change]
    assert database.stats().opened == 1  # whatever was prepared is forgotten


async def test_a_clause_in_a_transaction_does_the_same(url: sa.URL) -> None:
    async def ask(database: Database) -> Any:
        async with database.transaction():
            return await by_clause(database)

    database = handle(url)
    await warm(database, ask)
    await run(url, CHANGES["changed type"])

    with pytest.raises(Exception, match="cached"):
        await ask(database)
    assert await ask(database) == AFTER["changed type"]


async def test_a_session_meets_it_once(url: sa.URL) -> None:
    # It began a transaction with its first statement.
    async def ask(database: Database) -> Any:
        async with database.session.begin() as session:
            return tuple((await session.execute(sa.select(meetings))).one())

    database = handle(url)
    await warm(database, ask)
    await run(url, CHANGES["changed type"])

    with pytest.raises(NotSupportedError):
        await ask(database)
    assert await ask(database) == AFTER["changed type"]
    assert database.stats().opened == 1  # whatever was prepared is forgotten
    assert database.stats().in_use == 0


@pytest.mark.parametrize("change", CHANGES)
async def test_every_clause_is_asked_again_outside_a_transaction(url: sa.URL, change: str) -> None:
    async def everything(asked: Any) -> Any:
        clause = sa.text(EVERYTHING).bindparams(**ONE)
        return tuple((await asked.fetch_all(clause))[0])

    database = handle(url)
    await warm(database, everything, by_clause)
    await run(url, CHANGES[change])

    for _ in range(3):
        assert await everything(database) == AFTER[change]
        assert (await by_clause(database))[:2] == AFTER[change][:2]
    assert database.stats().opened == 1  # whatever was prepared is forgotten
    assert database.stats().in_use == 0


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["text", "clause"])
async def test_a_stream_begins_anew_outside_a_transaction(
    url: sa.URL, change: str, kind: str
) -> None:
    query: Any = EVERYTHING if kind == "text" else sa.select(meetings).where(meetings.c.id > 0)

    async def stream(database: Database) -> Any:
        values = ONE if kind == "text" else None
        rows = [tuple(row) async for row in database.iterate(query, values)]
        return rows[0]

    database = handle(url)
    await warm(database, stream)
    await run(url, CHANGES[change])

    for _ in range(3):
        assert (await stream(database))[:2] == AFTER[change][:2]


async def test_a_stream_in_a_transaction_meets_it_once(url: sa.URL) -> None:
    async def stream(database: Database) -> Any:
        async with database.transaction():
            rows = [tuple(row) async for row in database.iterate(EVERYTHING, ONE)]
        return rows[0]

    database = handle(url)
    await warm(database, stream)
    await run(url, CHANGES["changed type"])

    with contextlib.suppress(Exception):
        await stream(database)
    assert await stream(database) == AFTER["changed type"]


async def test_what_one_connection_noticed_all_others_know(url: sa.URL) -> None:
    count = 3
    database, together = handle(url, count), asyncio.Barrier(count)

    async def ask(times: int) -> Any:
        async with database.transaction():
            await together.wait()
            return [await by_fetch_all(database) for _ in range(times)][-1]

    async def all_at_once(times: int) -> Any:
        return await asyncio.gather(*(ask(times) for _ in range(count)))

    await all_at_once(OFTEN)
    await run(url, CHANGES["added column"])
    assert await by_fetch_all(database) == AFTER["added column"]  # asked again: one has noticed

    assert await all_at_once(1) == [AFTER["added column"]] * count
