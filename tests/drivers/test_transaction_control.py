"""COMMIT and its like by text: refused where a block or a session has a transaction, and looked at elsewhere."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy import make_url

from loopsafe_db import Database
from loopsafe_db.errors import TransactionAborted, TransactionError
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from loopsafe_db import Connection

    Send = Callable[[Database, str], Awaitable[object]]

INSERT = "INSERT INTO things (n) VALUES (:n)"
things = sa.Table("things", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True))


@pytest.fixture
async def handle(any_database: Database) -> AsyncIterator[Database]:
    """A handle on an empty table; nothing is left in use."""
    await any_database.execute("CREATE TABLE things (n integer PRIMARY KEY)")
    yield any_database
    assert any_database.stats().in_use == 0
    await any_database.disconnect()


@pytest.fixture(params=["asyncpg", "psycopg"])
async def postgresql(request: pytest.FixtureRequest, postgres_url: str) -> AsyncIterator[Database]:
    """One on a server that answers a COMMIT by ROLLBACK."""
    url = make_url(postgres_url).set(drivername=f"postgresql+{request.param}")
    async with Database(url, scope=SCOPE) as handle:
        await handle.execute("CREATE TABLE things (n integer PRIMARY KEY)")
        yield handle


def is_mysql(handle: Database) -> bool:
    return handle.url.get_backend_name() == "mysql"


def is_postgresql(handle: Database) -> bool:
    return handle.url.get_backend_name() == "postgresql"


async def numbers(handle: Database) -> set[int]:
    return {row.n for row in await handle.fetch_all("SELECT n FROM things")}


def ends(handle: Database) -> list[str]:
    """Texts that would end a transaction, on this database."""
    texts = ["COMMIT", "/* now */ commit;", "ROLLBACK", "INSERT INTO things VALUES (7); COMMIT"]
    if is_mysql(handle):
        return [
            *texts,
            *("COMMIT AND CHAIN", "BEGIN", "START TRANSACTION", "SET autocommit = 1"),
            *("SET @x = 1, @@autocommit = 1", "CREATE TABLE more (n integer)", "TRUNCATE things"),
        ]
    if is_postgresql(handle):
        return [*texts, "COMMIT AND CHAIN", "END", "ABORT", "PREPARE TRANSACTION 'one'"]
    return [*texts, "END TRANSACTION"]


async def all_rows(handle: Database, text: str) -> object:
    return await handle.fetch_all(text)


async def one_row(handle: Database, text: str) -> object:
    return await handle.fetch_one(text)


async def outcome(handle: Database, text: str) -> object:
    return await handle.execute(text)


async def many(handle: Database, text: str) -> object:
    return await handle.execute_many(text, [{}])


async def clause(handle: Database, text: str) -> object:
    return await handle.execute(sa.text(text))


async def stream(handle: Database, text: str) -> object:
    return [row async for row in handle.iterate(text)]


async def joined_session(handle: Database, text: str) -> object:
    async with handle.session() as session:
        return await session.execute(sa.text(text))


SENDS: list[Send] = [all_rows, one_row, outcome, many, clause, stream, joined_session]


@pytest.mark.parametrize("send", SENDS)
async def test_a_text_does_not_end_the_transaction_of_a_block(handle: Database, send: Send) -> None:
    with suppress(KeyError):
        async with handle.transaction():
            await handle.execute(INSERT, {"n": 1})
            for text in ends(handle):
                with pytest.raises(TransactionError, match="LDB107"):
                    await send(handle, text)
            async with handle.transaction():
                with pytest.raises(TransactionError, match="LDB107"):
                    await send(handle, "COMMIT")
                await handle.execute(INSERT, {"n": 2})
            assert await numbers(handle) == {1, 2}
            raise KeyError
    assert await numbers(handle) == set()


async def test_nor_that_of_a_session(handle: Database) -> None:
    texts = [text for text in ends(handle) if not text.startswith(("CREATE", "TRUNCATE"))]
    if is_mysql(handle):  # a session may say what commits by itself, as SQLAlchemy's own
        texts += ["TRUNCATE things; COMMIT"]
    with suppress(KeyError):
        async with handle.session.begin() as session:
            await session.execute(things.insert().values(n=1))
            for text in (*texts, f"{'  ' * 5000}COMMIT;"):
                with pytest.raises(TransactionError, match="LDB107"):
                    await session.execute(sa.text(text))
            await session.execute(things.insert().values(n=2))
            raise KeyError
    assert await numbers(handle) == set()


async def test_savepoints_by_text_are_no_end(handle: Database) -> None:
    async with handle.transaction():
        await handle.execute(INSERT, {"n": 1})
        await handle.execute("SAVEPOINT mine")
        await handle.execute(INSERT, {"n": 2})
        await handle.execute("ROLLBACK TO SAVEPOINT mine")
        await handle.execute(sa.text("RELEASE SAVEPOINT mine"))
        if is_mysql(handle):
            await handle.execute("CREATE TEMPORARY TABLE mine (n integer)")
    assert await numbers(handle) == {1}


async def test_outside_of_a_block_a_text_may_say_so(handle: Database) -> None:
    async with handle.connection() as connection:
        if not is_mysql(handle):  # where each statement is committed
            await connection.execute("BEGIN")
        await connection.execute(INSERT, {"n": 1})
        await connection.execute(sa.text("COMMIT"))
        async with connection.transaction():
            await connection.execute(INSERT, {"n": 2})
        await connection.execute(sa.text("COMMIT") if is_mysql(handle) else sa.text("SELECT 1"))
    async with handle.engine.connect() as engine:
        await engine.execute(things.insert().values(n=3))
        await engine.execute(sa.text("COMMIT"))
    assert await numbers(handle) == {1, 2, 3}


async def commit_raw(connection: Connection) -> None:
    raw = connection.raw_connection
    if not hasattr(raw, "driver_connection"):
        await raw.execute("COMMIT")
        return
    async with raw.driver_connection.cursor() as cursor:
        await cursor.execute("COMMIT")


@pytest.mark.parametrize("how", ["text", "nested", "many", "commit"])
async def test_what_was_ended_on_the_raw_connection_is_no_transaction_any_more(
    handle: Database, how: str
) -> None:
    async with handle.connection() as connection:
        with pytest.raises(TransactionAborted, match="LDB109"):  # noqa: PT012
            async with connection.transaction():
                await connection.execute(INSERT, {"n": 1})
                await commit_raw(connection)
                if how == "text":
                    await connection.execute(INSERT, {"n": 2})
                elif how == "nested":
                    await connection.transaction()
                elif how == "many":
                    await connection.execute_many(INSERT, [{"n": 2}])
        await connection.execute(INSERT, {"n": 3})
        async with connection.transaction():
            await connection.execute(INSERT, {"n": 4})
    assert await numbers(handle) == {1, 3, 4}


async def test_a_transaction_that_the_raw_connection_was_used_in_is_committed(
    handle: Database,
) -> None:
    if not is_mysql(handle):
        pytest.skip("only MySQL's status says nothing of it at times")
    async with handle.connection() as connection, connection.transaction():
        await connection.execute(INSERT, {"n": 1})
        async with connection.raw_connection.driver_connection.cursor() as cursor:
            for query in ("SELECT n FROM things", "INSERT INTO things VALUES (2)", "DO 0"):
                await cursor.execute(query)
                await connection.fetch_all("SELECT 1")
    assert await numbers(handle) == {1, 2}


async def test_a_procedure_that_commits_is_told(handle: Database) -> None:
    if not is_mysql(handle):
        pytest.skip("PostgreSQL refuses it, SQLite has none")
    await handle.execute("CREATE PROCEDURE commits() COMMIT")
    with pytest.raises(TransactionError, match="LDB109"):  # noqa: PT012
        async with handle.transaction():
            await handle.execute(INSERT, {"n": 1})
            with pytest.raises(TransactionAborted):
                await handle.execute("CALL commits()")
            with pytest.raises(TransactionAborted):
                await handle.execute(INSERT, {"n": 2})
    assert await numbers(handle) == {1}
    async with handle.transaction():
        await handle.execute("CALL commits()")  # there was nothing to end
        await handle.execute(INSERT, {"n": 3})
    assert await numbers(handle) == {1, 3}


async def test_after_a_text_has_set_autocommit_a_transaction_is_one(handle: Database) -> None:
    if not is_mysql(handle):
        pytest.skip("MySQL's")
    async with handle.connection() as connection:
        await connection.execute("SET autocommit = 1")
        with suppress(KeyError):
            async with connection.transaction():
                await connection.execute(INSERT, {"n": 1})
                raise KeyError
        async with connection.transaction():
            await connection.execute(INSERT, {"n": 2})
    assert await numbers(handle) == {2}


ABORTS = ["COMMIT", "commit;", "-- so\nCOMMIT", "/* now */ END", "PREPARE TRANSACTION 'one'"]


async def commit_with(connection: Connection, send: str, text: str) -> None:
    if send == "clause":
        await connection.execute(sa.text(text))
    else:
        await getattr(connection, send)(text)


@pytest.mark.parametrize("text", [*ABORTS, "COMMIT; SELECT 1"])
@pytest.mark.parametrize("send", ["fetch_all", "fetch_one", "execute", "clause"])
async def test_a_commit_by_text_that_the_server_answers_by_rollback_is_an_error(
    postgresql: Database, text: str, send: str
) -> None:
    if text.startswith("COMMIT;") and send != "execute":
        pytest.skip("a script goes by execute")
    async with postgresql.connection() as connection:
        for _ in range(3):  # the second time it may be prepared
            await connection.execute("BEGIN")
            await connection.execute(INSERT, {"n": 1})
            with pytest.raises(Exception, match="nothing"):
                await connection.execute("SELECT nothing")
            with pytest.raises(TransactionAborted, match="LDB109"):
                await commit_with(connection, send, text)
            await connection.execute(INSERT, {"n": 2})
            await connection.execute("DELETE FROM things WHERE n = 2")
            for end in ("ROLLBACK", "COMMIT", "COMMIT; SELECT 1"):
                await connection.execute("BEGIN")
                await connection.execute(end)
    assert await numbers(postgresql) == set()


@pytest.mark.parametrize("text", ABORTS)
async def test_and_so_it_is_in_sessions_and_engines(postgresql: Database, text: str) -> None:
    engine = postgresql.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with postgresql.session(bind=engine) as session:
        await session.execute(sa.text("BEGIN"))
        with pytest.raises(sa.exc.DBAPIError):
            await session.execute(sa.text("SELECT nothing"))
        with pytest.raises(TransactionAborted):
            await session.execute(sa.text(text))
        assert await session.scalar(sa.text("SELECT 1")) == 1
    async with postgresql.engine.connect() as connection:
        await connection.execute(things.insert().values(n=1))
        with pytest.raises(sa.exc.DBAPIError):
            await connection.execute(sa.text("SELECT nothing"))
        with pytest.raises(TransactionAborted):
            await connection.exec_driver_sql(text)
    assert await numbers(postgresql) == set()


async def test_after_a_commit_by_text_an_engine_does_what_no_transaction_may_have(
    postgresql: Database,
) -> None:
    for before in ("SELECT 1", "COMMIT"):  # a transaction is open before the last one, or not
        async with postgresql.engine.connect() as connection:
            await connection.execute(sa.text(before))
            await connection.execute(sa.text("COMMIT"))
            await connection.execute(sa.text("VACUUM things"))


async def test_a_deferred_constraint_that_fails_at_a_commit_by_text_is_what_it_is(
    postgresql: Database,
) -> None:
    await postgresql.execute(
        "CREATE TABLE parts (thing integer REFERENCES things (n) DEFERRABLE INITIALLY DEFERRED)"
    )
    async with postgresql.engine.connect() as connection:
        await connection.execute(sa.text("INSERT INTO parts VALUES (7)"))
        with pytest.raises(sa.exc.IntegrityError):
            await connection.execute(sa.text("COMMIT"))


@pytest.fixture(params=["aiomysql", "asyncmy"])
async def mysql(
    request: pytest.FixtureRequest, mariadb_database_url: str
) -> AsyncIterator[Database]:
    """One whose server takes several statements in one text, by any way."""
    url = make_url(mariadb_database_url).set(drivername=f"mysql+{request.param}")
    async with Database(url, scope=SCOPE) as handle:
        await handle.execute("CREATE TABLE things (n integer PRIMARY KEY)")
        yield handle


async def in_session(handle: Database, text: str) -> None:
    async with handle.session.begin() as session:
        await session.execute(sa.text(text))


async def in_engine(handle: Database, text: str) -> None:
    async with handle.engine.begin() as connection:
        await connection.exec_driver_sql(text)


async def in_block(handle: Database, text: str) -> None:
    async with handle.transaction():
        await handle.execute(sa.text(text))


SCRIPTS: list[Send] = [outcome, all_rows, clause, in_session, in_engine, in_block]


@pytest.mark.parametrize("send", SCRIPTS)
async def test_each_statement_of_a_script_is_heard(mysql: Database, send: Send) -> None:
    with pytest.raises(Exception, match="Duplicate"):
        await send(mysql, "INSERT INTO things VALUES (1); INSERT INTO things VALUES (1)")
    assert await numbers(mysql) == set()
    await send(mysql, "INSERT INTO things VALUES (2); INSERT INTO things VALUES (3); SELECT 4")
    assert await numbers(mysql) == {2, 3}


async def test_the_rows_of_a_script_are_those_of_its_first_statement(mysql: Database) -> None:
    script = "SELECT 1 AS a UNION SELECT 2; INSERT INTO things VALUES (:n)"
    rows = await mysql.fetch_all(sa.text(script), {"n": 1})
    assert [row.a for row in rows] == [1, 2]
    assert await numbers(mysql) == {1}


@pytest.mark.parametrize("send", [outcome, all_rows, clause, in_session, in_block])
async def test_a_script_does_not_leave_a_transaction_open(mysql: Database, send: Send) -> None:
    for begin in ("BEGIN", "START TRANSACTION READ WRITE"):
        with pytest.raises(TransactionError, match="LDB107"):
            await send(mysql, f"{begin}; INSERT INTO things VALUES (1)")
        with pytest.raises(TransactionError, match="LDB107"):
            await send(mysql, begin)
    assert await numbers(mysql) == set()


@pytest.mark.parametrize("send", [outcome, all_rows, clause])
async def test_it_may_have_one_of_its_own(mysql: Database, send: Send) -> None:
    await send(mysql, "BEGIN; INSERT INTO things VALUES (1); COMMIT")
    await send(mysql, "BEGIN; INSERT INTO things VALUES (2); ROLLBACK")
    with pytest.raises(Exception, match="Duplicate"):
        await send(
            mysql,
            "BEGIN; INSERT INTO things VALUES (3); INSERT INTO things VALUES (3); COMMIT",
        )
    assert await numbers(mysql) == {1}
