"""One handle in many loops and threads: right answers in each, and nothing is left that nobody wants."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import sys
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import sqlalchemy as sa
import trio
import uvloop

from loopsafe_db import Database, LoopLocal
from loopsafe_db.errors import (
    AsyncFactoryError,
    ForeignLoopError,
    NoRunningLoopError,
    UnsupportedLoopError,
)
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopsafe_db import Connection


def bare(database: Database, factory: Callable[[], asyncio.AbstractEventLoop]) -> int:
    loop = factory()
    try:
        return int(loop.run_until_complete(database.fetch_val("SELECT 7")))
    finally:
        loop.close()


def runner(database: Database) -> int:
    with asyncio.Runner() as opened:
        return int(opened.run(database.fetch_val("SELECT 7")))


WAYS: dict[str, Callable[[Database], int]] = {
    "asyncio.run": lambda database: int(asyncio.run(database.fetch_val("SELECT 7"))),
    "Runner": runner,
    "uvloop": lambda database: int(uvloop.run(database.fetch_val("SELECT 7"))),
    "anyio": lambda database: int(anyio.run(database.fetch_val, "SELECT 7")),
    "bare": lambda database: bare(database, asyncio.new_event_loop),
}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def is_warm(database: Database) -> bool:
    """Whether connections stay open between loops."""
    return "scope='loop'" not in repr(database)


def left_open(database: Database) -> int:
    return database.stats().idle + database.stats().in_use


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_when_the_loops_are_gone(database: Database, way: str) -> None:
    WAYS[way](database)
    gc.collect()
    files, threads = descriptors(), threading.active_count()
    for _ in range(10):
        assert WAYS[way](database) == 7
    gc.collect()

    assert left_open(database) == is_warm(database)
    assert descriptors() <= files  # what an earlier test left may go meanwhile
    assert threading.active_count() <= threads
    asyncio.run(database.disconnect())
    assert left_open(database) == 0


def test_a_handle_that_is_gone_leaves_no_connection(postgres_url: str) -> None:
    asyncio.run(Database(postgres_url, scope=SCOPE).fetch_val("SELECT 1"))
    gc.collect()

    assert asyncio.run(others(Database(postgres_url))) == 0


async def others(witness: Database) -> int:
    """Count the server's sessions but the witness' own; a session that was closed takes a moment to go."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    async with witness.connection() as connection:
        async with asyncio.timeout(5):
            while count := int(await connection.fetch_val(query)):
                pass
        return count


class Request:
    """What a web framework has in a ContextVar."""


served: contextvars.ContextVar[Request] = contextvars.ContextVar("served")


async def test_a_loop_s_first_user_is_not_kept_as_long_as_the_loop(database: Database) -> None:
    async def serve() -> weakref.ref[Request]:
        served.set(request := Request())
        await database.fetch_val("SELECT 1")
        async with database.session() as session:
            await session.execute(sa.text("SELECT 1"))
        return weakref.ref(request)

    request = await asyncio.create_task(serve())

    for _ in range(200):  # a loop drops cancelled timers, psycopg's for one, when there are many
        asyncio.get_running_loop().call_later(3600, gc.collect).cancel()
    await asyncio.sleep(0)  # until now it had the task, too
    gc.collect()
    assert request() is None
    await database.disconnect()


@pytest.mark.parametrize("query", ["text", "clause", "session", "stream", "raw"])
def test_a_thread_that_ends_leaves_no_rows_of_asyncpg(postgres_url: str, query: str) -> None:
    database, rows = Database(postgres_url), "SELECT generate_series(1, 200)"

    async def ask() -> None:
        if query == "text":
            await database.fetch_all(rows)
        elif query == "clause":
            await database.fetch_all(sa.text(rows))
        elif query == "session":
            async with database.session() as session:
                (await session.execute(sa.text(rows))).all()
        elif query == "stream":
            assert [row async for row in database.iterate(rows)]
        else:
            async with database.connection() as connection:
                await connection.raw_connection.fetch(rows)

    def blocks_after(threads: int) -> int:
        for _ in range(threads):
            thread = threading.Thread(target=lambda: asyncio.run(ask()))
            thread.start()
            thread.join()
        gc.collect()
        return sys.getallocatedblocks()

    before = blocks_after(10)
    assert blocks_after(20) - before < 20 * 200 / 2
    asyncio.run(database.disconnect())


def test_nor_what_asyncpg_is_told_of_types_when_it_connects(postgres_url: str) -> None:
    engine = Database(postgres_url, scope=SCOPE).engine

    async def connect() -> None:
        async with engine.connect() as connection:  # sets codecs for json and jsonb
            await connection.execute(sa.text("SELECT 1"))
        await engine.dispose()

    def run_in(threads: int) -> None:
        for _ in range(threads):
            thread = threading.Thread(target=lambda: asyncio.run(connect()))
            thread.start()
            thread.join()

    run_in(5)
    tracemalloc.start()
    try:
        run_in(20)
        gc.collect()
        by_asyncpg = tracemalloc.Filter(
            inclusive=True, filename_pattern="*/asyncpg/introspection.py"
        )
        kept = tracemalloc.take_snapshot().filter_traces([by_asyncpg]).statistics("filename")
    finally:
        tracemalloc.stop()
    assert sum(one.count for one in kept) < 20


def test_a_thousand_runs_leave_no_session_and_no_loop(postgres_url: str) -> None:
    database = Database(postgres_url, scope=SCOPE)
    loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()

    async def job(number: int) -> int:
        loops.add(asyncio.get_running_loop())
        return int(await database.fetch_val("SELECT CAST(:n AS int)", {"n": number}))

    for number in range(1000):
        assert asyncio.run(job(number)) == number
    gc.collect()

    assert len(loops) == 0
    asyncio.run(database.disconnect())
    assert asyncio.run(others(Database(postgres_url))) == 0


def test_eight_threads_with_own_loops_get_their_own_answers(database: Database) -> None:
    async def one(token: int) -> int:
        return int(await database.fetch_val("SELECT CAST(:n AS int)", {"n": token}))

    async def many(first: int) -> list[int]:
        return await asyncio.gather(*(one(first + offset) for offset in range(4)))

    def jobs(thread: int) -> bool:
        firsts = [thread * 1000 + turn * 10 for turn in range(10)]
        return all(asyncio.run(many(first)) == [first + n for n in range(4)] for first in firsts)

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(jobs, range(8)))
    assert database.stats().in_use == 0
    assert left_open(database) <= (10 if is_warm(database) else 0)


def test_a_connection_kept_across_loops_names_owner_and_user(database: Database) -> None:
    kept: list[Connection] = []

    async def keep() -> None:
        async with database.connection() as connection:
            kept.append(connection)

    asyncio.run(keep())
    with pytest.raises(ForeignLoopError) as caught:
        asyncio.run(kept[0].fetch_val("SELECT 1"))
    assert caught.value.owner != caught.value.caller
    assert caught.value.owner.pid == caught.value.caller.pid
    assert __file__ in caught.value.taken_at


def test_sync_code_gets_a_clear_error(database: Database) -> None:
    coroutine = database.fetch_val("SELECT 1")
    with pytest.raises(NoRunningLoopError, match="LDB104"):
        coroutine.send(None)


def test_trio_gets_a_clear_error(database: Database) -> None:
    with pytest.raises(UnsupportedLoopError, match="Trio"):
        trio.run(database.fetch_val, "SELECT 1")


def test_a_loop_local_is_made_once_per_loop_and_closed_with_it() -> None:
    made, closed = [], []

    async def close(value: object) -> None:
        await asyncio.sleep(0)
        closed.append(value)

    async def factory() -> object:
        await asyncio.sleep(0)
        made.append(object())
        return made[-1]

    local = LoopLocal(factory, close=close)

    async def main() -> set[object]:
        with pytest.raises(AsyncFactoryError, match="LDB106"):
            local.get()
        return set(await asyncio.gather(*(local.aget() for _ in range(5))))

    assert len(asyncio.run(main())) == len(asyncio.run(main())) == 1
    assert made == closed
    assert len(made) == 2


class LoopOfQt(asyncio.SelectorEventLoop):
    """What qasync's and PySide6's loops have in common: short timers, which they keep, and no async generators."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[asyncio.Handle] = []
        self.call_soon(sys.set_asyncgen_hooks, None, None)

    def call_later(  # type: ignore[override]
        self, delay: float, *args: Any, **options: Any
    ) -> asyncio.TimerHandle:
        if delay * 1000 >= 2**31:
            raise OverflowError
        handle = super().call_later(delay, *args, **options)
        self.kept.append(handle)
        return handle


class LoopWithoutReaders(asyncio.SelectorEventLoop):
    """As PySide6.QtAsyncio's."""

    def remove_reader(self, fd: Any) -> bool:
        raise NotImplementedError

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        raise NotImplementedError


@pytest.mark.parametrize("how", ["closed", "terminated"])
def test_a_loop_of_qt_gets_its_answer_and_its_loop_local_values_end_with_it(
    database: Database, how: str
) -> None:
    ended = []

    async def close(value: int) -> None:
        await asyncio.sleep(0)
        ended.append(f"closed {value}")

    local = LoopLocal(lambda: 5, close=close, terminate=lambda n: ended.append(f"terminated {n}"))

    async def main() -> None:
        local.get()
        assert await database.fetch_val("SELECT 7") == 7

    for _ in range(2):
        loop = LoopOfQt()
        loop.run_until_complete(main())
        if how == "closed":
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    assert ended == [f"{how} 5"] * 2


def test_a_loop_without_readers_gets_a_clear_error_where_a_socket_is_needed(
    database: Database,
) -> None:
    loop = LoopWithoutReaders()
    asking = database.fetch_val("SELECT 7")
    if database.url.dialect == "sqlite":
        assert loop.run_until_complete(asking) == 7
    else:
        with pytest.raises(UnsupportedLoopError, match=r"(?s)LDB105.*add_reader.*qasync"):
            loop.run_until_complete(asking)
        assert (database.stats().opened, database.stats().in_use) == (0, 0)
    loop.close()


def test_a_subinterpreter_gets_a_clear_error() -> None:
    interpreters = pytest.importorskip("concurrent.interpreters", reason="CPython 3.14 has them")
    one = interpreters.create()
    one.exec(f"import sys; sys.path[:] = {sys.path!r}")
    with pytest.raises(interpreters.ExecutionFailed, match=r"(?s)ImportError: loopsafe_db.*HINT"):
        one.exec("import loopsafe_db")
    one.exec("import asyncpg")  # the hint says that it works alone
    one.close()
