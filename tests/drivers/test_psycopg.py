"""What is special to psycopg: `%`, cancelling, sessions that end while idle, libpq after a fork, SQLAlchemy's BEGIN."""

from __future__ import annotations

import _thread
import asyncio
import os
import signal
import socket
import sys
import threading
import time
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import waiting
from sqlalchemy import make_url

from loopsafe_db import Database, PoolLimits, Timeouts
from loopsafe_db._runtime.forks import is_readable
from loopsafe_db.drivers import psycopg as driver
from loopsafe_db.drivers.psycopg_operation import Operation
from loopsafe_db.errors import (
    AuthenticationError,
    ConnectError,
    ConnectTimeout,
    ForeignLoopError,
    InvalidURLError,
    StatementTimeout,
    TransactionError,
    UnsupportedLoopError,
)
from tests.conftest import SCOPE
from tests.forks.test_forks import leave, token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator

CANCEL_REQUEST = (80877102).to_bytes(4, "big")  # PostgreSQL's protocol, "CancelRequest"
PID = "SELECT pg_backend_pid()"
WAITING = ("is_lost", "wait")  # for another thread that looks at the connection

table = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))


@pytest.fixture
def url(postgres_url: str) -> sa.URL:
    return make_url(postgres_url).set(drivername="postgresql+psycopg")


@pytest.fixture
def database(url: sa.URL) -> Database:
    return Database(url, scope=SCOPE)


@pytest.fixture
def witness(url: sa.URL) -> Database:
    return Database(url.set(drivername="postgresql"))


@pytest.fixture(params=["postgresql+asyncpg", "postgresql+psycopg"])
def either_url(request: pytest.FixtureRequest, url: sa.URL) -> sa.URL:
    """What both drivers have to understand in the same way."""
    return url.set(drivername=request.param)


async def make_things(database: Database, *ids: int) -> None:
    await database.execute("CREATE TABLE things (id int PRIMARY KEY)")
    await database.execute_many("INSERT INTO things VALUES (:id)", [{"id": i} for i in ids])


async def things(database: Database) -> list[int]:
    return [row.id for row in await database.fetch_all("SELECT id FROM things ORDER BY id")]


async def until(witness: Database, condition: str, pid: int) -> None:
    """Ask the server until one of its sessions is as it should be."""
    query = f"SELECT count(*) FROM pg_stat_activity WHERE pid = :pid AND ({condition})"
    async with asyncio.timeout(5):
        while not await witness.fetch_val(query, {"pid": pid}):
            pass


async def until_gone(witness: Database, pid: int) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"
    async with asyncio.timeout(5):
        while await witness.fetch_val(query, {"pid": pid}):
            pass


# -- texts


async def test_a_percent_sign_is_a_percent_sign(database: Database) -> None:
    row = await database.fetch_one("SELECT '100%', '%s %(y)s %%', 7 % 4")
    assert row == ("100%", "%s %(y)s %%", 3)
    row = await database.fetch_one("SELECT '100%', '%s %b %%', 7 % CAST(:x AS int)", {"x": 4})
    assert row == ("100%", "%s %b %%", 3)
    rows = await database.fetch_all(sa.text("SELECT '%s %%', 7 % :x").bindparams(x=4))
    assert rows == [("%s %%", 3)]


async def test_a_parameter_that_repeats_is_sent_once(database: Database) -> None:
    await make_things(database, 1, 2, 3)
    # as two parameters, the server could not tell that both expressions are the same
    query = "SELECT id % :n AS rest, count(*) FROM things GROUP BY id % :n ORDER BY 1"
    assert await database.fetch_all(query, {"n": 2}) == [(0, 1), (1, 2)]


async def test_of_several_statements_the_last_one_counts(database: Database) -> None:
    assert await database.execute("CREATE TABLE a (b int); INSERT INTO a VALUES (1), (2)") == 2
    assert await database.execute("CREATE TABLE c (b int)") is None
    assert await database.fetch_all("INSERT INTO a VALUES (3)") == []
    assert await database.fetch_one("SELECT WHERE false") is None
    assert await database.fetch_one("SELECT") == ()


async def test_a_prepared_statement_outlives_the_change_of_its_table(
    database: Database, witness: Database
) -> None:
    await make_things(database, 1)
    query = "SELECT * FROM things WHERE id = :id"
    async with database.connection() as connection:
        for _ in range(10):  # psycopg prepares it after five
            assert await connection.fetch_one(query, {"id": 1}) == (1,)
        await witness.execute("ALTER TABLE things ADD COLUMN more int")
        assert await connection.fetch_one(query, {"id": 1}) == (1, None)


async def test_a_value_that_cannot_be_sent_leaves_nothing_of_its_batch(database: Database) -> None:
    await make_things(database)
    insert = "INSERT INTO things VALUES (:id)"
    # so many that psycopg has sent the first ones when it comes to the last
    rows: list[dict[str, Any]] = [{"id": number} for number in range(20_000)]
    assert await database.execute_many(insert, rows) == 20_000
    await database.execute("TRUNCATE things")
    with pytest.raises(psycopg.ProgrammingError, match="cannot adapt"):
        await database.execute_many(insert, [*rows, {"id": object()}])
    assert await things(database) == []
    async with database.transaction():
        await database.execute(insert, {"id": -1})
        with pytest.raises(psycopg.ProgrammingError, match="cannot adapt"):
            await database.execute_many(insert, [*rows, {"id": object()}])
    assert await things(database) == [-1]


async def test_a_stream_leaves_no_cursor_and_half_of_one_is_in_nobodys_way(
    database: Database,
) -> None:
    query, values = "SELECT * FROM generate_series(1, :n)", {"n": 2000}
    async with database.transaction() as transaction:
        connection = transaction.connection
        assert len([row async for row in connection.iterate(query, values)]) == 2000
        assert await connection.fetch_val("SELECT count(*) FROM pg_cursors") == 0
        async with aclosing(connection.iterate(query, values)) as rows:
            assert [await anext(rows) for _ in range(600)][-1] == (600,)
            assert await connection.fetch_val("SELECT count(*) FROM pg_cursors") == 1
        assert len([row async for row in connection.iterate(query, values)]) == 2000
    assert await database.fetch_val("SELECT count(*) FROM pg_cursors") == 0


async def test_a_transaction_begins_as_it_is_told(database: Database) -> None:
    query = (
        "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
        " current_setting('transaction_deferrable')"
    )
    async with database.transaction(isolation="serializable", readonly=True, deferrable=True):
        assert await database.fetch_one(query) == ("serializable", "on", "on")
    assert await database.fetch_one(query) == ("read committed", "off", "off")
    with pytest.raises(TransactionError, match="no isolation level 'snapshot'"):
        await database.transaction(isolation="snapshot").__aenter__()


# -- SQLAlchemy's engine, on the same connections


async def test_an_engine_has_transactions_and_text_has_none(database: Database) -> None:
    await make_things(database)
    one = Database(database.url, pool=PoolLimits(1), scope=SCOPE)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with one.engine.begin() as connection:
            await connection.execute(table.insert().values(id=1))
            raise ZeroDivisionError
    async with one.engine.connect() as connection:
        await connection.execute(table.insert().values(id=2))  # rolled back: nobody commits
    async with one.engine.begin() as connection:
        await connection.execute(table.insert().values(id=3))
    await one.execute("INSERT INTO things VALUES (4)")
    await one.execute(table.insert().values(id=5))
    assert await things(database) == [3, 4, 5]
    assert await one.fetch_val("SELECT now() < clock_timestamp()")


async def test_an_engine_keeps_its_isolation_levels(database: Database) -> None:
    show = sa.text("SHOW transaction_isolation")
    serializable = database.engine.execution_options(isolation_level="SERIALIZABLE")
    async with serializable.begin() as connection:
        assert await connection.scalar(show) == "serializable"
    async with database.engine.begin() as connection:
        assert await connection.scalar(show) == "read committed"
    autocommit = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    await make_things(database)
    async with autocommit.connect() as connection:
        await connection.execute(table.insert().values(id=1))
    assert await things(database) == [1]


async def test_clauses_and_text_share_a_transaction(database: Database) -> None:
    await make_things(database)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with database.transaction():
            await database.execute("INSERT INTO things VALUES (1)")
            await database.execute(table.insert().values(id=2))
            assert await things(database) == [1, 2]
            raise ZeroDivisionError
    assert await things(database) == []


@pytest.mark.parametrize("way", ["text", "clause"])
async def test_what_the_server_says_arrives_as_psycopg_says_it(
    database: Database, way: str
) -> None:
    await make_things(database, 1)
    query = "INSERT INTO things VALUES (1)" if way == "text" else table.insert().values(id=1)
    with pytest.raises(psycopg.errors.UniqueViolation):
        await database.execute(query)


# -- stopping


async def test_a_statement_that_was_stopped_leaves_its_connection_in_order(url: sa.URL) -> None:
    database = Database(url, pool=PoolLimits(1))
    pid = await database.fetch_val(PID)
    with pytest.raises(StatementTimeout):
        await database.fetch_val("SELECT pg_sleep(60)", timeout=0.1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await database.fetch_val("SELECT pg_sleep(60)")
    assert await database.fetch_val(PID) == pid
    async with database.transaction() as transaction:
        connection = transaction.connection
        async with asyncio.timeout(5):
            with pytest.raises(StatementTimeout):
                async with connection.transaction():
                    await connection.execute("SELECT pg_sleep(60)", timeout=0.1)
            assert await connection.fetch_val(PID) == pid


@asynccontextmanager
async def deaf_to_cancelling(server: sa.URL) -> AsyncIterator[sa.URL]:
    """Stand between client and server, and keep every request to cancel."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(8)
        if first[4:8] == CANCEL_REQUEST:
            await never.wait()
            writer.close()
            return
        there, back = await asyncio.open_connection(server.host, server.port)
        back.write(first)
        tasks.append(asyncio.create_task(copy(reader, back)))
        tasks.append(asyncio.create_task(copy(there, writer)))

    never, tasks = asyncio.Event(), list[asyncio.Task[None]]()
    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        port = proxy.sockets[0].getsockname()[1]
        yield server.set(port=port, query={"sslmode": "disable", "gssencmode": "disable"})
    finally:
        proxy.close()
        never.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # until what was closed has gone


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the proxy's transports
@pytest.mark.parametrize("way", ["one", "many"])
async def test_a_server_that_will_not_stop_is_left_alone(url: sa.URL, way: str) -> None:
    async with deaf_to_cancelling(url) as deaf:
        database = Database(deaf, pool=PoolLimits(1))
        pid = await database.fetch_val(PID)
        sleep = "SELECT pg_sleep(:seconds)"
        async with asyncio.timeout(10):  # less than psycopg would take
            running = (
                database.execute(sleep, {"seconds": 60}, timeout=0.1)
                if way == "one"
                else database.execute_many(sleep, [{"seconds": 60}] * 3, timeout=0.1)
            )
            with pytest.raises(StatementTimeout):
                await running
        assert await database.fetch_val(PID) != pid
        await database.disconnect()


def test_a_connection_can_be_ended_while_another_thread_waits_for_it(
    url: sa.URL, witness: Database
) -> None:
    raws: list[Any] = []
    found = threading.Event()

    async def wait_for_it() -> None:
        async with Database(url).connection() as connection:
            raws.append(connection.raw_connection)
            raws.append(await connection.fetch_val(PID))
            found.set()
            with pytest.raises(psycopg.OperationalError):
                await connection.fetch_val("SELECT pg_sleep(60)")
            assert driver.DRIVER.is_closed(connection.raw_connection)

    failures: list[BaseException] = []

    def thread() -> None:
        try:
            asyncio.run(wait_for_it())
        except BaseException as error:  # noqa: BLE001 (the test is to hear of it)
            failures.append(error)

    running = threading.Thread(target=thread)
    running.start()
    assert found.wait(10)
    raw, pid = raws
    asyncio.run(until(witness, "state = 'active'", pid))
    driver.DRIVER.terminate(raw)
    running.join(10)
    assert (running.is_alive(), failures) == (False, [])


# -- warm connections


def test_a_hundred_runs_use_one_session(url: sa.URL) -> None:
    database = Database(url)
    assert len({asyncio.run(database.fetch_val(PID)) for _ in range(100)}) == 1


def test_a_lock_that_was_fought_for_in_one_loop_works_in_the_next(url: sa.URL) -> None:
    database = Database(url, pool=PoolLimits(1))

    async def fight() -> list[Any]:
        async with database.connection() as connection:
            raw = connection.raw_connection
            cursors = await asyncio.gather(*(raw.execute("SELECT 1") for _ in range(3)))
            return [await cursor.fetchone() for cursor in cursors]

    assert asyncio.run(fight()) == asyncio.run(fight()) == [(1,)] * 3


@pytest.mark.parametrize("moment", ["in the same loop", "between loops"])
def test_a_session_that_ended_while_idle_is_replaced(
    url: sa.URL, witness: Database, moment: str
) -> None:
    database = Database(url, pool=PoolLimits(1))

    async def kill(pid: int) -> None:
        await witness.execute("SELECT pg_terminate_backend(:pid)", {"pid": pid})
        await until_gone(witness, pid)

    async def all_in_one() -> tuple[int, int]:
        pid = await database.fetch_val(PID)
        await kill(pid)
        return pid, await database.fetch_val(PID)

    if moment == "in the same loop":
        before, after = asyncio.run(all_in_one())
    else:
        before = asyncio.run(database.fetch_val(PID))
        asyncio.run(kill(before))
        after = asyncio.run(database.fetch_val(PID))
    assert before != after
    assert database.stats().opened == 2


async def test_an_engine_replaces_it_too(url: sa.URL, witness: Database) -> None:
    database = Database(url, pool=PoolLimits(1))
    pid = await database.fetch_val(PID)
    await witness.execute("SELECT pg_terminate_backend(:pid)", {"pid": pid})
    await until_gone(witness, pid)
    async with database.engine.connect() as connection:
        assert await connection.scalar(sa.text(PID)) != pid


async def test_what_was_left_open_is_rolled_back_before_the_next(url: sa.URL) -> None:
    database = Database(url, pool=PoolLimits(1))
    await make_things(database)
    with pytest.raises(TimeoutError):  # noqa: PT012
        async with database.connection() as connection:
            await connection.execute("BEGIN")
            await connection.execute("INSERT INTO things VALUES (1)")
            await connection.execute("SELECT pg_sleep(60)", timeout=0.1)
    assert await things(database) == []


# -- forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_can_do_nothing_to_its_parents_connection(database: Database) -> None:
    async def in_child(raw: Any) -> None:
        for number in range(20):
            assert await token(database, f"child-{number}") == f"child-{number}"
        for use in (lambda: raw.execute("SELECT 1"), raw.rollback, raw.close, raw.cancel_safe):
            with pytest.raises(ForeignLoopError):
                await use()
        driver.DRIVER.terminate(raw)

    async def main() -> None:
        async with database.connection() as held:
            raw, pid = held.raw_connection, await held.fetch_val(PID)
            child = os.fork()
            if child == 0:
                leave(lambda _: asyncio.run(in_child(raw)), database)
            for number in range(100):
                assert await token(database, f"parent-{number}") == f"parent-{number}"
                assert await held.fetch_val(PID) == pid
            assert await asyncio.to_thread(end_of, child) == 0
            assert await held.fetch_val(PID) == pid

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="such a child does not end there, with bare asyncio either"
)
def test_a_child_that_exits_in_a_coroutine_stops_no_statement_of_its_parent(url: sa.URL) -> None:
    database, parent = Database(url), os.getpid()
    waiting = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

    async def main() -> int:
        async with database.connection() as holder:
            await holder.execute("SELECT pg_advisory_lock(7)")
            query = database.fetch_val("SELECT 5 FROM (SELECT pg_advisory_lock(7)) AS waited")
            task = asyncio.create_task(query)
            async with asyncio.timeout(5):
                while await holder.fetch_val(waiting) is None:
                    pass
            child = os.fork()
            if child == 0:
                sys.exit(7)  # asyncio.run cancels the child's copy of the task
            assert await asyncio.to_thread(end_of, child) == 7
            await holder.execute("SELECT pg_advisory_unlock(7)")
            return int(await task)

    try:
        assert asyncio.run(main()) == 5
    except SystemExit:
        if os.getpid() != parent:
            os._exit(7)
        raise


def end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- connecting, the same in both drivers


async def refused(url: sa.URL, **timeouts: float) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        await Database(url, timeouts=Timeouts(**timeouts)).fetch_val("SELECT 1")
    assert "hunter2" not in f"{caught.value}{caught.value!r}{caught.value.__cause__!r}"
    return caught.value


async def test_who_is_refused_learns_why(either_url: sa.URL) -> None:
    assert type(await refused(either_url.set(password="hunter2"))) is AuthenticationError
    assert type(await refused(either_url.set(username="nobody"))) is AuthenticationError
    assert type(await refused(either_url.set(database="nothing"))) is AuthenticationError
    assert type(await refused(either_url.set(port=1), connect=0.5)) is ConnectError


async def test_a_server_that_does_not_answer_is_given_up(either_url: sa.URL) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = either_url.set(port=silent.getsockname()[1], password="hunter2")
        assert type(await refused(mute, connect=0.1)) is ConnectTimeout
        asked = await refused(mute.update_query_dict({"connect_timeout": "0.1"}))
        assert "within 0.1 s" in str(asked)


async def test_names_in_the_url_mean_the_same(either_url: sa.URL) -> None:
    async def ask(query: str, **names: str) -> Any:
        return await Database(either_url.update_query_dict(names)).fetch_val(query)

    name = "SELECT current_setting('application_name')"
    assert await ask(name) == f"loopsafe_db MainProcess {os.getpid()}"
    assert await ask(name, application_name="mine") == "mine"
    assert await ask("SHOW search_path", options="-c search_path=pg_catalog") == "pg_catalog"
    assert await ask("SELECT 1", target_session_attrs="read-write", sslmode="prefer") == 1
    several = {"host": "localhost,127.0.0.1", "port": f"1,{either_url.port}"}
    assert await ask("SELECT 1", **several) == 1


async def test_what_the_server_cannot_do_is_refused(either_url: sa.URL) -> None:
    error = await refused(either_url.update_query_dict({"sslmode": "require"}))
    assert type(error) is ConnectError


async def test_a_server_of_the_wrong_kind_is_refused(url: sa.URL) -> None:
    error = await refused(url.update_query_dict({"target_session_attrs": "standby"}))
    assert type(error) is ConnectError


@pytest.mark.parametrize(
    "wrong",
    [
        {"sslmod": "require"},
        {"target_session_attrs": "hunter"},
        {"port": "x"},
        {"port": "1,2", "host": "a"},
    ],
)
def test_names_and_values_that_are_not_known_are_refused(
    either_url: sa.URL, wrong: dict[str, str]
) -> None:
    with pytest.raises(InvalidURLError, match=next(iter(wrong))):
        Database(either_url.update_query_dict(wrong))


def test_gss_encryption_is_libpqs_alone(url: sa.URL) -> None:
    Database(url.update_query_dict({"gssencmode": "disable"}))
    with pytest.raises(InvalidURLError, match="gssencmode"):
        Database(url.set(drivername="postgresql").update_query_dict({"gssencmode": "disable"}))


async def test_windows_default_loop_is_refused_with_the_cure(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "can_move", lambda loop: False)
    with pytest.raises(UnsupportedLoopError, match=r"(?s)psycopg cannot.*SelectorEventLoop"):
        await database.fetch_val("SELECT 1")


def test_a_look_at_an_idle_connection_takes_no_answer_from_another_thread(
    url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens a connection looks at the idle ones, which another loop may take at that moment."""
    database = Database(url, max_size=2)
    looking, is_idle = threading.get_ident(), threading.Event()
    answers: list[Any] = []

    async def ask() -> Any:
        async with asyncio.timeout(5):
            return await database.fetch_val("SELECT 3")

    asking = threading.Thread(target=lambda: answers.append(asyncio.run(ask())))

    def ident_of(thread: threading.Thread) -> int:
        return thread.ident or 0

    def is_readable_late(fd: int) -> bool:
        if threading.get_ident() == looking and is_idle.is_set() and not ident_of(asking):
            asking.start()
            waits = 0  # looks at the other thread that have found it waiting for this one
            while not is_readable(fd) and waits < 50:
                time.sleep(0.001)
                frame = sys._current_frames().get(ident_of(asking))  # noqa: SLF001
                waits += frame is not None and frame.f_code.co_name in WAITING
        return is_readable(fd)

    async def open_two() -> None:
        async with database.connection() as connection:
            assert await connection.fetch_val("SELECT 1") == 1
            opening = asyncio.create_task(database.fetch_val("SELECT 2"))
            await asyncio.sleep(0)
        is_idle.set()
        assert await opening == 2

    monkeypatch.setattr("loopsafe_db.drivers.psycopg.is_readable", is_readable_late)
    asyncio.run(open_two())
    asking.join()

    assert answers == [3]


@pytest.mark.parametrize("way", ["text", "clause", "session"])
async def test_a_server_without_to_regtype_is_no_obstacle(
    database: Database, witness: Database, way: str
) -> None:
    # as QuestDB has none: SQLAlchemy has psycopg look for hstore, by it
    await witness.execute("ALTER FUNCTION pg_catalog.to_regtype(text) RENAME TO gone")
    if way == "text":
        assert await database.fetch_val("SELECT 7") == 7
    elif way == "clause":
        assert await database.fetch_val(sa.select(sa.literal(7))) == 7
    else:
        async with database.session() as session:
            assert await session.scalar(sa.select(sa.literal(7))) == 7
    assert database.stats().opened == 1


async def test_who_is_cancelled_while_the_loop_gets_a_turn_is_cancelled_and_nothing_else(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", -1.0, raising=False)  # at each step
    await database.execute("CREATE TABLE things (id INTEGER)")
    rows = [{"id": number} for number in range(3)]

    for turns in range(30):
        task = asyncio.ensure_future(database.execute_many("INSERT INTO things VALUES (:id)", rows))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    assert await database.fetch_val("SELECT count(*) FROM things") % 3 == 0
    assert database.stats().opened == 1


class Counting(asyncio.SelectorEventLoop):
    """A loop that counts whom it is told to wake up."""

    told = 0

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        self.told += 1
        return super().call_soon(callback, *args, context=context)


def test_a_long_answer_wakes_its_task_once(database: Database) -> None:
    with asyncio.Runner(loop_factory=Counting) as runner:
        runner.run(database.fetch_val("SELECT 1"))
        loop = runner.get_loop()
        assert isinstance(loop, Counting)

        async def told_by(query: str) -> int:
            before = loop.told
            await database.fetch_val(query)
            return loop.told - before

        short = runner.run(told_by("SELECT 1"))
        long = runner.run(told_by("SELECT repeat('x', 30000000)"))
        runner.run(database.disconnect())
    # An exception out of a signal handler that strikes while a task is being woken leaves it asleep for ever.
    assert long == short


def test_a_signal_that_strikes_in_the_last_step_wakes_the_task() -> None:
    """Its handler raises where the next call returns: in the loop's callback, after psycopg's C has ended."""

    class Limit(Exception):
        pass

    class Strikes:
        __neg__ = staticmethod(partial(_thread.interrupt_main, signal.SIGUSR1))

    def strike(*_: object) -> None:
        raise Limit

    def steps() -> Generator[int, int, None]:
        yield waiting.WAIT_R
        -Strikes()

    async def run() -> None:
        async with asyncio.timeout(5):
            await Operation(steps(), here.fileno()).run()

    before = signal.signal(signal.SIGUSR1, strike)
    here, there = socket.socketpair()
    try:
        there.send(b"answer")
        with pytest.raises(Limit):
            asyncio.run(run())
    finally:
        signal.signal(signal.SIGUSR1, before)
        here.close()
        there.close()


async def test_a_time_out_out_of_a_signal_handler_is_no_closed_socket() -> None:
    def struck() -> Generator[int, int, None]:
        yield from ()
        raise TimeoutError("limit")

    with pytest.raises(TimeoutError, match="limit"):
        await Operation(struck(), 0).run()
