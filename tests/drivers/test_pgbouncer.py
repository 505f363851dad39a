"""Behind a PgBouncer with two servers everything works; where nobody has said that it is there, the error does."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from loopsafe_db import Database, PoolLimits
from loopsafe_db.errors import InvalidSettingError, PgBouncerError, UnsupportedError
from tests.conftest import SCOPE, skip_without
from tests.drivers.pgbouncer import pgbouncer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from loopsafe_db.testing.servers import PostgresServer

TASKS = 50
PID = "SELECT pg_backend_pid()"
things = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("what", sa.JSON),
)


@pytest.fixture(scope="module", params=["transaction", "session", "transaction keeps"])
def bouncer(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[sa.URL]:
    """The URL of a PgBouncer; its query has the pool mode, and whether it keeps what was prepared."""
    mode, _, keeps = request.param.partition(" ")
    with (
        skip_without("PgBouncer of today" if keeps else "PgBouncer"),
        pgbouncer(postgres_server.url, mode, keeps=bool(keeps)) as url,
    ):
        yield url.set(query={"mode": mode, "keeps": keeps})


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, bouncer: sa.URL, postgres_url: str) -> sa.URL:
    """The URL of tables of its own, through the PgBouncer."""
    asyncio.run(make_tables(Database(postgres_url)))
    database = sa.make_url(postgres_url).database
    return bouncer.set(drivername=f"postgresql+{request.param}", query={}, database=database)


@pytest.fixture
def mode(bouncer: sa.URL) -> str:
    return str(bouncer.query["mode"])


@pytest.fixture
def handle(url: sa.URL, mode: str) -> Database:
    """A handle that knows of the PgBouncer."""
    return Database(url, pgbouncer=mode, scope=SCOPE)


@pytest.fixture
def unaware(url: sa.URL, bouncer: sa.URL) -> Database:
    """One that does not, where what was prepared is lost."""
    if bouncer.query["mode"] == "session" or bouncer.query["keeps"]:
        pytest.skip("nothing is lost")
    return Database(url, scope=SCOPE, pool=PoolLimits(1))


async def make_tables(database: Database) -> None:
    await database.execute("CREATE TABLE things (id int PRIMARY KEY, what json)")
    await database.execute("CREATE TYPE mood AS ENUM ('glad', 'sad')")


async def do_everything(database: Database, number: int) -> None:
    """What a program asks of a handle; each `number` has rows of its own."""
    first = number * 100
    assert await database.fetch_val("SELECT CAST(:mood AS mood)", {"mood": "sad"}) == "sad"
    await database.execute_many(
        "INSERT INTO things (id) VALUES (:id)", [{"id": first + id_} for id_ in range(20)]
    )
    async with database.transaction() as transaction:
        connection = transaction.connection
        pid = await connection.fetch_val(PID)
        await connection.execute("INSERT INTO things (id) VALUES (:id)", {"id": first + 20})
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with database.transaction():
                await database.execute("DELETE FROM things WHERE id = :id", {"id": first})
                raise ZeroDivisionError
        assert await connection.fetch_val(PID) == pid
    await database.execute(things.insert().values(id=first + 21, what={"n": number}))
    mine = sa.select(things.c.id, things.c.what).where(things.c.id.between(first, first + 99))
    assert len(await database.fetch_all(mine)) == 22
    seen = [row.id async for row in database.iterate(mine)]
    query, values = (
        "SELECT id FROM things WHERE id BETWEEN :a AND :b",
        {"a": first, "b": first + 99},
    )
    assert sorted(seen) == sorted([row.id async for row in database.iterate(query, values)])
    async with AsyncSession(database.engine) as session, session.begin():
        await session.execute(things.insert().values(id=first + 22, what=[number]))
        what = await session.scalar(sa.select(things.c.what).where(things.c.id == first + 22))
        assert what == [number]
    for turn in range(8):  # psycopg prepares what it has seen five times
        assert await database.fetch_val("SELECT CAST(:n AS int)", {"n": turn}) == turn
        assert await database.fetch_all("SELECT :n + 1 WHERE :n > 0", {"n": number}) == [
            (number + 1,)
        ]


async def many(database: Database, begin: int, count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(begin, begin + count):
            group.create_task(do_everything(database, number))


async def test_fifty_tasks_share_two_servers(handle: Database) -> None:
    await many(handle, 1, TASKS)
    assert await handle.fetch_val(sa.select(sa.func.count()).select_from(things)) == TASKS * 23


def test_so_do_loops_and_threads(handle: Database) -> None:
    failures: list[BaseException] = []

    def run_loops(thread: int) -> None:
        try:
            for turn in range(2):
                asyncio.run(many(handle, thread * 100 + turn * 10, 5))
        except BaseException as error:  # noqa: BLE001 (the test is to hear of it)
            failures.append(error)

    threads = [threading.Thread(target=run_loops, args=(number,)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


async def test_settings_of_a_session_are_refused(url: sa.URL, mode: str) -> None:
    with pytest.raises(InvalidSettingError, match="SET LOCAL"):
        Database(url, server_settings={"search_path": "mine"}, pgbouncer=mode)
    with pytest.raises(InvalidSettingError, match="SET LOCAL"):
        Database(url.update_query_dict({"options": "-c search_path=mine"}), pgbouncer=mode)


async def test_nothing_stays_prepared_on_any_server(handle: Database, mode: str) -> None:
    if mode == "session":
        pytest.skip("in a session it may")
    await many(handle, 1, 5)
    async with asyncio.TaskGroup() as group:
        both = asyncio.Barrier(2)

        async def look() -> None:
            async with handle.transaction() as transaction:
                connection = transaction.connection
                await both.wait()  # two transactions at once: two servers
                query = "SELECT count(*) FROM pg_prepared_statements WHERE name <> ''"
                assert await connection.fetch_val(query) == 0

        for _ in range(2):
            group.create_task(look())


# -- where nobody has said so


def ask_unaware(url: str, first: int, start: Any) -> tuple[int, int]:
    """Ask much, as a process that does not know of the PgBouncer; give the right answers, and the others."""
    database, answers = Database(url), []

    async def ask(kind: int) -> None:
        mine = first + kind
        clause: sa.ColumnElement[int] = sa.literal_column(str(mine))
        for number in range(10):
            try:
                if kind % 2:
                    query = f"SELECT CAST(:n AS int) + {mine}"
                    answer = await database.fetch_val(query, {"n": number})
                else:
                    answer = await database.fetch_val(sa.select(sa.literal(number) + clause))
            except PgBouncerError:
                continue
            answers.append(answer == number + mine)

    async def ask_much() -> None:
        await asyncio.gather(*(ask(kind) for kind in range(12)))

    start.wait()
    asyncio.run(ask_much())
    return answers.count(True), answers.count(False)


def test_two_processes_never_get_each_others_answers(unaware: Database) -> None:
    url = unaware.url.render_as_string(hide_password=False)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(2, context) as processes:
        start = manager.Barrier(2)
        running = [processes.submit(ask_unaware, url, first, start) for first in (0, 1000)]
        right, wrong = map(sum, zip(*(process.result(60) for process in running), strict=True))
    assert wrong == 0
    assert right


@asynccontextmanager
async def another_server(database: Database, pid: int) -> AsyncIterator[None]:
    """Keep the server of that pid busy, so that the next transaction gets another one."""
    holder = Database(database.url, pgbouncer="transaction")
    async with holder.transaction():
        while await holder.fetch_val(PID) != pid:
            pytest.fail("PgBouncer gave the server that was idle for longer")
        yield


@pytest.mark.parametrize("way", ["text", "clause", "session"])
async def test_a_lost_statement_says_who_has_lost_it(unaware: Database, way: str) -> None:
    query: Any = PID if way == "text" else sa.select(sa.func.pg_backend_pid())

    async def ask() -> int:
        if way != "session":
            return int(await unaware.fetch_val(query))
        # a rollback would have psycopg forget what it has prepared
        async with AsyncSession(unaware.engine) as session, session.begin():
            return int(await session.scalar(query))

    pids = {await ask() for _ in range(8)}  # psycopg prepares what it has seen five times
    assert len(pids) == 1
    async with another_server(unaware, pids.pop()):
        with pytest.raises(PgBouncerError, match='pgbouncer="transaction"') as caught:
            await ask()
    cause: Any = caught.value.__cause__
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, asyncpg.PostgresError | psycopg.Error)
    assert cause.sqlstate == "26000"


async def test_a_refused_startup_parameter_says_so_too(unaware: Database) -> None:
    database = Database(unaware.url, server_settings={"work_mem": "8MB"})
    with pytest.raises(PgBouncerError, match="startup parameter"):
        await database.fetch_val("SELECT 1")


async def test_a_statement_of_the_users_own_is_nobodys_business(postgres_url: str) -> None:
    database = Database(postgres_url)
    with pytest.raises(asyncpg.InvalidSQLStatementNameError):
        await database.execute("EXECUTE mine")


# -- where it keeps what was prepared, by its text, for all clients

SHAPE = "SELECT * FROM shape"
keeping = pytest.mark.parametrize("bouncer", ["transaction keeps"], indirect=True, scope="module")


@pytest.fixture
def unaware_of_keeping(url: sa.URL, postgres_url: str) -> Callable[[], Database]:
    """Makes handles that do not know of it; the PgBouncer knows `SHAPE` as it was before a column was added."""

    def make() -> Database:
        return Database(url, scope=SCOPE, pool=PoolLimits(1))

    async def prepare_and_alter() -> None:
        direct = Database(postgres_url)
        await direct.execute("CREATE TABLE shape (id int); INSERT INTO shape VALUES (1)")
        async with make() as first:
            for ask in (rows_of_text, rows_of_clause, rows_of_stream, rows_of_session):
                for _ in range(8):
                    assert await ask(first) == [(1,)]
        await direct.execute("ALTER TABLE shape ADD COLUMN more int")

    asyncio.run(prepare_and_alter())
    return make


async def rows_of_text(database: Database) -> list[Any]:
    return await database.fetch_all(SHAPE)


async def rows_of_clause(database: Database) -> list[Any]:
    return await database.fetch_all(sa.text(SHAPE))


async def rows_of_stream(database: Database) -> list[Any]:
    return [row async for row in database.iterate(SHAPE)]


async def rows_of_clauses_stream(database: Database) -> list[Any]:
    return [row async for row in database.iterate(sa.text(SHAPE))]


async def rows_of_transaction(database: Database) -> list[Any]:
    async with database.transaction():
        return await database.fetch_all(SHAPE)


async def rows_of_session(database: Database) -> list[Any]:
    async with database.session() as session:
        return list((await session.execute(sa.text(SHAPE))).all())


@keeping
@pytest.mark.parametrize(
    "ask", [rows_of_text, rows_of_clause, rows_of_stream, rows_of_clauses_stream]
)
async def test_an_altered_table_is_read_at_once(
    unaware_of_keeping: Callable[[], Database], ask: Callable[[Database], Awaitable[list[Any]]]
) -> None:
    for _ in range(2):  # a process that comes later has it as hard
        async with unaware_of_keeping() as database:
            for _ in range(8):
                assert await ask(database) == [(1, None)]
            assert database.stats().opened == 1


@keeping
@pytest.mark.parametrize("ask", [rows_of_transaction, rows_of_session])
async def test_a_transaction_on_an_altered_table_fails_once_at_most(
    unaware_of_keeping: Callable[[], Database], ask: Callable[[Database], Awaitable[list[Any]]]
) -> None:
    async with unaware_of_keeping() as database:
        failed = []
        for _ in range(8):
            try:
                assert await ask(database) == [(1, None)]
            except (PgBouncerError, psycopg.Error, sa.exc.DBAPIError) as error:
                failed.append(error)
        assert len(failed) <= 1
        if database.url.driver == "asyncpg":
            assert [type(error) for error in failed] == [PgBouncerError]
            assert 'pgbouncer="transaction"' in str(failed[0])
        assert database.stats().opened == 1


@keeping
@pytest.mark.parametrize("ask", [rows_of_text, rows_of_clause, rows_of_stream, rows_of_session])
async def test_who_knows_of_it_never_meets_an_altered_table(
    unaware_of_keeping: Callable[[], Database], ask: Callable[[Database], Awaitable[list[Any]]]
) -> None:
    async with Database(unaware_of_keeping().url, pgbouncer="transaction", scope=SCOPE) as database:
        assert [await ask(database) for _ in range(8)] == [[(1, None)]] * 8


@keeping
async def test_a_users_own_statement_is_never_another_one(
    unaware_of_keeping: Callable[[], Database],
) -> None:
    async with unaware_of_keeping() as database:
        if database.url.driver != "asyncpg":
            pytest.skip("psycopg hands out no statements")
        await database.fetch_all(SHAPE)
        async with database.transaction() as transaction:
            raw = transaction.connection.raw_connection
            mine = await raw.prepare(SHAPE)
            assert await raw.fetchval("SELECT CAST($1 AS int)", 7) == 7
            assert list(await mine.fetch()) == [(1, None)]


async def test_the_doctor_finds_it_whatever_its_version(
    url: sa.URL, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = pytest.importorskip("loopsafe_db.cli.database_checks")
    text = url.render_as_string(hide_password=False)

    (found,) = (each for each in await checks.check_database(text) if each.code == "D106")
    monkeypatch.setenv("LOOPSAFE_DB_PGBOUNCER", mode)
    told = [str(each) for each in await checks.check_database(text)]

    assert "pgbouncer=" in found.cure
    assert any(f"D100 ok: a pooler is in front, in {mode} mode" in each for each in told), told
    assert not any(each.startswith("D106") for each in told)


# -- where it tells its pool mode at login


async def lock(database: Database) -> None:
    async with database.advisory_lock("mine"):
        pass


async def hear(database: Database) -> None:
    async with aclosing(database.listen("news")) as told, asyncio.timeout(20):
        await anext(told)


@keeping
@pytest.mark.parametrize("said", [None, "session"])
@pytest.mark.parametrize("use", [lock, hear])
async def test_what_needs_a_session_is_refused_whatever_was_said_of_the_pool_mode(
    url: sa.URL, said: Any, use: Callable[[Database], Awaitable[None]]
) -> None:
    async with Database(url, pgbouncer=said, scope=SCOPE) as database:
        with pytest.raises(UnsupportedError, match=r"LDB114.* PgBouncer in transaction mode"):
            await use(database)


@pytest.mark.parametrize("bouncer", ["session keeps"], indirect=True, scope="module")
async def test_in_session_mode_it_is_heard_and_locked_where_nothing_was_said(url: sa.URL) -> None:
    async with Database(url, scope=SCOPE) as database:
        await lock(database)

        async def tell() -> None:
            while True:
                await database.execute("NOTIFY news")
                await asyncio.sleep(0.05)

        telling = asyncio.create_task(tell())
        await hear(database)
        telling.cancel()
