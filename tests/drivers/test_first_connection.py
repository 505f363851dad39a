"""New connections are opened side by side; SQLAlchemy knows the server before it prepares the second one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from loopsafe_db import Database
from loopsafe_db.engines.first_connection import FirstConnection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TASKS = 3
PATIENCE = 20  # seconds
LEARNT = (
    "server_version_info",
    "default_schema_name",
    "default_isolation_level",
    "_backslash_escapes",
    "supports_identity_columns",
)


def gathering(database: Database, init: Callable[[Any], Awaitable[None]]) -> Database:
    """Give a handle on the same database that opens at most `TASKS` connections."""
    return Database(str(database.url), max_size=TASKS, init=init)


def burst(database: Database) -> Awaitable[list[Any]]:
    calls = (database.fetch_val("SELECT 1") for _ in range(TASKS))
    return asyncio.gather(*calls, return_exceptions=True)


async def test_connections_are_opened_side_by_side_from_the_first_on(database: Database) -> None:
    together = asyncio.Barrier(TASKS)

    async def init(_: Any) -> None:
        await together.wait()

    handle = gathering(database, init)
    async with asyncio.timeout(PATIENCE):
        assert await burst(handle) == [1] * TASKS
    assert handle.stats().opened == TASKS
    await handle.disconnect()


async def test_sqlalchemy_knows_the_server_before_it_prepares_another(database: Database) -> None:
    together, known = asyncio.Barrier(TASKS), []

    async def init(_: Any) -> None:
        await together.wait()

    handle = gathering(database, init)
    engine = handle.engine.sync_engine
    event.listen(engine, "connect", lambda *_: known.append(engine.dialect.server_version_info))
    async with asyncio.timeout(PATIENCE):
        assert await burst(handle) == [1] * TASKS
    assert len(known) == TASKS
    assert None not in known
    await handle.disconnect()


async def test_where_the_first_one_fails_the_next_one_is_the_first(database: Database) -> None:
    together, failures = asyncio.Barrier(TASKS), ["the first"]

    async def init(_: Any) -> None:
        await together.wait()

    def fail_once(*_: Any) -> None:
        if failures:
            raise RuntimeError(failures.pop())

    handle = gathering(database, init)
    event.listen(handle.engine.sync_engine, "connect", fail_once)
    async with asyncio.timeout(PATIENCE):
        answers = await burst(handle)
    assert sorted(map(str, answers)) == ["1", "1", "the first"]
    await handle.disconnect()


async def test_where_the_first_one_is_cancelled_the_next_one_is_the_first() -> None:
    first, asks = FirstConnection(), asyncio.Event()

    async def ask() -> None:
        await first.turn()
        try:
            asks.set()
            await asyncio.Event().wait()
        finally:
            first.leave(asyncio.current_task(), known=False)

    asking = asyncio.create_task(ask())
    await asks.wait()
    waiting = asyncio.create_task(first.turn())
    await asyncio.sleep(0)
    assert not waiting.done()
    asking.cancel()
    async with asyncio.timeout(PATIENCE):
        await waiting


def test_where_its_loop_is_closed_the_next_one_is_the_first() -> None:
    first = FirstConnection()
    loop = asyncio.new_event_loop()
    asking = loop.create_task(_stay(first))  # kept, so that nothing ends it
    loop.run_until_complete(asyncio.sleep(0, loop))
    loop.close()

    asyncio.run(asyncio.wait_for(first.turn(), PATIENCE))
    asking.get_coro().close()
    asking._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001


async def _stay(first: FirstConnection) -> None:
    await first.turn()
    await asyncio.Event().wait()


def test_loops_in_threads_wait_for_one_first_connection(database: Database) -> None:
    handle = Database(str(database.url), max_size=TASKS)
    with ThreadPoolExecutor(TASKS) as threads:
        jobs = [threads.submit(asyncio.run, _use(handle)) for _ in range(TASKS)]
        assert [job.result(PATIENCE) for job in jobs] == [[1] * TASKS] * TASKS


async def _use(database: Database) -> list[Any]:
    return await burst(database)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_sqlalchemy_learns_what_it_learns_by_itself(driver: str, postgres_url: str) -> None:
    url = make_url(postgres_url).set(drivername=f"postgresql+{driver}")
    ours, plain = Database(url), create_async_engine(url)
    async with plain.connect() as connection:
        await connection.execute(text("SELECT 1"))
    await ours.connect()

    assert [getattr(ours.engine.dialect, name) for name in LEARNT] == [
        getattr(plain.dialect, name) for name in LEARNT
    ]
    await ours.disconnect()
    await plain.dispose()


async def test_what_sqlalchemy_has_to_know_is_asked_in_one_statement(postgres_url: str) -> None:
    database = Database(postgres_url, max_size=1)
    rows = await database.fetch_all(
        "SELECT statement FROM pg_prepared_statements WHERE not from_sql"
    )
    asked = [row[0] for row in rows if "pg_prepared_statements" not in row[0]]
    assert len(asked) == 1
    await database.disconnect()
