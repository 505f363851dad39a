"""on_statement: every statement of every path is told of, once, as it was sent; a listener disturbs nothing."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import logging
import multiprocessing
import os
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

import loopsafe_db
from loopsafe_db import Database, PoolLimits, Timeouts
from loopsafe_db.errors import AcquireTimeout
from loopsafe_db.testing import call_in_child

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from loopsafe_db import Statement

TABLE = sa.table("things", sa.column("id"), sa.column("name"))
HERE = __file__
SECRET = "hunter2"


@contextmanager
def heard(database: Database, **options: Any) -> Iterator[list[Statement]]:
    told: list[Statement] = []
    stop = database.on_statement(told.append, **options)
    try:
        yield told
    finally:
        stop()


def summary(told: list[Statement]) -> list[tuple[str, str, int | None]]:
    return [(one.kind, one.sql.split("(")[0].strip(), one.rows) for one in told]


async def make_table(database: Database) -> None:
    await database.execute("CREATE TABLE things (id int, name text)")


async def test_texts_are_told_of_with_rows_and_the_line_that_asked(database: Database) -> None:
    await make_table(database)
    with heard(database) as told:
        await database.execute("INSERT INTO things VALUES (1, 'one')")
        await database.execute_many("INSERT INTO things (id) VALUES (:id)", [{"id": 2}, {"id": 3}])
        await database.fetch_all("SELECT * FROM things")
        await database.fetch_one("SELECT * FROM things WHERE id = 7")
        await database.fetch_val("SELECT id FROM things WHERE id = 1")

    rows = [one.rows for one in told if one.kind == "text"]
    assert rows == [1, 3, 0, 1]
    (many,) = (one for one in told if one.kind == "many")
    assert many.batch == 2
    for one in told:
        assert one.place.startswith(HERE)
        assert one.error is None
        assert one.query > 0
        assert one.url == database.url


async def by_text(database: Database) -> None:
    await database.fetch_val("SELECT id FROM things WHERE name = :name", {"name": SECRET})


async def by_clause(database: Database) -> None:
    await database.fetch_all(sa.select(TABLE).where(TABLE.c.name == SECRET))


async def by_many(database: Database) -> None:
    await database.execute_many("INSERT INTO things (name) VALUES (:name)", [{"name": SECRET}])


async def by_stream(database: Database) -> None:
    async for _ in database.iterate("SELECT id FROM things WHERE name = :name", {"name": SECRET}):
        pass


async def by_session(database: Database) -> None:
    async with database.session() as session:
        await session.execute(sa.select(TABLE).where(TABLE.c.name == SECRET))


@pytest.mark.parametrize("ask", [by_text, by_clause, by_many, by_stream, by_session])
async def test_parameters_are_masked_unless_asked_for(
    database: Database, ask: Callable[[Database], Awaitable[None]]
) -> None:
    await make_table(database)
    with heard(database) as told, heard(database, parameters=True) as shown:
        await ask(database)

    assert any(one.parameters for one in told)
    assert SECRET not in repr(told)
    assert SECRET in repr([one.parameters for one in shown])


async def test_clauses_are_told_of_the_first_time_and_each_other(database: Database) -> None:
    await make_table(database)
    query = TABLE.insert().values(id=1, name="one")
    with heard(database) as told:
        for _ in range(3):
            await database.execute(query)
        assert len(await database.fetch_all(sa.select(TABLE.c.id))) == 3
        assert len(await database.fetch_all(sa.select(TABLE.c.id))) == 3

    kinds = [(one.kind, one.sql.split()[0]) for one in told if one.kind != "transaction"]
    assert kinds == [("clause", "INSERT")] * 3 + [("clause", "SELECT")] * 2


async def test_transactions_and_savepoints_are_told_of_as_they_were_sent(
    database: Database,
) -> None:
    await make_table(database)
    with heard(database) as told:
        async with database.transaction():
            await database.execute("INSERT INTO things VALUES (1, 'one')")
            async with database.transaction():
                await database.execute("INSERT INTO things VALUES (2, 'two')")
            with pytest.raises(ZeroDivisionError):
                async with database.transaction():
                    raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError):
            async with database.transaction():
                raise ZeroDivisionError

    assert [one.sql for one in told if one.kind == "transaction"] == [
        *("BEGIN", "SAVEPOINT", "RELEASE SAVEPOINT"),
        *("SAVEPOINT", "ROLLBACK TO SAVEPOINT", "COMMIT"),
        *("BEGIN", "ROLLBACK"),
    ]
    assert {one.sql: one.place for one in told if HERE not in one.place} == {}


async def test_sessions_are_told_of_with_their_begin_and_commit(database: Database) -> None:
    await make_table(database)
    with heard(database) as told:
        async with database.session() as session:
            await session.execute(TABLE.insert().values(id=1, name="one"))
            await session.commit()
            await session.execute(sa.select(TABLE))
            await session.rollback()

    words = [(str(one.kind), one.sql.split()[0]) for one in told]
    insert, select = ("session", "INSERT"), ("session", "SELECT")
    begin, commit, rollback = (("transaction", word) for word in ("BEGIN", "COMMIT", "ROLLBACK"))
    assert [word for word in words if word[0] == "session"] == [insert, select]
    assert words[words.index(begin) + 1] == insert or words.index(begin) == words.index(insert) + 1
    assert words.index(commit) > words.index(insert)
    if "sqlite" not in str(database.url):  # there, SELECT begins nothing
        assert words[-1] == rollback


async def test_a_session_in_a_transaction_is_told_of_once(database: Database) -> None:
    await make_table(database)
    with heard(database) as told:
        async with database.transaction(), database.session() as session:
            await session.execute(TABLE.insert().values(id=1, name="one"))
            await session.commit()

    assert sum(one.sql.startswith("INSERT") for one in told) == 1
    ends = [one.sql.split()[0] for one in told if one.kind == "transaction"]
    assert ends == ["BEGIN", "COMMIT"]


@pytest.mark.parametrize("way", ["stream", "many"])
async def test_a_transaction_around_a_clause_is_told_of_once(database: Database, way: str) -> None:
    await make_table(database)
    with heard(database) as told:
        if way == "stream":
            assert [row async for row in database.iterate(sa.select(TABLE))] == []
        else:
            await database.execute_many(TABLE.insert(), [{"id": 1}, {"id": 2}])

    ends = [one.sql for one in told if one.kind == "transaction"]
    assert ends == ["BEGIN", "COMMIT"]


STREAMED = pytest.mark.parametrize(
    "query", ["SELECT id FROM things", sa.select(TABLE.c.id)], ids=["text", "clause"]
)


@STREAMED
async def test_a_stream_is_told_of_with_all_its_rows(database: Database, query: Any) -> None:
    await make_table(database)
    rows = [{"id": number} for number in range(1200)]
    await database.execute_many("INSERT INTO things (id) VALUES (:id)", rows)
    with heard(database) as told:
        assert len([row async for row in database.iterate(query)]) == 1200

    (stream,) = (one for one in told if one.kind == "stream")
    assert stream.rows == 1200
    assert stream.query > 0
    assert stream.fetch > 0


@STREAMED
async def test_a_stream_that_is_left_is_told_of(database: Database, query: Any) -> None:
    await make_table(database)
    rows = [{"id": number} for number in range(1200)]
    await database.execute_many("INSERT INTO things (id) VALUES (:id)", rows)
    with heard(database) as told:
        async with database.transaction():
            async for _ in database.iterate(query):
                break
            await database.fetch_val("SELECT 1")

    (stream,) = (one for one in told if one.kind == "stream")
    assert stream.rows == 500


async def test_a_script_is_told_of_as_one(postgres_url: str) -> None:
    database = Database(postgres_url)
    with heard(database) as told:
        await database.execute("CREATE TABLE a (id int); CREATE TABLE b (id int)")

    assert [one.sql for one in told] == ["CREATE TABLE a (id int); CREATE TABLE b (id int)"]


NO_SUCH = sa.select(sa.table("no_such", sa.column("id")))


async def ask(database: Database, path: str) -> None:
    """Ask for what is not there."""
    if path == "session":
        async with database.session() as session:
            await session.execute(NO_SUCH)
    query: Any = "SELECT id FROM no_such" if path.startswith("text") else NO_SUCH
    if path.endswith("stream"):
        async for _ in database.iterate(query):
            pass
    await database.fetch_all(query)


@pytest.mark.parametrize("path", ["text", "text stream", "clause", "clause stream", "session"])
async def test_what_fails_is_told_of_with_the_drivers_error(database: Database, path: str) -> None:
    with heard(database) as told, pytest.raises(Exception, match="no_such"):
        await ask(database, path)

    (failed,) = (one for one in told if one.kind != "transaction")
    package = {"postgresql+asyncpg": "asyncpg", "postgresql": "asyncpg"}
    assert type(failed.error).__module__.partition(".")[0] in {
        package.get(database.url.drivername, "sqlite3"),
        "psycopg",
    }
    assert "no_such" in str(failed.error)
    assert failed.rows is None


async def test_the_end_of_a_session_is_told_of_with_the_line_of_its_begin(
    database: Database,
) -> None:
    await make_table(database)
    with heard(database) as told:
        async with database.session() as session:
            await session.execute(TABLE.insert().values(id=1, name="one"))  # and no commit
            line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]

    ends = {one.sql: one.place for one in told if one.kind == "transaction"}
    assert ends == {"BEGIN": f"{HERE}:{line}", "ROLLBACK": f"{HERE}:{line}"}


async def fetch(database: Database, query: Any) -> None:
    await database.fetch_all(query)


async def iterate(database: Database, query: Any) -> None:
    async for _ in database.iterate(query):
        pass


async def in_session(database: Database, query: Any) -> None:
    async with database.session() as session:
        (await session.execute(sa.text(query) if isinstance(query, str) else query)).all()


@pytest.mark.parametrize("query", ["SELECT id FROM things", sa.select(TABLE.c.id)])
@pytest.mark.parametrize(
    ("path", "kinds"),
    [(fetch, {"text", "clause"}), (iterate, {"stream"}), (in_session, {"session"})],
)
async def test_each_path_tells_each_field(
    database: Database, path: Any, kinds: set[str], query: Any
) -> None:
    await make_table(database)
    await database.execute_many("INSERT INTO things (id) VALUES (:id)", [{"id": 1}, {"id": 2}])
    began = time.time()
    with heard(database) as told:
        for _ in range(3):  # a clause goes another way from the second time on
            await path(database, query)

    asked = [one for one in told if one.kind != "transaction"]
    assert len(asked) == 3
    for one in asked:
        assert one.kind in kinds
        assert one.sql.split() == ["SELECT", *str(query).split()[1:]]
        assert one.rows == 2
        assert (one.parameters, one.batch, one.error) == ((), 0, None)
        assert began <= one.started_at <= time.time()
        assert one.query > 0
        assert (one.fetch > 0) == (one.kind == "stream")
        assert one.place.startswith(f"{HERE}:")
        assert one.task == asyncio.current_task().get_name()  # type: ignore[union-attr]
        assert one.process == multiprocessing.current_process().name
        assert one.loop.pid == os.getpid()
        assert one.url == database.url


async def test_what_is_cancelled_is_told_of(postgres_url: str) -> None:
    database = Database(postgres_url)
    await database.connect()
    with heard(database) as told:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(database.execute("SELECT pg_sleep(30)"), 0.05)
        assert await database.fetch_val("SELECT 1") == 1

    assert isinstance(told[0].error, asyncio.CancelledError)


async def test_a_literal_password_is_not_told(postgres_url: str) -> None:
    database = Database(postgres_url)
    with heard(database) as told:
        await database.execute("CREATE ROLE of_a_listener PASSWORD 'hunter2'")
        await database.execute("DROP ROLE of_a_listener")

    assert "hunter2" not in repr(told)


async def test_who_waited_for_a_connection_is_told_apart(postgres_url: str) -> None:
    database = Database(postgres_url, pool=PoolLimits(max_connections=1))
    with heard(database) as told:
        async with database.connection() as connection:
            await connection.fetch_val("SELECT 1")
            context = contextvars.Context()
            waiting = asyncio.create_task(database.fetch_val("SELECT 2"), context=context)
            await asyncio.sleep(0)  # it waits: nobody gives the connection back
        await waiting
        await database.fetch_val("SELECT 3")

    first, second, third = told
    assert first.connect > 0
    assert second.wait > 0
    assert second.connect == third.wait == third.connect == 0


async def test_a_wait_in_vain_is_told_of(postgres_url: str) -> None:
    database = Database(
        postgres_url, pool=PoolLimits(max_connections=1), timeouts=Timeouts(acquire=0.05)
    )
    with heard(database) as told:
        async with database.connection():
            task = asyncio.create_task(
                database.fetch_val("SELECT 2"), context=contextvars.Context()
            )
            with pytest.raises(AcquireTimeout):
                await task

    assert [(one.kind, type(one.error)) for one in told] == [("acquire", AcquireTimeout)]
    assert told[0].wait > 0


async def test_the_lag_of_a_busy_loop_is_told_apart(postgres_url: str) -> None:
    database = Database(postgres_url)
    await database.connect()
    with heard(database) as told:
        query = asyncio.create_task(database.fetch_val("SELECT pg_sleep(0.001)"))
        await asyncio.sleep(0)  # now it is on its way
        threading.Event().wait(0.2)
        await query

    assert told[0].lag > 0.1
    assert told[0].query >= told[0].lag


def test_each_loop_and_thread_is_heard(database: Database) -> None:
    def run() -> None:
        asyncio.run(database.fetch_val("SELECT 1"))

    with heard(database) as told:
        run()
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    assert len({one.loop for one in told}) == 2


def in_child(database: Database) -> list[tuple[str, bool]]:
    asyncio.run(database.fetch_val("SELECT 2"))
    return [(one.sql, one.loop.pid != PARENT.pid) for one in PARENT.told]


class _Parent:
    pid = 0
    told: list[Statement] = []  # noqa: RUF012


PARENT = _Parent()


def test_a_forked_child_is_heard_in_the_child(database: Database) -> None:
    PARENT.pid, PARENT.told = os.getpid(), []
    stop = database.on_statement(PARENT.told.append)
    asyncio.run(database.fetch_val("SELECT 1"))

    child = call_in_child(in_child, database, start_method="fork")

    stop()
    assert child == [("SELECT 1", False), ("SELECT 2", True)]
    assert [one.sql for one in PARENT.told] == ["SELECT 1"]


def in_child_by_session(database: Database) -> list[str]:
    async def ask() -> None:
        async with database.session() as session:
            await session.execute(sa.text("SELECT 2"))

    asyncio.run(ask())
    return [one.sql for one in PARENT.told]


def test_a_session_in_a_forked_child_is_told_of_once(database: Database) -> None:
    PARENT.told = []
    database.on_statement(PARENT.told.append)
    in_child_by_session(database)
    assert PARENT.told
    PARENT.told.clear()

    sent = call_in_child(in_child_by_session, database, start_method="fork")

    assert sent.count("SELECT 2") == 1


async def test_under_force_rollback_only_what_the_user_asks_is_told_of(database: Database) -> None:
    await make_table(database)
    with heard(database) as told, database.force_rollback():
        await database.execute("INSERT INTO things VALUES (1, 'one')")
        async with database.transaction():
            await database.fetch_val("SELECT count(*) FROM things")
        async with database.session() as session:
            await session.execute(TABLE.insert().values(id=2, name="two"))
            await session.commit()
        await database.disconnect()

    words = [one.sql.split()[0] for one in told]
    assert words == [
        *("INSERT", "SAVEPOINT", "SELECT", "RELEASE"),
        *("SAVEPOINT", "INSERT", "RELEASE"),
    ]


async def test_a_listener_that_raises_is_logged_once_and_disturbs_nothing(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("mine")

    stop = database.on_statement(fail, around=fail)  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR, "loopsafe_db"):
        assert await database.fetch_val("SELECT 1") == 1
        assert await database.fetch_val("SELECT 2") == 2
    stop()

    assert len([record for record in caplog.records if "listener" in record.message]) == 1


async def test_what_is_around_a_statement_is_entered_before_and_left_after(
    database: Database,
) -> None:
    inside: contextvars.ContextVar[str] = contextvars.ContextVar("inside", default="")
    seen: list[str] = []

    @contextmanager
    def around(sql: str) -> Iterator[None]:
        token = inside.set(sql)
        yield
        seen.append(inside.get())
        inside.reset(token)

    with heard(database, around=around):
        await database.fetch_val("SELECT 1")
        with pytest.raises(Exception, match="no_such"):
            await database.fetch_val("SELECT * FROM no_such")
        async with database.session() as session:
            await session.execute(sa.text("SELECT 3"))

    assert [one for one in seen if "SELECT" in one] == [
        *("SELECT 1", "SELECT * FROM no_such", "SELECT 3")
    ]
    assert inside.get() == ""


async def test_nobody_is_told_any_more_after_the_stop(database: Database) -> None:
    with heard(database) as told:
        await database.fetch_val("SELECT 1")
    await database.fetch_val("SELECT 2")
    async with database.session() as session:
        await session.execute(sa.text("SELECT 3"))

    assert [one.sql for one in told] == ["SELECT 1"]
    pool = database._pool()  # noqa: SLF001
    assert pool.user_driver is pool.driver  # what nobody hears costs nothing


async def test_who_listens_everywhere_hears_handles_that_are_made_later(database: Database) -> None:
    told: list[Statement] = []
    stop = loopsafe_db.on_statement(told.append)
    later = Database(database.url)
    await database.fetch_val("SELECT 1")
    await later.fetch_val("SELECT 2")
    stop()
    await later.fetch_val("SELECT 3")

    assert [one.sql for one in told] == ["SELECT 1", "SELECT 2"]


async def test_a_replica_is_heard_by_who_listens_to_its_handle(postgres_url: str) -> None:
    database = Database(postgres_url, replicas=[postgres_url])
    with heard(database) as told:
        await database.read().fetch_val("SELECT 1")

    assert [one.sql for one in told] == ["SELECT 1"]


@pytest.mark.parametrize("callback", [None, "x", asyncio.sleep])
def test_what_cannot_be_called_between_two_lines_is_refused(callback: Any) -> None:
    with pytest.raises(TypeError, match="plain function"):
        Database("sqlite:///x.db").on_statement(callback)


def listener_of_all_engines(told: list[str]) -> Callable[..., None]:
    def hear(*heard: Any) -> None:
        told.append(heard[2])

    sa.event.listen(sa.Engine, "before_cursor_execute", hear)
    return hear


async def test_a_tool_that_watches_all_engines_from_the_start_hears_each_clause(
    database: Database,
) -> None:
    told: list[str] = []
    hear = listener_of_all_engines(told)
    try:
        for _ in range(3):
            await database.fetch_all(sa.select(sa.literal_column("'clause'")))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", hear)

    assert sum("'clause'" in one for one in told) == 3


async def test_what_is_around_a_clause_is_around_other_listeners_too(database: Database) -> None:
    inside: list[str] = []
    seen: list[bool] = []

    @contextmanager
    def around(sql: str) -> Iterator[None]:
        inside.append(sql)
        yield
        inside.pop()

    @sa.event.listens_for(database.engine.sync_engine, "before_cursor_execute")
    def hear(*_: object) -> None:
        seen.append(bool(inside))

    with heard(database, around=around):
        await database.fetch_all(sa.select(sa.literal_column("1")))

    assert seen[-1:] == [True]


async def test_a_block_that_is_open_is_heard_from_now_on(database: Database) -> None:
    async with database.connection() as connection:
        with heard(database) as told:
            await connection.fetch_val("SELECT 1")
        await connection.fetch_val("SELECT 2")

    assert [one.sql for one in told] == ["SELECT 1"]


def hear_ones_own_handle(url: Any) -> weakref.ref[Database]:
    mine, seen = Database(url), []
    mine.on_statement(lambda statement: seen.append((mine, statement)))
    asyncio.run(mine.fetch_val("SELECT 1"))
    assert len(seen) == 1
    return weakref.ref(mine)


def test_a_listener_that_has_its_handle_does_not_keep_it(database: Database) -> None:
    gone = hear_ones_own_handle(database.url)
    gc.collect()

    assert gone() is None


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_copies_are_told_of(postgres_url: str, driver: str) -> None:
    database = Database(postgres_url.replace("postgresql:", f"postgresql+{driver}:"))
    await make_table(database)
    with heard(database) as told:
        await database.copy_records_to("things", [(1, "one"), (2, "two")])
        copied = [piece async for piece in database.copy_from_query("SELECT id FROM things")]

    assert b"".join(copied) == b"1\n2\n"
    copies = [(one.sql, one.rows) for one in told if one.kind == "copy"]
    assert copies == [
        ("COPY things FROM STDIN", 2),
        ("COPY (SELECT id FROM things) TO STDOUT (FORMAT text)", None),
    ]


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
async def test_a_driver_of_sqlalchemys_is_heard_on_every_path(
    mariadb_url: str, driver: str
) -> None:
    database = Database(sa.make_url(mariadb_url).set(drivername=f"mysql+{driver}"))
    await database.connect()
    with heard(database) as told:
        await database.fetch_val("SELECT :a", {"a": 1})
        await database.execute_many("DO :a", [{"a": 1}, {"a": 2}])
        async with database.transaction():
            await database.fetch_all(sa.select(sa.literal_column("2")))
        async with database.session() as session:
            await session.execute(sa.text("SELECT 3"))
            await session.commit()
        assert len([row async for row in database.iterate("SELECT 4")]) == 1
        with pytest.raises(Exception, match="no_such"):
            await database.fetch_val("SELECT * FROM no_such")

    sent = [(str(one.kind), one.sql.split()[-1]) for one in told if one.kind != "transaction"]
    assert [kind for kind, _ in sent] == ["text", "many", "clause", "session", "stream", "text"]
    assert [last for _, last in sent][2:] == ["2", "3", "4", "no_such"]
    assert told[-1].error is not None
    # A session begins by its first statement there: no BEGIN is sent. The stream has one.
    ends = [one.sql for one in told if one.kind == "transaction"]
    assert ends == ["BEGIN", "COMMIT", "COMMIT", "BEGIN", "COMMIT"]


async def test_the_first_transaction_of_a_connection_is_none_in_another(
    any_database: Database,
) -> None:
    with heard(any_database) as told:
        async with any_database.transaction():
            await any_database.fetch_val("SELECT 1")
            async with any_database.transaction():
                await any_database.fetch_val("SELECT 2")
    assert [one.sql for one in told if one.kind == "transaction"] == [
        *("BEGIN", "SAVEPOINT", "RELEASE SAVEPOINT", "COMMIT"),
    ]
    await any_database.disconnect()
