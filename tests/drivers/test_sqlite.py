"""SQLite as its users expect it: many processes write one file, a memory is shared, foreign keys hold."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import shutil
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import Context
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database
from loopsafe_db.errors import (
    ConnectError,
    InvalidURLError,
    LockTimeout,
    StatementTimeout,
    TransactionError,
)
from loopsafe_db.testing import call_in_child
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROCESSES, TASKS = 4, 20


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/test.db"


def count_up(url: str, way: str) -> None:
    """Read and then write, in many tasks at once."""
    database = Database(url, scope=SCOPE)

    async def by_text() -> None:
        async with database.transaction():
            n = await database.fetch_val("SELECT n FROM counter")
            await asyncio.sleep(0)
            await database.execute("UPDATE counter SET n = :n", {"n": n + 1})

    async def by_session() -> None:
        async with database.session.begin() as session:
            n = await session.scalar(sa.text("SELECT n FROM counter"))
            await asyncio.sleep(0)
            await session.execute(sa.text("UPDATE counter SET n = :n"), {"n": n + 1})

    async def at_once() -> None:
        await asyncio.gather(*((by_text if way == "text" else by_session)() for _ in range(TASKS)))

    asyncio.run(at_once())


@pytest.mark.parametrize("way", ["text", "session"])
def test_processes_that_read_then_write_one_file_wait_for_each_other(url: str, way: str) -> None:
    asyncio.run(Database(url).execute("CREATE TABLE counter AS SELECT 0 AS n"))
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=count_up, args=(url, way)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
    assert asyncio.run(Database(url).fetch_val("SELECT n FROM counter")) == PROCESSES * TASKS


def test_processes_that_open_a_new_file_at_once_all_get_it(url: str) -> None:
    fork = multiprocessing.get_context("fork")
    opening = fork.Barrier(8)

    def open_it() -> None:
        opening.wait()
        assert asyncio.run(Database(url).fetch_val("PRAGMA journal_mode")) == "wal"

    workers = [fork.Process(target=open_it) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert [worker.exitcode for worker in workers] == [0] * 8


async def test_readers_do_not_wait_for_a_writer(url: str) -> None:
    database = Database(f"{url}?timeout=0.2", scope=SCOPE)
    await database.execute("CREATE TABLE things (id INTEGER)")
    reading = database.engine.execution_options(isolation_level="DEFERRED")

    async def read() -> list[int]:
        async with database.transaction(readonly=True):
            first = await database.fetch_val("SELECT count(*) FROM things")
        async with database.session(bind=reading) as session:
            second = await session.scalar(sa.text("SELECT count(*) FROM things"))
        return [first, second or 0, len([row async for row in database.iterate("SELECT 1")])]

    async with database.transaction():
        await database.execute("INSERT INTO things VALUES (1)")
        assert await asyncio.create_task(read(), context=Context()) == [0, 0, 1]


async def test_a_writer_that_waits_too_long_is_told_so(url: str) -> None:
    database = Database(f"{url}?timeout=0.3", scope=SCOPE)

    async def write() -> None:
        async with database.transaction():
            pass

    async with database.transaction():
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            await asyncio.create_task(write(), context=Context())


async def session(database: Database, query: str) -> None:
    async with database.session() as session:
        await session.execute(sa.text(query))
        await session.commit()


async def engine(database: Database, query: str) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(sa.text(query))


async def transaction(database: Database, query: str) -> None:
    async with database.transaction():
        await database.execute(query)


async def statement(database: Database, query: str) -> None:
    await database.execute(query)


INSERT = "INSERT INTO things VALUES (1)"


@pytest.mark.parametrize("way", [session, engine, transaction, statement])
@pytest.mark.parametrize("first", ["SELECT * FROM things", INSERT])
async def test_who_waits_for_a_lock_of_the_same_task_is_told_so(
    url: str, way: Callable[[Database, str], Any], first: str
) -> None:
    database = Database(f"{url}?timeout=2", scope=SCOPE)
    await database.execute("CREATE TABLE things (id INTEGER)")
    async with database.session() as outer:
        await outer.execute(sa.text(first))
        with pytest.raises(LockTimeout, match="a transaction of this very task") as caught:
            await way(database, INSERT)
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), LockTimeout)
        assert not caught.value.retryable
    await way(database, INSERT)
    async with database.session(bind=only_reading(database)) as outer:
        await outer.execute(sa.text("SELECT * FROM things"))
        await way(database, INSERT)
    assert await database.fetch_val("SELECT count(*) FROM things") == 2


def only_reading(database: Database) -> Any:
    return database.engine.execution_options(isolation_level="DEFERRED")


async def test_a_task_that_reads_waits_for_the_lock_of_another(url: str) -> None:
    database = Database(url, scope=SCOPE)
    await database.execute("CREATE TABLE things (id INTEGER)")
    locked = asyncio.Event()

    async def lock() -> None:
        async with database.transaction():
            await database.execute(INSERT)
            locked.set()
            await asyncio.sleep(0.3)  # if that is too short, nobody has to wait

    async with database.session(bind=only_reading(database)) as reader:
        await reader.execute(sa.text("SELECT * FROM things"))
        other = asyncio.create_task(lock(), context=Context())
        await locked.wait()
        await session(database, INSERT)
    await other
    assert await database.fetch_val("SELECT count(*) FROM things") == 2


async def test_a_writer_that_waits_can_be_cancelled(url: str) -> None:
    database = Database(url, scope=SCOPE)

    async def write() -> None:
        async with database.transaction():
            pass

    async with database.transaction():
        waiting = asyncio.create_task(write(), context=Context())
        await asyncio.sleep(0.3)
        start = time.monotonic()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert time.monotonic() - start < 2  # of the 30 s that it was ready to wait
        assert database.stats().in_use == 1
    assert await database.fetch_val("SELECT 1") == 1


async def test_foreign_keys_hold_unless_the_url_says_otherwise(url: str) -> None:
    create = (
        "CREATE TABLE parents (id INTEGER PRIMARY KEY)",
        "CREATE TABLE children (parent INTEGER REFERENCES parents)",
    )
    database = Database(url, scope=SCOPE)
    for statement in create:
        await database.execute(statement)

    with pytest.raises(sqlite3.IntegrityError):
        await database.execute("INSERT INTO children VALUES (1)")
    loose = Database(f"{url}?foreign_keys=off", scope=SCOPE)
    assert await loose.execute("INSERT INTO children VALUES (1)") == 1


async def test_the_url_sets_how_the_file_is_kept(url: str, tmp_path: Path) -> None:
    database = Database(f"{url}?journal_mode=delete&synchronous=off", scope=SCOPE)
    assert await database.fetch_val("PRAGMA journal_mode") == "delete"
    assert await database.fetch_val("PRAGMA synchronous") == 0
    await database.execute("CREATE TABLE things (id INTEGER)")

    reading = Database(f"{url}?mode=ro", scope=SCOPE)
    async with reading.transaction():
        assert await reading.fetch_all("SELECT * FROM things") == []
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await reading.execute("INSERT INTO things VALUES (1)")


@pytest.mark.parametrize("query", ["journal_mode=loud", "timeout=long", "pool=5"])
def test_what_the_url_cannot_say_is_refused(url: str, query: str) -> None:
    with pytest.raises(InvalidURLError):
        Database(f"{url}?{query}")


@pytest.mark.parametrize("scope", ["auto", "loop"])
@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_memory_is_one_for_all_loops_and_threads_of_a_process(url: str, scope: Any) -> None:
    database = Database(url, scope=scope)
    asyncio.run(database.execute("CREATE TABLE things (id INTEGER)"))

    def insert(n: int) -> None:
        asyncio.run(database.execute("INSERT INTO things VALUES (:n)", {"n": n}))

    async def insert_at_once() -> None:
        await asyncio.gather(
            *(database.execute("INSERT INTO things VALUES (:n)", {"n": n}) for n in range(4, 8))
        )

    threads = [threading.Thread(target=insert, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(insert_at_once())

    assert asyncio.run(database.fetch_val("SELECT count(*) FROM things")) == 8


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.004, 0.008, 0.016])
async def test_a_cancelled_transaction_holds_no_lock(
    url: str, tmp_path: Path, delay: float
) -> None:
    """Whenever it was cancelled: also before its statement began, and though a traceback keeps its cursor."""
    counting = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 300000000)"
        " SELECT count(*) FROM n"
    )
    kept: list[BaseException] = []

    async def write_then_count(query: str | sa.TextClause) -> None:
        async with database.transaction():
            await database.execute("INSERT INTO t VALUES (1)")
            await database.fetch_all(query)

    async with Database(url, scope=SCOPE) as database:
        await database.execute("CREATE TABLE t (id INTEGER)")
        for query in (counting, sa.text(counting)):
            task = asyncio.create_task(write_then_count(query))
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            kept.append(caught.value)
            with closing(sqlite3.connect(tmp_path / "test.db", timeout=1)) as other:
                other.execute("INSERT INTO t VALUES (2)")
                other.commit()
        assert await database.fetch_all("SELECT DISTINCT id FROM t") == [(2,)]


@pytest.mark.parametrize("kind", [str, sa.text])
async def test_what_follows_in_a_transaction_that_sqlite_has_ended_is_refused(
    url: str, kind: Callable[[str], Any]
) -> None:
    many = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 300000000)"
        " INSERT INTO t SELECT x FROM n"
    )
    database = Database(url, scope=SCOPE)
    await database.execute("CREATE TABLE t (id INTEGER)")
    with pytest.raises(TransactionError, match="by itself"):  # noqa: PT012
        async with database.transaction():
            with pytest.raises(StatementTimeout):
                await database.execute(kind(many), timeout=0.1)
            await database.execute(kind("INSERT INTO t VALUES (1)"))
    await database.execute("INSERT INTO t VALUES (2)")
    assert await database.fetch_all("SELECT id FROM t") == [(2,)]


def test_many_that_make_one_new_file_wal_wait_for_each_other(tmp_path: Path) -> None:
    """SQLite itself does not: one makes it, the others are told that it is locked."""
    at_once = threading.Barrier(4)

    def journal_mode(number: int) -> str:
        database = Database(f"sqlite:///{tmp_path}/{number}.db", scope="loop")
        at_once.wait()
        mode: str = asyncio.run(database.fetch_val("PRAGMA journal_mode"))
        return mode

    with ThreadPoolExecutor(4) as executor:
        for number in range(50):
            assert set(executor.map(journal_mode, [number] * 4)) == {"wal"}


@pytest.mark.parametrize(
    "url", ["sqlite:///here.db", "sqlite:///file:here.db", "sqlite:///here.db?cache=private"]
)
async def test_a_relative_path_is_seen_from_where_the_handle_was_made(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "a b%20c", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(here)
    database = Database(url, scope=SCOPE, replicas=["sqlite:///here.db?mode=ro"])
    monkeypatch.chdir(elsewhere)

    await database.execute("CREATE TABLE t (n INTEGER)")
    copy: Database = pickle.loads(pickle.dumps(database))
    await copy.execute("INSERT INTO t VALUES (1)")

    assert await database.read().fetch_val("SELECT n FROM t") == 1
    assert call_in_child(count, database, str(elsewhere)) == 1
    assert call_in_child(count, database, str(elsewhere), start_method="spawn") == 1
    assert {path.name for path in here.iterdir()} >= {"here.db"}
    assert list(elsewhere.iterdir()) == []


async def count(database: Database, folder: str) -> int:
    os.chdir(folder)
    counted: int = await database.fetch_val("SELECT count(*) FROM t")
    return counted


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///file:it?mode=memory&cache=shared"])
async def test_a_memory_has_no_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = Database(url, scope=SCOPE)

    await database.execute("CREATE TABLE t (n INTEGER)")

    assert os.listdir(tmp_path) == []
    await database.disconnect()


def leave_open(url: str, how: str) -> None:
    """End a program that closes nothing."""
    database = Database(url, scope=SCOPE)

    async def main() -> None:
        await database.execute("INSERT INTO t VALUES (1)")
        if how == "half-read":
            kept.append(database.iterate("SELECT 1 UNION SELECT 2"))
            await anext(kept[0])
        elif how == "engine":
            kept.append(await database.engine.connect())
            kept.append(await kept[0].stream(sa.text("SELECT 1 UNION SELECT 2")))
        elif how == "two":
            async with database.connection():
                await asyncio.create_task(database.fetch_val("SELECT n FROM t"))

    with asyncio.Runner() as runner:
        runner.run(main())
        if how == "exit":
            sys.exit(3)


kept: list[Any] = []


@pytest.mark.parametrize("how", ["plain", "two", "exit", "half-read", "engine"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_file_of_a_program_that_has_ended_is_whole(url: str, tmp_path: Path, how: str) -> None:
    with closing(sqlite3.connect(tmp_path / "test.db")) as plain:
        plain.execute("PRAGMA journal_mode = wal")
        plain.execute("CREATE TABLE t (n INTEGER)")
    worker = multiprocessing.get_context("spawn").Process(target=leave_open, args=(url, how))
    worker.start()
    worker.join(60)

    assert worker.exitcode == (3 if how == "exit" else 0)
    assert [path.name for path in tmp_path.iterdir()] == ["test.db"]
    shutil.copy(tmp_path / "test.db", tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copied:
        assert copied.execute("SELECT n FROM t").fetchall() == [(1,)]


async def test_a_file_in_use_is_copied_by_vacuum_into(url: str, tmp_path: Path) -> None:
    database = Database(url, scope=SCOPE)
    await database.execute("CREATE TABLE t (n INTEGER)")
    async with database.transaction():
        await database.execute("INSERT INTO t VALUES (1)")
        copy = {"path": str(tmp_path / "copy.db")}
        await asyncio.create_task(database.execute("VACUUM INTO :path", copy), context=Context())

    with closing(sqlite3.connect(tmp_path / "copy.db")) as copied:
        assert (
            copied.execute("SELECT * FROM t").fetchall() == []
        )  # as it was before the transaction
    assert await database.fetch_val("SELECT n FROM t") == 1
    await database.disconnect()


DAY, MOMENT = date(2026, 3, 1), datetime(2026, 3, 1, 12, 30, 0, 5, tzinfo=UTC)
STORED = ("2026-03-01", "2026-03-01 12:30:00.000005+00:00")


@pytest.mark.parametrize("kind", [str, sa.text])
async def test_dates_are_written_as_sqlite3_does_without_its_warning(
    url: str, kind: Callable[[str], Any]
) -> None:
    """All warnings are errors here; sqlite3's own comes from Python 3.12 on."""
    database = Database(url, scope=SCOPE)
    await database.execute("CREATE TABLE t (day, moment, n)")
    row = {"day": DAY, "moment": MOMENT, "n": 1}
    insert = kind("INSERT INTO t VALUES (:day, :moment, :n)")

    await database.execute(insert, row)
    await database.execute_many(insert, [row, {**row, "n": 2}])
    select = kind("SELECT day, moment FROM t WHERE day = :day AND moment = :moment")
    where = {"day": DAY, "moment": MOMENT}

    assert [tuple(one) for one in await database.fetch_all(select, where)] == [STORED] * 3
    assert tuple(await database.fetch_one(select, where) or ()) == STORED
    assert [tuple(one) async for one in database.iterate(select, where)] == [STORED] * 3
    async with database.connection() as connection:
        raw = connection.raw_connection
        cursor = await raw.execute("SELECT ?, ?", (DAY, MOMENT))
        assert await cursor.fetchall() == [STORED]
        cursor = await raw.execute("SELECT :day, :moment", where)
        assert await cursor.fetchall() == [STORED]
        await cursor.close()
    await database.disconnect()


async def test_an_adapter_of_the_programs_goes_before(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters: Any = sqlite3.adapters
    monkeypatch.setitem(adapters, (date, sqlite3.PrepareProtocol), date.toordinal)
    database = Database(url, scope=SCOPE)

    row = await database.fetch_one("SELECT :day, :moment", {"day": DAY, "moment": MOMENT})

    assert tuple(row or ()) == (DAY.toordinal(), STORED[1])
    await database.disconnect()


async def close_by_hand(database: Database) -> Any:
    """Give a cursor that has more rows, of a connection that is closed."""
    async with database.connection() as connection:
        raw = connection.raw_connection
        cursor = await raw.execute("SELECT 1 UNION ALL SELECT count(*) FROM things")
        await cursor.fetchone()
        await raw.close()
    return cursor


@pytest.mark.parametrize("half_read", [False, True])
def test_what_a_forked_child_commits_stays_though_its_parent_ends_the_last_connection(
    url: str, *, half_read: bool
) -> None:
    """SQLite takes the ``-wal`` away with the last connection that it knows of; an inherited one hides the child's."""
    database = Database(url, scope=SCOPE)
    asyncio.run(database.execute("CREATE TABLE things (id INTEGER)"))  # and stays warm
    kept = asyncio.run(close_by_hand(database)) if half_read else None
    fork = multiprocessing.get_context("fork")
    opened, closed = fork.Event(), fork.Event()

    async def write_before_and_after() -> None:
        await database.execute("INSERT INTO things VALUES (1)")
        opened.set()
        assert await asyncio.to_thread(closed.wait, 30)
        await database.execute("INSERT INTO things VALUES (2)")

    child = fork.Process(target=lambda: asyncio.run(write_before_and_after()))
    child.start()
    assert opened.wait(30)
    asyncio.run(database.fetch_val("SELECT 1"))
    asyncio.run(database.disconnect())
    del kept
    closed.set()
    child.join(30)

    assert child.exitcode == 0
    assert asyncio.run(Database(url).fetch_val("SELECT sum(id) FROM things")) == 3


async def test_a_file_in_use_at_a_fork_is_refused_in_the_child(url: str, tmp_path: Path) -> None:
    os.symlink(tmp_path / "test.db", tmp_path / "link.db")
    database = Database(url, scope=SCOPE)
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()

    def tell() -> None:
        for one in (database, Database(f"sqlite:///{tmp_path}/link.db"), Database(f"{url}.other")):
            try:
                told.put(asyncio.run(one.fetch_val("SELECT 1")))
            except ConnectError as error:
                told.put(error.code)

    async with database.transaction():
        await database.execute("CREATE TABLE things (id INTEGER)")
        child = fork.Process(target=tell)
        child.start()
        await asyncio.to_thread(child.join, 30)

    assert [told.get() for _ in range(3)] == ["LDB412", "LDB412", 1]
    assert await database.fetch_val("SELECT count(*) FROM things") == 0
