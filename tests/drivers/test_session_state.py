"""What one user changes of a session, or keeps of a connection, does not reach the next."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy import make_url

from loopsafe_db import Database
from loopsafe_db.drivers.session_state import Touched, touched_by_sql
from loopsafe_db.errors import InvalidSettingError, ReleasedError, TransactionError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

PID = "SELECT pg_backend_pid()"
# What a session of PostgreSQL is like, in one row.
SESSION = """
SELECT current_setting('search_path'), nullif(current_setting('my.tenant', true), ''), current_user, session_user,
    (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_cursors WHERE is_holdable),
    (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
    (SELECT count(*) FROM pg_prepared_statements WHERE from_sql),
    current_setting('default_transaction_read_only')
"""
POSTGRESQL = [
    "SET search_path = pg_catalog",
    "/* a tenant's */ set my.tenant = 'a'",
    "SELECT set_config('my.tenant', 'a', false)",
    "UPDATE pg_catalog.pg_settings SET setting = 'pg_catalog' WHERE name = 'search_path'",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "LISTEN mine",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_lock_shared(1, 2)",
    "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
    "CREATE TEMP TABLE mine (x int)",
    "EXPLAIN ANALYZE CREATE TEMP TABLE explained AS SELECT 1 AS x",
    "EXPLAIN (ANALYZE, COSTS OFF) CREATE TEMPORARY TABLE told AS SELECT 1 AS x",
    "SELECT 1 AS x INTO TEMPORARY mine",
    "PREPARE mine AS SELECT 1",
    "DO $$ BEGIN PERFORM set_config('my.tenant', 'a', false); EXECUTE 'PREPARE mine AS SELECT 1'; END $$",
]
SQLITE = [
    "PRAGMA foreign_keys = OFF",
    "PRAGMA query_only = ON",
    "PRAGMA cache_size = 77",
    "ATTACH ':memory:' AS other",
    "CREATE TEMP TABLE mine (x int)",
]
SQLITE_SESSION = [
    "PRAGMA foreign_keys",
    "PRAGMA query_only",
    "PRAGMA cache_size",
    "SELECT count(*) FROM pragma_database_list WHERE name NOT IN ('main', 'temp')",
    "SELECT count(*) FROM temp.sqlite_master",
]
MARIADB = [
    "SET @mine = 1",
    "SELECT @mine := 1",
    "SELECT @`mine` := 1",
    "SELECT @'mine' := 1",
    'SELECT @"mine":=1',
    "SET STATEMENT max_statement_time = 9 FOR SET @mine = 1",
    "SELECT 1 INTO @`mine`",
    "IF 1 THEN SET @mine = 1; END IF",
    "GET DIAGNOSTICS @mine = NUMBER",
    "SET SESSION TRANSACTION READ ONLY",
    "SET sql_mode = 'ANSI'",
    "USE information_schema",
    "SELECT GET_LOCK('mine', 0)",
    "CREATE TEMPORARY TABLE mine (x int)",
    "PREPARE mine FROM 'SELECT 1'",
]
MARIADB_SESSION = (
    "SELECT @mine, @@session.tx_read_only, @@session.sql_mode, database(), "
    "coalesce(IS_USED_LOCK('mine') = connection_id(), 0)"  # a session that is ending may still have it
)


async def session_of(database: Database) -> list[Any]:
    """Tell what a session is like that nobody has touched."""
    if database.url.dialect == "postgresql":
        return list(await database.fetch_one(SESSION) or ())
    if database.url.dialect == "sqlite":
        return [await database.fetch_val(look) for look in SQLITE_SESSION]
    return list(await database.fetch_one(MARIADB_SESSION) or ())


def touching(database: Database) -> list[str]:
    return {"postgresql": POSTGRESQL, "sqlite": SQLITE}.get(database.url.dialect, MARIADB)


def alone(database: Database, **options: Any) -> Database:
    """Make a handle on the same database with one connection."""
    given: Any = {**database.options, "max_size": 1, **options}
    return Database(database.url, **given)


@asynccontextmanager
async def closing(database: Database) -> AsyncIterator[Database]:
    try:
        yield database
    finally:
        await database.disconnect()


async def refused(use: Callable[[], Any], kind: type[Exception] = Exception) -> None:
    with pytest.raises(kind, match="been released"):
        await use()


async def by_handle(database: Database, sql: str) -> None:
    await database.fetch_all(sql)


async def by_execute(database: Database, sql: str) -> None:
    await database.execute(sql)


async def by_connection(database: Database, sql: str) -> None:
    async with database.connection() as connection:
        await connection.execute(sql)
        await connection.fetch_all("SELECT 1")


async def by_a_block_that_fails(database: Database, sql: str) -> None:
    with suppress(RuntimeError):
        async with database.connection() as connection:
            await connection.execute(sql)
            raise RuntimeError


async def by_a_cancelled_block(database: Database, sql: str) -> None:
    touched = asyncio.Event()

    async def work() -> None:
        async with database.connection() as connection:
            await connection.execute(sql)
            touched.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await touched.wait()
    task.cancel()
    await asyncio.wait([task])


async def by_transaction(database: Database, sql: str) -> None:
    if not sql.startswith(("ATTACH", "PRAGMA")):  # SQLite has these outside only
        async with database.transaction():
            await database.execute(sql)


async def by_clause(database: Database, sql: str) -> None:
    await database.execute(sa.text(sql.replace(":", "\\:")))


async def by_session(database: Database, sql: str) -> None:
    if not sql.startswith(("ATTACH", "PRAGMA")):
        async with database.session.begin() as session:
            await session.execute(sa.text(sql.replace(":", "\\:")))


async def by_engine(database: Database, sql: str) -> None:
    async with database.engine.execution_options(
        isolation_level="AUTOCOMMIT"
    ).connect() as connection:
        await connection.exec_driver_sql(sql)


async def by_raw_connection(database: Database, sql: str) -> None:
    async with database.connection() as connection:
        raw = connection.raw_connection
        if database.url.dialect == "mysql":
            async with raw.driver_connection.cursor() as cursor:
                await cursor.execute(sql)
        else:
            await raw.execute(sql)


async def by_engines_raw_connection(database: Database, sql: str) -> None:
    async with database.engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        if database.url.dialect == "mysql":
            async with raw.cursor() as cursor:
                await cursor.execute(sql)
        else:
            await raw.execute(sql)


WAYS = [
    *(by_handle, by_execute, by_connection, by_a_block_that_fails, by_a_cancelled_block),
    *(by_transaction, by_clause, by_session, by_engine, by_raw_connection),
    by_engines_raw_connection,
]


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_user_sets_does_not_reach_the_next(
    database: Database, way: Callable[[Database, str], Awaitable[None]]
) -> None:
    async with closing(alone(database)) as mine:
        before = await session_of(mine)
        for sql in touching(mine):
            await way(mine, sql)
            assert await session_of(mine) == before, sql


@pytest.mark.parametrize("way", WAYS)
async def test_nor_what_a_user_of_mariadb_sets(
    mariadb_url: str, way: Callable[[Database, str], Awaitable[None]]
) -> None:
    async with closing(Database(mariadb_url, max_size=1)) as mine:
        before = await session_of(mine)
        for sql in touching(mine):
            await way(mine, sql)
            assert await session_of(mine) == before, sql


@pytest.mark.parametrize("way", WAYS)
async def test_nor_what_a_user_of_a_database_in_memory_sets_which_is_kept(
    way: Callable[[Database, str], Awaitable[None]],
) -> None:
    async def init(raw: Any) -> None:
        await raw.execute("PRAGMA cache_size = 123")

    async with closing(Database("sqlite://", init=init)) as mine:
        await mine.execute("CREATE TABLE kept (x int)")
        before = await session_of(mine)
        assert 123 in before
        for sql in touching(mine):
            await way(mine, sql)
            assert await session_of(mine) == before, sql
            assert await mine.fetch_val("SELECT count(*) FROM kept") == 0


async def test_a_script_is_seen_to_its_end(postgres_url: str) -> None:
    async with closing(Database(postgres_url, max_size=1)) as mine:
        before = await session_of(mine)
        await mine.execute(
            "SELECT 1; SET LOCAL my.tenant = 'a'; -- and\n SET my.tenant = 'b'; SELECT 2"
        )
        assert await session_of(mine) == before


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_only_what_was_touched_costs_a_round_trip_and_what_is_prepared_stays(
    postgres_url: str, driver: str
) -> None:
    url = make_url(postgres_url).set(drivername=f"postgresql+{driver}")
    prepared = "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql"
    last = "SELECT query FROM pg_stat_activity WHERE pid = :pid"
    async with closing(alone(Database(url))) as mine, closing(Database(postgres_url)) as witness:
        pid = {"pid": await mine.fetch_val(PID)}
        for _ in range(8):  # psycopg prepares what comes often
            await mine.fetch_val("SELECT 1")
        async with mine.transaction():
            await mine.execute("SET LOCAL my.tenant = 'a'")
            await mine.fetch_val("SELECT set_config('my.tenant', 'a', true)")
            await mine.fetch_val("SELECT 3")
        assert (await witness.fetch_val(last, pid)).strip(";") == "COMMIT"
        async with mine.session.begin() as session:
            await session.execute(sa.text("SELECT 4"))
        assert "COMMIT" in await witness.fetch_val(last, pid)
        kept = await mine.fetch_val(prepared)
        await mine.execute("SET my.tenant = 'a'")
        assert "RESET ALL" in await witness.fetch_val(last, pid)
        assert await mine.fetch_val(prepared) >= kept > 0
        assert await mine.fetch_val("SELECT 1") == 1
        assert await mine.fetch_val(PID) == pid["pid"]


async def test_what_no_reset_undoes_costs_the_connection(database: Database) -> None:
    if database.url.dialect != "postgresql":
        pytest.skip("SQLite's connections are opened anew for less")
    async with closing(alone(database)) as mine:
        before = await mine.fetch_val(PID)
        await mine.execute("LOAD 'plpgsql'")
        assert await mine.fetch_val(PID) != before


async def test_what_init_and_the_url_set_survives(database: Database) -> None:
    if database.url.dialect != "postgresql":
        pytest.skip("`test_nor_what_a_user_of_a_database_in_memory_sets_which_is_kept`")

    async def init(raw: Any) -> None:
        await raw.execute("SET my.tenant = 'of init'")

    settings = {"search_path": "pg_catalog", "my.other": "of the URL"}
    async with closing(alone(database, init=init, server_settings=settings)) as mine:
        before = await session_of(mine)
        await mine.execute("SET my.tenant = 'a'")
        await mine.execute("SET search_path = public")
        await mine.execute("SET my.other = ''")
        assert await session_of(mine) == before
        assert await mine.fetch_val("SELECT current_setting('my.other')") == "of the URL"
        assert before[:2] == ["pg_catalog", "of init"]


async def test_setup_is_called_at_each_acquire_by_whomever(database: Database) -> None:
    calls: list[Any] = []

    async def setup(raw: Any) -> None:
        await raw.execute("SELECT 1")
        calls.append(raw)

    async with closing(alone(database, setup=setup)) as mine:
        await mine.fetch_val("SELECT 1")
        async with mine.connection():
            pass
        async with mine.session() as session:
            await session.execute(sa.text("SELECT 1"))
        async with mine.engine.connect():
            pass
        assert len(calls) == 4


async def test_a_setup_that_fails_costs_the_connection_and_tells_the_caller(
    database: Database,
) -> None:
    wrong: list[str] = ["once"]

    async def setup(_: Any) -> None:
        if wrong:
            raise RuntimeError(wrong.pop())

    async with closing(alone(database, setup=setup)) as mine:
        with pytest.raises(RuntimeError, match="once"):
            await mine.fetch_val("SELECT 1")
        assert mine.stats().in_use == mine.stats().idle == 0 or mine.stats().terminated == 1
        assert await mine.fetch_val("SELECT 1") == 1


@pytest.mark.parametrize("hook", ["setup", "init"])
async def test_a_hook_that_leaves_a_transaction_open_is_told_and_loses_no_write(
    database: Database, hook: str
) -> None:
    await database.execute("CREATE TABLE written (x int)")

    async def begin(raw: Any) -> None:
        await raw.execute("BEGIN")

    hooks: Any = {hook: begin}
    async with closing(alone(database, **hooks)) as mine:
        with pytest.raises(TransactionError, match=f"{hook}= has left a transaction open"):
            await mine.execute("INSERT INTO written VALUES (1)")
        assert mine.stats().in_use == mine.stats().idle == 0
    assert await database.fetch_val("SELECT count(*) FROM written") == 0


async def test_a_reset_of_the_users_is_called_at_each_release(database: Database) -> None:
    calls: list[Any] = []

    async def reset(raw: Any) -> None:
        await raw.execute("SELECT 1")
        calls.append(raw)

    async with closing(alone(database, reset=reset)) as mine:
        await mine.fetch_val("SELECT 1")
        async with mine.transaction():
            await mine.fetch_val("SELECT 1")
        async with mine.session() as session:
            await session.execute(sa.text("SELECT 1"))
        assert len(calls) == 3
        assert mine.stats().opened == 1


async def test_a_reset_that_fails_or_hangs_costs_the_connection_and_nobody_hears(
    database: Database,
) -> None:
    wrong: list[str] = ["once"]

    async def reset(_: Any) -> None:
        if wrong:
            raise RuntimeError(wrong.pop())

    async with closing(alone(database, reset=reset)) as mine:
        assert await mine.fetch_val("SELECT 1") == 1
        assert mine.stats().terminated == 1
        assert await mine.fetch_val("SELECT 1") == 1
        assert mine.stats().opened == 2


async def test_who_is_cancelled_in_a_reset_leaves_nothing_half_reset(database: Database) -> None:
    begun = asyncio.Event()

    async def reset(_: Any) -> None:
        if not begun.is_set():
            begun.set()
            await asyncio.Event().wait()

    async with closing(alone(database, reset=reset)) as mine:
        task = asyncio.create_task(mine.fetch_val("SELECT 1"))
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert mine.stats().terminated == 1
        assert await mine.fetch_val("SELECT 1") == 1


async def test_who_is_cancelled_again_and_again_keeps_a_warm_connection(postgres_url: str) -> None:
    async with closing(Database(postgres_url, max_size=1)) as mine:
        pid = await mine.fetch_val(PID)
        with anyio.move_on_after(60) as scope:
            async with mine.connection() as connection:
                await connection.execute("SET my.tenant = 'a'")
                scope.cancel()
                await asyncio.Event().wait()
        assert await mine.fetch_val("SELECT nullif(current_setting('my.tenant', true), '')") is None
        assert await mine.fetch_val(PID) == pid


async def test_never_leaves_it_to_the_next_user_and_always_needs_no_reason(
    postgres_url: str,
) -> None:
    async with closing(Database(postgres_url, max_size=1, reset="never")) as mine:
        await mine.execute("SET my.tenant = 'a'")
        assert await mine.fetch_val("SELECT current_setting('my.tenant')") == "a"
    hidden = "CREATE FUNCTION hidden() RETURNS text LANGUAGE sql AS "
    async with closing(Database(postgres_url, max_size=1, reset="always")) as mine:
        await mine.execute(hidden + "$$ SELECT set_config('my.tenant', 'a', false) $$")
        await mine.fetch_val("SELECT hidden()")
        assert await mine.fetch_val("SELECT current_setting('my.tenant', true)") in (None, "")


def test_any_other_word_is_refused() -> None:
    with pytest.raises(InvalidSettingError, match="reset must be"):
        Database("postgresql://h/d", reset="sometimes")


async def test_what_force_rollback_is_undone_of_leaves_no_lock_and_no_channel(
    database: Database,
) -> None:
    async with closing(alone(database)) as mine:
        before = await session_of(mine)
        with mine.force_rollback():
            for sql in touching(mine):
                if not sql.startswith(("ATTACH", "PRAGMA", "DO", "SET SESSION", "SELECT 1 AS")):
                    await mine.execute(sql)
        assert await session_of(mine) == before


async def test_a_lock_goes_with_the_release(postgres_url: str) -> None:
    async with closing(Database(postgres_url)) as mine, closing(Database(postgres_url)) as other:
        await mine.fetch_val("SELECT pg_advisory_lock(7)")
        assert await other.fetch_val("SELECT pg_try_advisory_lock(7)")


async def test_a_raw_connection_that_was_kept_is_refused(database: Database) -> None:
    async with closing(alone(database)) as mine:
        async with mine.connection() as connection:
            raw = connection.raw_connection
            assert raw is connection.raw_connection
            await raw.execute("SELECT 1")
        async with mine.transaction():
            await refused(lambda: raw.execute("SELECT 1"))
            await refused(lambda: raw.close())
            assert await mine.fetch_val("SELECT 1") == 1


async def test_an_engines_raw_connection_that_was_kept_is_refused(database: Database) -> None:
    async with closing(alone(database)) as mine:
        async with mine.engine.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            await raw.execute("SELECT 1")
        async with mine.transaction():
            with pytest.raises(Exception, match="released"):
                await raw.execute("SELECT 1")


async def test_what_sqlalchemy_has_prepared_is_of_use_after_a_raw_connection(
    database: Database,
) -> None:
    async with closing(alone(database)) as one, one.session() as session:
        await session.execute(sa.text("SELECT 1"))
        await session.rollback()
        async with one.connection() as connection:
            await connection.raw_connection.execute("SELECT 2")

        assert await session.scalar(sa.text("SELECT 1")) == 1


async def test_what_asyncpg_makes_of_a_raw_connection_is_refused_after_the_block(
    postgres_url: str,
) -> None:
    import asyncpg

    async with closing(Database(postgres_url, max_size=1)) as mine:
        async with mine.connection() as connection:
            raw = connection.raw_connection
            assert isinstance(raw, asyncpg.Connection)
            statement, transaction = await raw.prepare("SELECT 1"), raw.transaction()
            async with raw.transaction():
                cursor = await raw.cursor("SELECT generate_series(1, 9)")
                assert (await cursor.fetchrow())[0] == 1
            assert await statement.fetchval() == 1
            await raw.add_listener("mine", lambda *_: None)
            await raw.execute("CREATE TEMP TABLE mine (x int)")
            assert await raw.copy_records_to_table("mine", records=[(1,)]) == "COPY 1"
        async with mine.transaction():
            await refused(lambda: statement.fetchval(), asyncpg.InterfaceError)
            await refused(lambda: cursor.fetch(1), asyncpg.InterfaceError)
            await refused(lambda: transaction.start(), asyncpg.InterfaceError)


async def test_what_psycopg_makes_of_a_raw_connection_is_refused_after_the_block(
    postgres_url: str,
) -> None:
    import psycopg
    from psycopg.rows import dict_row

    url = make_url(postgres_url).set(drivername="postgresql+psycopg")
    async with closing(Database(url, max_size=1)) as mine:
        async with mine.connection() as connection:
            raw = connection.raw_connection
            assert isinstance(raw, psycopg.AsyncConnection)
            raw.row_factory = dict_row
            cursor, named = raw.cursor(), raw.cursor("named")
            await cursor.execute("SELECT 1 AS x")
            assert await cursor.fetchone() == {"x": 1}
            async with raw.transaction():
                await named.execute("SELECT generate_series(1, 9) AS x")
                assert await named.fetchone() == {"x": 1}
            async with raw.transaction(), raw.cursor() as copying:
                await copying.execute("CREATE TEMP TABLE mine (x int)")
                async with copying.copy("COPY mine FROM STDIN") as copy:
                    await copy.write_row((1,))
            transaction = raw.transaction()
            await raw.execute("LISTEN mine")
            await raw.execute("NOTIFY mine")
            assert [note.channel async for note in raw.notifies(timeout=5, stop_after=1)] == [
                "mine"
            ]
            await raw.set_autocommit(False)
        async with mine.transaction():
            await refused(lambda: cursor.execute("SELECT 1"), ReleasedError)
            await refused(lambda: named.fetchone(), ReleasedError)
            await refused(lambda: transaction.__aenter__(), ReleasedError)
            await refused(lambda: raw.cancel_safe(), ReleasedError)
            with pytest.raises(ReleasedError, match=__name__.rpartition(".")[2]):
                _ = raw.pgconn
        async with mine.connection() as connection:
            assert connection.raw_connection.autocommit
            row = await (await connection.raw_connection.execute("SELECT 2 AS x")).fetchone()
            assert row == (2,)


async def test_what_aiosqlite_makes_of_a_raw_connection_is_refused_after_the_block(
    tmp_path: Path,
) -> None:
    import aiosqlite

    async with closing(Database(f"sqlite:///{tmp_path}/a.db", max_size=1)) as mine:
        async with mine.connection() as connection:
            raw = connection.raw_connection
            assert isinstance(raw, aiosqlite.Connection)
            cursor = await raw.execute("SELECT 1 UNION SELECT 2")
            async with raw.execute("SELECT 3") as other:
                assert await other.fetchone() == (3,)
            assert await cursor.fetchone() == (1,)
        async with mine.transaction():
            await refused(lambda: cursor.fetchone(), ReleasedError)
            await refused(lambda: raw.commit(), ReleasedError)


async def test_what_mariadbs_driver_is_asked_for_is_refused_after_the_block(
    mariadb_url: str,
) -> None:
    async with closing(Database(mariadb_url, max_size=1)) as mine:
        async with mine.connection() as connection:
            raw = connection.raw_connection
            drivers = raw.driver_connection
        with pytest.raises(ReleasedError, match="has been released"):
            raw.cursor()
        async with mine.transaction():
            with pytest.raises(Exception, match=r"closed|Not connected|NoneType"):
                await drivers.ping(reconnect=False)


TOUCH = {
    "postgresql": [
        *POSTGRESQL,
        "/* a /* nested */ comment */ SET x = 1",
        "BEGIN;\n-- first\nSET x = 1; COMMIT",
        "CREATE/**/LOCAL TEMP VIEW v AS SELECT 1",
        "CREATE TABLE pg_temp.x ()",
        "SELECT \"set_config\"('a', 'x, true)', false)",
        "SELECT set_config(:a, :b, :c)",
        "CALL mine()",
        "LOAD 'plpgsql'",
        "SELECT setseed(0.5)",
        "SET SESSION seed TO 0.5",
        "SELECT pg_backup_start('x')",
        "SELECT pg_create_physical_replication_slot('x', true, true)",
        "SELECT dblink_connect('a', 'b')",
        "DISCARD ALL",
        "RESET ALL",
    ],
    "sqlite": [
        *SQLITE,
        "pragma main.cache_size(10)",
        "CREATE TABLE temp.x (a)",
        "CREATE TABLE 'temp'.x (a)",
        "SELECT load_extension('x')",
    ],
    "mysql": [
        *MARIADB,
        "/*!40101 SET NAMES utf8 */",
        "LOCK TABLES x READ",
        "SELECT 1 INTO @a",
        "BACKUP LOCK x",
        "BACKUP STAGE START",
        "LOCK INSTANCE FOR BACKUP",
        "XA START 'x'",
        "LOAD DATA LOCAL INFILE 'x' INTO TABLE t (a, @b)",
    ],
    "mssql": ["SELECT 1 AS x INTO #mine"],
}
LEAVE = {
    "postgresql": [
        "SELECT 1",
        "UPDATE t SET a = 1 WHERE b IN (SELECT name FROM pg_settings)",
        "INSERT INTO t VALUES (1) ON CONFLICT DO UPDATE SET a = 1",
        "SET LOCAL x = 1",
        "SET TRANSACTION READ ONLY",
        "SET CONSTRAINTS ALL DEFERRED",
        "SELECT set_config('a', $1, true)",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT pg_try_advisory_xact_lock_shared(1)",
        "PREPARE TRANSACTION 'x'",
    ],
    "sqlite": [
        "PRAGMA foreign_keys",
        "PRAGMA main.table_info('x')",
        'PRAGMA temp.index_list("x");',
        "PRAGMA user_version = 3",
        "SELECT temp.x FROM temp",
    ],
    "mysql": [
        "UPDATE t SET a = 1",
        "SELECT @a",
        "SELECT LAST_INSERT_ID()",
        "SELECT 'a@b.c'",
        "SET STATEMENT max_statement_time = 9 FOR SELECT 1",
        "INSERT INTO t VALUES (1) ON DUPLICATE KEY UPDATE a = 1",
    ],
    "mssql": ["SELECT 1 AS x INTO mine"],
}


@pytest.mark.parametrize("dialect", TOUCH)
def test_a_text_is_known_by_what_it_says(dialect: str) -> None:
    assert [sql for sql in TOUCH[dialect] if not touched_by_sql(sql, f"{dialect}+any")] == []
    assert [sql for sql in LEAVE[dialect] if touched_by_sql(sql, f"{dialect}+any")] == []


def test_only_what_names_no_role_is_undone_by_less_than_everything() -> None:
    def kind(sql: str) -> int:
        return touched_by_sql(sql, "postgresql+any")

    assert {kind(sql) for sql in ("SET search_path = a", "set session a.b to 5")} == {
        Touched.PARAMETER
    }
    roles = ["SET ROLE x", "SET role = x", "SET SESSION AUTHORIZATION x", 'SET "role" TO x']
    assert {kind(sql) for sql in [*roles, "SET session_authorization TO x"]} == {Touched.SETTINGS}
    assert kind("SET a = 1; SET ROLE x") & Touched.SETTINGS
