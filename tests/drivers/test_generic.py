"""The generic driver, on a real MariaDB: what the conformance suite cannot ask of every driver."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import make_url

from loopsafe_db import Database, PoolLimits, Timeouts, register_driver
from loopsafe_db.drivers.generic import GenericDriver
from loopsafe_db.errors import (
    ConnectTimeout,
    InvalidSettingError,
    InvalidURLError,
    QueryError,
    StatementTimeout,
    TransactionError,
)
from loopsafe_db.queries import CompiledText, compile_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(params=["aiomysql", "asyncmy"])
async def maria(request: pytest.FixtureRequest, mariadb_url: str) -> AsyncIterator[Database]:
    """A handle whose connections are closed after the test."""
    url = make_url(mariadb_url).set(drivername=f"mysql+{request.param}")
    database = Database(url)
    yield database
    await database.disconnect()


@pytest.fixture
async def witness(mariadb_url: str) -> AsyncIterator[Database]:
    database = Database(mariadb_url)
    yield database
    await database.disconnect()


async def session_of(database: Database) -> int:
    return int(await database.fetch_val("SELECT CONNECTION_ID()"))


async def gone(witness: Database, session: int) -> bool:
    query = "SELECT count(*) FROM information_schema.processlist WHERE id = :id"
    async with asyncio.timeout(5):
        while await witness.fetch_val(query, {"id": session}):  # noqa: ASYNC110 (no event tells of it)
            await asyncio.sleep(0.01)
    return True


# -- texts


async def test_bytes_are_sent_as_they_are(maria: Database) -> None:
    given = bytes(range(256)) + b"%s '' \\"
    table = sa.Table("files", sa.MetaData(), sa.Column("body", sa.LargeBinary))
    async with maria.engine.begin() as connection:
        await connection.run_sync(table.metadata.drop_all)
        await connection.run_sync(table.metadata.create_all)
    await maria.execute("INSERT INTO files VALUES (:body)", {"body": given})
    await maria.execute_many("INSERT INTO files VALUES (:body)", [{"body": given}, {"body": given}])
    await maria.execute(table.insert(), {"body": given})
    async with maria.session() as session, session.begin():
        await session.execute(table.insert().values(body=given))
    rows = await maria.fetch_all("SELECT body FROM files WHERE body = :body", {"body": given})
    assert [row.body for row in rows] == [given] * 5


@pytest.mark.parametrize(
    ("dialect", "sql"),
    [
        ("mysql+aiomysql", "SELECT %s, '5%%', %s, %s"),
        ("sqlite+aiosqlite", "SELECT ?, '5%', ?, ?"),
        ("postgresql+psycopg_async", "SELECT %(b)s, '5%%', %(a)s, %(b)s"),
    ],
)
def test_texts_are_written_as_the_driver_wants_them(dialect: str, sql: str) -> None:
    assert compile_text("SELECT :b, '5%', :a, :b", dialect).sql == sql


def test_a_driver_may_take_its_arguments_by_name() -> None:
    compiled = compile_text("SELECT :b, :a, :b", "postgresql+psycopg_async")
    many: Any = compiled.many([{"a": 1, "b": 2}])

    assert compiled.arguments({"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert many == [{"a": 1, "b": 2}]
    with pytest.raises(QueryError, match=r"no value for :a, no parameter :c"):
        compiled.arguments({"b": 1, "c": 2})


def test_a_name_that_the_dialect_has_to_quote_is_given_as_it_wants_it() -> None:
    compiled = CompiledText('SELECT :"size"', ("size",), frozenset(["size"]), ('"size"',))
    assert compiled.arguments({"size": 1}) == {'"size"': 1}


# -- transactions


@pytest.mark.parametrize(
    "text", ["BEGIN", "begin work;", "START TRANSACTION READ ONLY", "/* now */ start\ntransaction"]
)
async def test_a_begin_as_text_is_refused_with_the_cure(maria: Database, text: str) -> None:
    await maria.execute("CREATE OR REPLACE TABLE begun (n int)")
    with pytest.raises(TransactionError, match=r"(?s)LDB107.*db\.transaction\(\)"):  # noqa: PT012
        async with maria.transaction():
            await maria.execute("INSERT INTO begun VALUES (1)")
            await maria.execute(text)
    assert await maria.fetch_val("SELECT count(*) FROM begun") == 0
    await maria.execute("DROP TABLE begun")
    for ask in (maria.execute, maria.fetch_all):
        with pytest.raises(TransactionError):
            await ask(text)
    await maria.execute("BEGIN NOT ATOMIC SELECT 1; END")
    assert await maria.fetch_val("SELECT 'BEGIN'") == "BEGIN"


async def test_isolation_holds_for_its_transaction_alone(maria: Database) -> None:
    one = Database(maria.url, pool=PoolLimits(1))
    before = await one.fetch_val("SELECT @@tx_isolation")
    async with one.transaction(isolation="read_committed"):
        assert await one.fetch_val("SELECT @@tx_isolation") == "READ-COMMITTED"
    assert await one.fetch_val("SELECT @@tx_isolation") == before
    with pytest.raises(ZeroDivisionError):
        async with one.transaction(isolation="serializable"):
            raise ZeroDivisionError
    assert await one.fetch_val("SELECT @@tx_isolation") == before
    async with one.connection() as connection:
        forgotten = await connection.transaction(isolation="serializable")
    del forgotten  # nobody has ended it
    assert await one.fetch_val("SELECT @@tx_isolation") == before
    assert one.stats().opened == 1
    await one.disconnect()


async def test_a_level_that_there_is_not_is_refused(maria: Database) -> None:
    with pytest.raises(TransactionError, match="no isolation level 'SNAPSHOT'"):
        async with maria.transaction(isolation="snapshot"):
            pass
    assert await maria.fetch_val("SELECT 1") == 1


async def test_a_read_only_transaction_refuses_to_write_and_ends(maria: Database) -> None:
    one = Database(maria.url, pool=PoolLimits(1))
    await one.execute("CREATE TABLE IF NOT EXISTS written (id INT PRIMARY KEY)")
    async with one.transaction(readonly=True):
        pass  # one without statements must not make the next read-only
    with pytest.raises(Exception, match="READ ONLY"):
        async with one.transaction(readonly=True):
            await one.execute("INSERT INTO written VALUES (1)")
    await one.execute("INSERT INTO written VALUES (1)")
    await one.execute("DROP TABLE written")
    await one.disconnect()


async def test_without_known_read_only_transactions_there_are_none(tmp_path: Any) -> None:
    register_driver("sqlite+generic", GenericDriver("sqlite+aiosqlite"))
    database = Database(f"sqlite+generic:///{tmp_path}/x.db")
    with pytest.raises(TransactionError, match="sqlite has no read-only transactions"):
        async with database.transaction(readonly=True):
            pass
    await database.disconnect()


@pytest.mark.parametrize("place", ["", "/:memory:", "/file::memory:?uri=true"])
async def test_a_database_in_memory_is_kept_whatever_was_set(place: str) -> None:
    register_driver("sqlite+generic", GenericDriver("sqlite+aiosqlite"))
    database = Database(f"sqlite+generic://{place}")
    await database.execute("CREATE TABLE kept (id integer)")
    await database.execute("PRAGMA cache_size = 100")
    async with database.session() as session:
        await session.execute(sa.text("INSERT INTO kept VALUES (1)"))
        await session.commit()
    assert await database.fetch_val("SELECT count(*) FROM kept") == 1
    await database.disconnect()


async def test_a_connection_at_rest_has_no_transaction_open(
    maria: Database, witness: Database
) -> None:
    await maria.fetch_all("SELECT * FROM information_schema.schemata")
    await maria.fetch_all(sa.select(sa.literal(1)))
    session = await session_of(maria)
    query = (
        "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = :session"
    )
    assert await witness.fetch_val(query, {"session": session}) == 0


# -- endings


async def test_an_interrupted_connection_is_ended_and_the_server_sees_it(
    maria: Database, witness: Database
) -> None:
    async with maria.connection() as connection:
        session = int(await connection.fetch_val("SELECT CONNECTION_ID()"))
        with pytest.raises(TimeoutError):
            await connection.fetch_val("SELECT SLEEP(0.5)", timeout=0.05)
    assert maria.stats().terminated == 1
    assert await gone(witness, session)
    assert await session_of(maria) != session


async def test_a_session_that_the_server_ended_is_not_lent_again(
    maria: Database, witness: Database
) -> None:
    session = await session_of(maria)
    await witness.execute(f"KILL {session}")
    assert await gone(witness, session)
    assert await session_of(maria) != session


async def test_any_thread_may_end_a_connection(maria: Database, witness: Database) -> None:
    async with maria.connection() as connection:
        session = int(await connection.fetch_val("SELECT CONNECTION_ID()"))
        raw = connection.raw_connection
        thread = threading.Thread(target=GenericDriver("mysql+aiomysql").terminate, args=(raw,))
        thread.start()
        thread.join()  # this loop has not had a turn
        assert raw.is_closed
        with pytest.raises(Exception):  # noqa: B017, PT011 (the driver's own)
            await connection.fetch_val("SELECT 1")
    assert await gone(witness, session)
    assert await maria.fetch_val("SELECT 1") == 1


def test_what_a_closed_loop_left_is_ended_and_no_driver_complains(mariadb_url: str) -> None:
    for name in ("aiomysql", "asyncmy"):
        database = Database(make_url(mariadb_url).set(drivername=f"mysql+{name}"))
        loop = asyncio.SelectorEventLoop()  # uvloop's warns, as it is closed, of what it finds open
        session = loop.run_until_complete(session_of(database))
        loop.close()
        gc.collect()  # a transport that is not closed would be a ResourceWarning
        assert database.stats().idle == 0
        assert asyncio.run(gone_for(mariadb_url, session))


async def gone_for(url: str, session: int) -> bool:
    witness = Database(url)
    try:
        return await gone(witness, session)
    finally:
        await witness.disconnect()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_a_child_does_not_keep_its_parents_socket(maria: Database, witness: Database) -> None:
    reading, writing = os.pipe()
    async with maria.connection() as connection:
        session = int(await connection.fetch_val("SELECT CONNECTION_ID()"))
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # it lives until its parent has looked
            os._exit(0)
        # closes, but takes no leave: the server learns of it when the last descriptor is closed
        connection.raw_connection.end()
    try:
        assert await gone(witness, session)
    finally:
        os.close(writing)
        os.close(reading)
        await asyncio.to_thread(os.waitpid, child, 0)


async def test_a_statement_of_a_session_that_takes_too_long_is_given_up(maria: Database) -> None:
    database = Database(maria.url, pool=PoolLimits(1), timeouts=Timeouts(statement=0.2))
    async with database.session() as session:
        with pytest.raises(StatementTimeout):
            await session.execute(sa.text("SELECT SLEEP(60)"))
        await session.rollback()
        assert await session.scalar(sa.text("SELECT 1")) == 1
    assert database.stats().in_use == 0
    await database.disconnect()


# -- URLs


async def test_a_url_that_the_driver_does_not_take_says_so(mariadb_url: str) -> None:
    url = make_url(mariadb_url).set(drivername="mysql+asyncmy", query={"nonsense": "1"})
    with pytest.raises(InvalidURLError, match=r"asyncmy does not take this URL: .*nonsense"):
        await Database(url).fetch_val("SELECT 1")


def test_a_value_that_sqlalchemy_refuses_is_refused_at_once(mariadb_url: str) -> None:
    with pytest.raises(InvalidURLError, match="aiomysql does not take this URL"):
        Database(f"{mariadb_url}?read_timeout=soon")


async def test_the_dialect_reads_the_query(mariadb_url: str) -> None:
    database = Database(f"{mariadb_url}?charset=latin1&connect_timeout=2.5")
    assert await database.fetch_val("SELECT @@character_set_client") == "latin1"
    await database.disconnect()


def test_its_connections_stay_in_their_loop(mariadb_url: str) -> None:
    with pytest.raises(InvalidSettingError, match="belong to one loop"):
        Database(mariadb_url, scope="process")


async def test_a_server_that_says_nothing_is_given_up(mariadb_url: str) -> None:
    left = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        left.set()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = make_url(mariadb_url).set(port=port).update_query_dict({"connect_timeout": "0.2"})
        with pytest.raises(ConnectTimeout, match=r"no answer within 0\.2 s"):
            await Database(url).fetch_val("SELECT 1")
        async with asyncio.timeout(5):
            await left.wait()


async def test_a_dialect_of_sqlite_keeps_nothing_under_force_rollback(tmp_path: Path) -> None:
    register_driver("sqlite+generic", GenericDriver("sqlite+aiosqlite"))
    url = f"sqlite+generic:///{tmp_path}/x.db"
    database = Database(url)
    await database.execute("CREATE TABLE things (id int)")

    async with Database(url, force_rollback=True) as undone:
        await undone.execute(sa.text("INSERT INTO things VALUES (1)"))
        with pytest.raises(Exception, match="nowhere"):
            await undone.execute("INSERT INTO nowhere VALUES (1)")
        async with undone.transaction():
            await undone.execute("INSERT INTO things VALUES (2)")

    assert await database.fetch_val("SELECT count(*) FROM things") == 0
    await database.disconnect()
