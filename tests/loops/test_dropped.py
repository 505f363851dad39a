"""A loop that is dropped without ``close()`` gives its connections' places back, whatever it was in the middle of."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, Timeouts

Work = Callable[[Database], Awaitable[None]]
# Python warns of the loop and of its sockets, and of what else goes with it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
_LONG = {
    "postgresql": "SELECT CAST(pg_sleep(30) AS text)",
    "sqlite": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 400000) "
    "SELECT max(n) FROM c",
}


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Have what can be collected be so here, and warned of, not in another test."""
    yield
    gc.collect()


def long_query(db: Database) -> str:
    """Give what takes long."""
    return _LONG[db.url.get_backend_name()]


async def text(db: Database) -> None:
    await db.fetch_val(long_query(db))


async def clause(db: Database) -> None:
    await db.fetch_val(sa.text(long_query(db)).columns(sa.column("n")))


async def block(db: Database) -> None:
    async with db.connection() as connection:
        await connection.fetch_val(long_query(db))


async def transaction(db: Database) -> None:
    async with db.transaction():
        await db.fetch_val(long_query(db))


async def transaction_of_clauses(db: Database) -> None:
    async with db.transaction():
        await clause(db)


async def session(db: Database) -> None:
    async with db.session() as opened:
        await opened.execute(sa.text(long_query(db)))


async def engine(db: Database) -> None:
    async with db.engine.connect() as opened:
        await opened.execute(sa.text(long_query(db)))


async def stream_of_clauses(db: Database) -> None:
    async for _ in db.iterate(sa.text(long_query(db)).columns(sa.column("n"))):
        pass


async def stream(db: Database) -> None:
    async for _ in db.iterate(long_query(db)):
        pass


async def idle_session(db: Database) -> None:
    async with db.session() as opened:
        await opened.execute(sa.text("SELECT 1"))
        await asyncio.get_running_loop().create_future()


async def idle_block(db: Database) -> None:
    async with db.connection():
        await asyncio.get_running_loop().create_future()


def drop_a_loop(
    db: Database, work: Work, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> weakref.ref[asyncio.AbstractEventLoop]:
    """Begin in a new loop, and drop that in the middle."""

    async def main() -> None:
        await use(db)  # a connection is opened by SQLAlchemy, in its greenlet
        task: Any = asyncio.ensure_future(work(db))
        for _ in range(20):
            await asyncio.sleep(0.001)  # somewhere in the middle
        assert not task.done()

    loop = make_loop()
    loop.run_until_complete(main())
    return weakref.ref(loop)


def until_it_is_collected(db: Database, work: Work) -> None:
    """Do so, and wait for the collector; the thread of SQLite's connection has to end its statement before.

    Of uvloop's loops it takes none that waits for a socket.
    """
    wait_for_collector(drop_a_loop(db, work, asyncio.SelectorEventLoop))


def wait_for_collector(dropped: weakref.ref[asyncio.AbstractEventLoop]) -> None:
    """Collect until the loop is gone."""
    end = time.monotonic() + 60
    while dropped() is not None and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)


def in_a_thread_that_ends(db: Database, work: Work) -> None:
    """Do so in a thread of its own."""
    thread = threading.Thread(target=drop_a_loop, args=(db, work, asyncio.new_event_loop))
    thread.start()
    thread.join()


async def use(db: Database) -> None:
    """See that all places are there, for text and clauses."""
    assert await db.fetch_val("SELECT 7") == 7
    assert await db.fetch_val(sa.select(sa.literal(8))) == 8
    assert db.stats().in_use == 0


def check(
    database: Database,
    scope: Any,
    work: Work,
    drop: Callable[[Database, Work], object],
    statement: float | None = None,
) -> None:
    timeouts = Timeouts(acquire=5, statement=statement)
    db = Database(database.url, max_size=1, timeouts=timeouts, scope=scope)
    for _ in range(2):
        drop(db, work)
        asyncio.run(use(db))
    asyncio.run(db.disconnect())


PLAIN = [text, block, transaction, stream, idle_block]
IN_GREENLETS = [clause, transaction_of_clauses, session, engine, stream_of_clauses]


@pytest.mark.parametrize("scope", ["process", "loop"])
@pytest.mark.parametrize("work", [*PLAIN, *IN_GREENLETS, idle_session])
def test_a_loop_that_was_dropped_gives_its_connection_back(
    database: Database, work: Work, scope: Any
) -> None:
    check(database, scope, work, until_it_is_collected)


@pytest.mark.parametrize("work", [session, engine])
def test_a_loop_that_was_dropped_within_a_time_limit_gives_its_connection_back(
    database: Database, work: Work
) -> None:
    check(database, "process", work, until_it_is_collected, statement=60)


def collected_in_another_thread(db: Database, work: Work) -> None:
    """Drop a loop here, and have it collected there: a greenlet is ended in its own thread alone."""
    gc.collect()
    gc.disable()
    try:
        dropped = drop_a_loop(db, work, asyncio.SelectorEventLoop)
        there = threading.Thread(target=wait_for_collector, args=(dropped,))
        there.start()
        there.join()
    finally:
        gc.enable()


@pytest.mark.parametrize("work", [clause, session, text])
def test_a_loop_that_another_thread_collects_gives_its_connection_back(
    database: Database, work: Work
) -> None:
    check(database, "process", work, collected_in_another_thread)


@pytest.mark.parametrize("work", [clause, session, text])
def test_a_loop_of_a_thread_that_has_ended_gives_its_connection_back(
    database: Database, work: Work
) -> None:
    check(database, "process", work, in_a_thread_that_ends)
