"""create_async_engine: two lines in a module work in every loop, thread and process, and mean what SQLAlchemy says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import threading
from contextvars import Context
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio
import sqlalchemy.orm
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool, StaticPool

from loopsafe_db import (
    ConfigurationError,
    Database,
    PoolLimits,
    async_engine_from_config,
    configure,
    create_async_engine,
)
from loopsafe_db.errors import PoolError
from loopsafe_db.testing.conformance import exit_code, leave
from loopsafe_db.testing.postgres import EmbeddedPostgres
from tests.conftest import SCOPE, skip_without_postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

table = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
ASYNCPG, PSYCOPG = "postgresql+asyncpg://u:p@h/d", "postgresql+psycopg://u:p@h/d"
SQLITE = "sqlite+aiosqlite:///d"


@pytest.fixture
def engine(database: Database) -> AsyncEngine:
    """As a module has it."""
    return create_async_engine(database.url, scope=SCOPE)


async def count(engine: AsyncEngine) -> int:
    async with AsyncSession(engine) as session:
        return int((await session.scalars(sa.select(sa.func.count()).select_from(table))).one())


async def add(engine: AsyncEngine, number: int) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(table.insert().values(id=number))


async def create(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(table.metadata.create_all)


def in_child(action: Callable[[], object]) -> None:
    """Run it in a forked child."""
    child = os.fork()
    if child == 0:
        leave(action)
    assert exit_code(child) == 0


def test_an_engine_and_its_sessionmaker_work_in_loops_threads_and_children(
    engine: AsyncEngine,
) -> None:
    maker = async_sessionmaker(engine, expire_on_commit=False)

    async def use(number: int) -> int:
        async with maker.begin() as session:
            await session.execute(table.insert().values(id=number))
        async with maker() as session:
            return int((await session.scalars(sa.select(table.c.id).filter_by(id=number))).one())

    def use_often(first: int) -> None:
        for number in range(first, first + 5):
            assert asyncio.run(use(number)) == number

    asyncio.run(create(engine))
    use_often(0)
    threads = [threading.Thread(target=use_often, args=(first,)) for first in (10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    in_child(lambda: use_often(30))
    use_often(40)
    assert asyncio.run(count(engine)) == 25


def test_the_sync_engine_is_one_for_all_processes(engine: AsyncEngine) -> None:
    kept = engine.sync_engine

    async def ask() -> int:
        async with AsyncSession(sync_session_class=sa.orm.Session, bind=AsyncEngine(kept)) as one:
            return int((await one.execute(sa.text("SELECT 1"))).scalar_one())

    def ask_in_child() -> None:
        assert engine.sync_engine is kept
        assert asyncio.run(ask()) == 1

    assert asyncio.run(ask()) == 1
    in_child(ask_in_child)
    assert asyncio.run(ask()) == 1


def test_a_fork_while_sqlalchemy_asks_its_first_connection_costs_the_child_nothing(
    engine: AsyncEngine,
) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("a file that is in use at a fork is refused in the child: test_sqlite")
    heard: list[str] = []

    async def ask() -> int:
        async with asyncio.timeout(20), engine.connect() as connection:
            return int((await connection.execute(sa.text("SELECT 1"))).scalar_one())

    def ask_in_child() -> None:
        heard.clear()
        assert asyncio.run(ask()) == 1
        assert heard == ["connect"]

    def fork_once(*_: Any) -> None:  # SQLAlchemy has the lock of its first connection
        in_child(ask_in_child)

    event.listen(engine.sync_engine, "connect", lambda *_: heard.append("connect"))
    event.listen(engine.sync_engine, "first_connect", fork_once, once=True)
    assert asyncio.run(ask()) == 1


async def test_a_kept_engine_and_sessionmaker_are_undone_with_their_handle(
    database: Database,
) -> None:
    engine, heard = database.engine, []
    maker = async_sessionmaker(engine)
    event.listen(engine.sync_engine, "connect", lambda *_: heard.append("connect"))
    await create(engine)
    del heard[:]
    with database.force_rollback():
        await add(engine, 1)
        async with maker.begin() as session:
            await session.execute(table.insert().values(id=2))
        assert await count(engine) == 2
        assert heard == ["connect"]
        await database.disconnect()
    assert await count(engine) == 0


def test_a_kept_engine_and_what_listens_to_it_follow_configure(postgres_url: str) -> None:
    heard: list[str] = []
    engine = configure("sqlite://", name="followed").engine
    for name in ("connect", "before_execute", "handle_error"):
        event.listen(engine.sync_engine, name, lambda *_, name=name: heard.append(name))
    configure(postgres_url, name="followed")

    async def ask() -> str:
        async with engine.connect() as connection:
            return str((await connection.execute(sa.text("SELECT current_database()"))).scalar())

    assert asyncio.run(ask()) == sa.make_url(postgres_url).database
    assert (engine.name, engine.url.drivername) == ("postgresql", "postgresql+asyncpg")
    assert heard == ["connect", "before_execute"]


def test_a_database_may_use_the_connections_of_an_engine(engine: AsyncEngine) -> None:
    database = Database(engine=engine)

    async def use() -> None:
        await create(engine)
        await database.execute("INSERT INTO things (id) VALUES (1)")
        assert await count(engine) == 1
        with database.force_rollback():
            await add(engine, 2)
            await database.disconnect()
        assert await count(engine) == 1
        assert database.stats().idle == engine.pool.checkedin() == 1  # type: ignore[attr-defined]

    asyncio.run(use())
    assert database.engine == engine


def test_a_database_takes_no_other_engine_and_nothing_beside_it(engine: AsyncEngine) -> None:
    other = sa.ext.asyncio.create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ConfigurationError, match="not AsyncEngine"):
        Database(engine=other)
    with pytest.raises(ConfigurationError, match="give Database nothing else"):
        Database("sqlite://", engine=engine)


def test_engines_of_one_handle_are_equal_and_pickle_with_it(database: Database) -> None:
    engine = database.engine
    assert engine == database.engine
    assert hash(engine) == hash(database.engine)
    assert engine != Database(database.url).engine
    assert engine != engine.execution_options(isolation_level="AUTOCOMMIT")

    async def ask(engine: AsyncEngine) -> int:
        async with engine.connect() as connection:
            return int((await connection.execute(sa.text("SELECT 1"))).scalar_one())

    assert asyncio.run(ask(pickle.loads(pickle.dumps(engine)))) == 1


def test_an_engine_is_made_by_the_url_of_another(database: Database) -> None:
    url = database.engine.url
    assert str(url) == url.render_as_string(hide_password=True)

    async def use(engine: AsyncEngine) -> int:
        async with engine.connect() as connection:
            found = (await connection.execute(sa.text("SELECT 1"))).scalar_one()
        await engine.dispose()
        return int(found)

    assert asyncio.run(use(create_async_engine(url))) == 1
    plain = url.set(query={})
    assert asyncio.run(use(sa.ext.asyncio.create_async_engine(plain, poolclass=NullPool))) == 1


def test_a_session_that_nobody_closed_is_told_as_that(engine: AsyncEngine) -> None:
    kept = []

    async def forget() -> None:
        kept.append(session := AsyncSession(engine))
        await session.execute(sa.text("SELECT 1"))

    with pytest.warns(
        ResourceWarning, match="a task that has ended for .*, an engine or a session"
    ):
        asyncio.run(forget())


async def test_what_is_checked_out_at_dispose_is_not_used_again(engine: AsyncEngine) -> None:
    async with engine.connect() as out:
        assert (await out.execute(sa.text("SELECT 1"))).scalar() == 1
        before = (await out.get_raw_connection()).driver_connection
        await engine.dispose()
        assert (await out.execute(sa.text("SELECT 2"))).scalar() == 2
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    async with engine.connect() as fresh:
        assert (await fresh.get_raw_connection()).driver_connection is not before
    await engine.dispose()


async def test_the_pool_has_sqlalchemys_figures(database: Database) -> None:
    engine = create_async_engine(database.url, scope=SCOPE, pool_size=2, max_overflow=1)
    pool: Any = engine.pool
    assert (pool.size(), pool.checkedin(), pool.checkedout(), pool.overflow()) == (2, 0, 0, -2)
    async with engine.connect(), engine.connect(), engine.connect():
        assert (pool.checkedin(), pool.checkedout(), pool.overflow()) == (0, 3, 1)
    assert (pool.checkedin(), pool.checkedout(), pool.overflow()) == (3, 0, 1)
    assert pool.status() == (
        "Pool size: 2  Connections in pool: 3 Current Overflow: 1 Current Checked out connections: 0"
    )
    await engine.dispose()


async def test_with_nullpool_each_use_connects_anew(database: Database) -> None:
    engine = create_async_engine(database.url, scope=SCOPE, poolclass=NullPool)
    handle = Database(engine=engine)
    for _ in range(2):
        async with engine.connect() as connection:
            await connection.execute(sa.text("SELECT 1"))
        assert await handle.fetch_val("SELECT 1") == 1
    stats = handle.stats()
    assert (stats.opened, stats.closed, stats.idle) == (4, 4, 0)


async def test_nobody_waits_longer_than_pool_timeout(database: Database) -> None:
    limits: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05}
    engine = create_async_engine(database.url, scope=SCOPE, **limits)
    async with engine.connect():
        with pytest.raises(sa.exc.TimeoutError) as met:
            await engine.connect()
    assert isinstance(met.value, PoolError)
    assert isinstance(pickle.loads(pickle.dumps(met.value)), sa.exc.TimeoutError)


def options_of(engine: AsyncEngine) -> Any:
    return Database(engine=engine)._options  # noqa: SLF001


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({}, {"max_connections": 15}),
        ({"pool_size": 2, "max_overflow": 3}, {"max_connections": 5}),
        ({"pool_size": 0}, {"max_connections": 1_000_000}),
        ({"pool_size": 5, "max_overflow": -1}, {"max_connections": 1_000_000}),
        ({"pool_recycle": 60}, {"recycle": 60}),
        ({"pool_recycle": -1}, {"recycle": None}),
        ({"pool_pre_ping": True}, {"pre_ping": True}),
        ({"poolclass": AsyncAdaptedQueuePool, "pool_use_lifo": True}, {"max_connections": 15}),
        ({"pool": PoolLimits(max_connections=3)}, {"max_connections": 3}),
    ],
)
def test_options_of_the_pool_mean_what_they_mean_there(
    given: dict[str, Any], limits: dict[str, Any]
) -> None:
    pool = options_of(create_async_engine(ASYNCPG, **given)).pool
    assert {name: getattr(pool, name) for name in limits} == limits


@pytest.mark.parametrize(
    ("url", "given", "query"),
    [
        (ASYNCPG, {"ssl": "require"}, {"ssl": "require"}),
        (ASYNCPG, {"timeout": 7}, {"connect_timeout": "7"}),
        (ASYNCPG, {"statement_cache_size": 0}, {"statement_cache_size": "0"}),
        (ASYNCPG, {"prepared_statement_cache_size": 0}, {"statement_cache_size": "0"}),
        (ASYNCPG, {"prepared_statement_cache_size": 500}, {}),
        (ASYNCPG, {"passfile": "f"}, {"passfile": "f"}),
        (f"{ASYNCPG}?prepared_statement_cache_size=0", {}, {"statement_cache_size": "0"}),
        (PSYCOPG, {"prepare_threshold": None}, {"statement_cache_size": "0"}),
        (
            PSYCOPG,
            {"sslmode": "require", "keepalives": 1},
            {"sslmode": "require", "keepalives": "1"},
        ),
        (SQLITE, {"timeout": 3, "check_same_thread": False}, {"timeout": "3"}),
        (SQLITE, {"detect_types": 1}, {"detect_types": "1"}),
    ],
)
def test_connect_args_are_those_of_the_driver(
    url: str, given: dict[str, Any], query: dict[str, str]
) -> None:
    assert options_of(create_async_engine(url, connect_args=given)).query == query


def test_connect_args_say_where_the_database_is() -> None:
    given = {"host": "other", "port": 1, "user": "x", "password": "secret", "database": "y"}
    url = options_of(create_async_engine(ASYNCPG, connect_args=given)).url
    assert url == sa.make_url("postgresql+asyncpg://x:secret@other:1/y")
    assert "secret" not in repr(url)
    settings = {"server_settings": {"jit": "off"}, "command_timeout": 5}
    options = options_of(create_async_engine(ASYNCPG, connect_args=settings))
    assert (options.server_settings, options.timeouts.statement) == ({"jit": "off"}, 5)


@pytest.mark.parametrize(
    ("url", "given", "why"),
    [
        (ASYNCPG, {"creator": dict}, "creator is not possible; leave it out"),
        (ASYNCPG, {"async_creator": dict}, "async_creator is not possible; leave it out"),
        (
            ASYNCPG,
            {"pool": sa.create_engine("sqlite://", poolclass=QueuePool).pool},
            "no pool of SQLAlchemy's",
        ),
        (ASYNCPG, {"poolclass": QueuePool}, "poolclass QueuePool is not possible"),
        (ASYNCPG, {"poolclass": StaticPool}, "poolclass StaticPool is not possible"),
        (ASYNCPG, {"pool_reset_on_return": "commit"}, "commit it by engine.begin"),
        (ASYNCPG, {"pool_size": "many"}, "pool_size must be a whole number"),
        (ASYNCPG, {"pool_timeout": "long"}, "pool_timeout must be more than 0 seconds"),
        (ASYNCPG, {"paramstyle": "named"}, "paramstyle is not possible"),
        (ASYNCPG, {"no_such_thing": 1}, "no_such_thing"),
        (ASYNCPG, {"connect_args": {"record_class": dict}}, r"connect_args\['record_class'\]"),
        (
            ASYNCPG,
            {"connect_args": {"prepared_statement_name_func": str}},
            "leave it out: .* say pgbouncer='transaction'",
        ),
        (PSYCOPG, {"connect_args": {"autocommit": True}}, "can only be False here"),
        (SQLITE, {"connect_args": {"factory": dict}}, r"connect_args\['factory'\]"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(url: str, given: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        create_async_engine(url, **given)


def test_staticpool_is_what_a_database_in_memory_has_anyway() -> None:
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)

    async def use() -> int:
        await create(engine)
        await add(engine, 1)
        return await count(engine)

    assert asyncio.run(use()) == 1


async def test_sqlalchemys_own_options_reach_its_engine(database: Database) -> None:
    engine = create_async_engine(
        database.url,
        scope=SCOPE,
        isolation_level="SERIALIZABLE",
        execution_options={"mine": 1},
        logging_name="named",
        hide_parameters=True,
        query_cache_size=7,
    )
    sync: Any = engine.sync_engine
    assert (sync.logging_name, sync.hide_parameters, sync._compiled_cache.capacity) == (  # noqa: SLF001
        *("named", True, 7),
    )
    async with engine.connect() as connection:
        assert connection.sync_connection is not None
        assert connection.sync_connection.get_execution_options()["mine"] == 1
        assert await connection.get_isolation_level() == "SERIALIZABLE"
    await engine.dispose()


@pytest.fixture(params=["asyncpg", "psycopg"])
def two_phases(request: pytest.FixtureRequest) -> Iterator[AsyncEngine]:
    """On a server that takes them."""
    settings = {"max_prepared_transactions": "2"}
    with skip_without_postgres(), EmbeddedPostgres(settings=settings) as server:
        url = sa.make_url(server.url)
        yield create_async_engine(url.set(drivername=f"postgresql+{request.param}"), scope=SCOPE)


async def test_a_session_commits_in_two_phases(two_phases: AsyncEngine) -> None:
    await create(two_phases)
    for number, is_kept in ((1, True), (2, False)):
        async with AsyncSession(two_phases, twophase=True) as session:
            await session.execute(table.insert().values(id=number))
            await session.run_sync(lambda sync: sync.prepare())
            await (session.commit() if is_kept else session.rollback())
    assert await count(two_phases) == 1
    async with two_phases.connect() as connection:
        level = {"isolation_level": "REPEATABLE READ"}
        await connection.execution_options(**level)
        assert await connection.get_isolation_level() == "REPEATABLE READ"
        await connection.execute(sa.text("SELECT 1"))
        assert await connection.get_isolation_level() == "REPEATABLE READ"
    await two_phases.dispose()


def test_an_engine_is_made_of_a_configuration() -> None:
    said = {"sqlalchemy.url": ASYNCPG, "sqlalchemy.pool_size": "2", "sqlalchemy.echo": "false"}
    said["sqlalchemy.pool_pre_ping"], said["other"] = "true", "1"
    options = options_of(async_engine_from_config(said, max_overflow=0))
    assert (options.pool.max_connections, options.pool.pre_ping) == (2, True)
    with pytest.raises(ConfigurationError, match=r"there is no mine\.url"):
        async_engine_from_config(said, prefix="mine.")


# -- what listens, and what DBAPI users expect


async def test_a_do_connect_listener_says_how_to_connect(postgres_driver: str) -> None:
    url = sa.make_url(postgres_driver)
    engine = create_async_engine(url.set(password="old"), scope=SCOPE)

    @event.listens_for(engine.sync_engine, "do_connect")
    def fresh_token(_: Any, __: Any, ___: Any, arguments: dict[str, Any]) -> None:
        arguments["user"], arguments["password"] = url.username, url.password
        arguments["host"] = url.host

    async with engine.connect() as connection:
        assert (await connection.execute(sa.text("SELECT current_user"))).scalar() == url.username
    assert await Database(engine=engine).fetch_val("SELECT 1") == 1
    await engine.dispose()


async def test_a_do_connect_listener_gives_no_connection_and_no_name_that_is_unknown(
    postgres_driver: str,
) -> None:
    changes: list[Any] = []
    engine = create_async_engine(postgres_driver, scope=SCOPE)

    @event.listens_for(engine.sync_engine, "do_connect")
    def listen(_: Any, __: Any, ___: Any, arguments: dict[str, Any]) -> Any:
        change = changes.pop()
        arguments.pop(
            "no_such_thing", None
        )  # SQLAlchemy 2.0 keeps what was set for the next connection
        arguments.update(change if isinstance(change, dict) else {})
        return None if isinstance(change, dict) else change

    changes.append({"no_such_thing": 1})
    with pytest.raises(ConfigurationError, match="no_such_thing, which is not possible here"):
        await engine.connect()
    changes.append(NoConnection())
    with pytest.raises(ConfigurationError, match="given a connection of its own"):
        await engine.connect()
    changes.append({})
    async with engine.connect() as connection:
        assert (await connection.execute(sa.text("SELECT 1"))).scalar() == 1
    await engine.dispose()


class NoConnection:
    driver_connection = None

    def __getattr__(self, _: str) -> Any:
        return lambda *_: self


async def test_what_a_connect_listener_has_set_outlives_a_reset(postgres_driver: str) -> None:
    engine = create_async_engine(
        postgres_driver,
        scope=SCOPE,
        pool_size=1,
        max_overflow=0,
        isolation_level="SERIALIZABLE",
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SET statement_timeout = 4321")
        cursor.close()
        connection.commit()

    shows = sa.text(
        "SELECT current_setting('statement_timeout'), current_setting('transaction_isolation')"
    )
    for text in ("SET statement_timeout = 1234", "SET ROLE postgres", "LISTEN something"):
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(sa.text(text))
        async with engine.connect() as connection:
            assert tuple((await connection.execute(shows)).one()) == ("4321ms", "serializable")
    assert Database(engine=engine).stats().opened == 1
    await engine.dispose()


async def test_a_raw_connection_that_is_closed_without_commit_keeps_nothing(
    engine: AsyncEngine,
) -> None:
    await create(engine)

    def use(connection: Any, *, commits: bool, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            cursor = connection.cursor()
            cursor.execute(f"INSERT INTO things (id) VALUES ({number})")
            cursor.close()
            if commits:
                connection.commit()

    for commits, numbers in ((False, (1,)), (True, (2, 3)), (False, (4,))):
        raw: Any = await engine.raw_connection()
        await sa.util.greenlet_spawn(use, raw, commits=commits, numbers=numbers)
        await sa.util.greenlet_spawn(raw.close)
    assert await count(engine) == 2
    await Database(engine=engine).execute("INSERT INTO things (id) VALUES (5)")
    assert await count(engine) == 3


async def test_types_that_psycopg_is_told_of_are_those_of_each_connection(
    postgres_url: str,
) -> None:
    url = sa.make_url(postgres_url).set(drivername="postgresql+psycopg")
    engine = create_async_engine(url, native_inet_types=False, json_serializer=lambda _: '"mine"')
    json = sa.select(sa.cast(sa.literal({}, sa.JSON), sa.JSON))
    async with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            assert (await connection.execute(sa.text("SELECT '::1'::inet"))).scalar() == "::1"
            assert (await connection.execute(json)).scalar() == "mine"
    await engine.dispose()


@pytest.fixture(params=["asyncpg", "psycopg"])
def postgres_driver(request: pytest.FixtureRequest, postgres_url: str) -> str:
    """The URL of a database, with each driver for it."""
    url = sa.make_url(postgres_url).set(drivername=f"postgresql+{request.param}")
    return url.render_as_string(hide_password=False)


async def test_connections_that_are_opened_together_are_not_replaced_together(
    database: Database,
) -> None:
    handle = Database(
        database.url, scope=SCOPE, pool=PoolLimits(8, idle_timeout=None, recycle=1000)
    )
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(handle.engine.connect())
    entries = handle._pool().lending._idle  # noqa: SLF001
    pauses = {round(entry.fresh_until - entry.rested) for entry in entries}
    assert len(entries) == 8
    assert len(pauses) > 1
    assert all(899 <= pause <= 1000 for pause in pauses)
    await handle.disconnect()


async def test_no_connection_that_is_open_is_used_again_once_it_has_expired(
    database: Database,
) -> None:
    async with database.connection() as held:
        assert await held.fetch_val("SELECT 1") == 1
        beside = asyncio.create_task(database.fetch_val("SELECT 1"), context=Context())
        assert await beside == 1
        database.expire_connections()
        assert database.stats().idle == 0
        assert await held.fetch_val("SELECT 2") == 2  # it is not taken away from its user
    assert database.stats().idle == 0
    assert await database.fetch_val("SELECT 3") == 3
    assert database.stats().opened == 3


def test_nothing_of_ours_has_sqlalchemy_tell_of_statements(postgres_driver: str) -> None:
    """It would make lists of listeners for each connection: a tenth of the time of a query."""
    engine = create_async_engine(postgres_driver)
    heard = (engine.sync_engine.dispatch, engine.sync_engine.dialect.dispatch)
    events = ("before_execute", "before_cursor_execute", "after_cursor_execute", "do_execute")
    assert [list(getattr(one, name, ())) for one in heard for name in events] == [[]] * 8
