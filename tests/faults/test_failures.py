"""Lost connections, deadlocks and their like are one family over all drivers, and the driver's own errors, too."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, DriverError
from loopsafe_db.errors import (
    CommitUnknown,
    ConnectionLost,
    DeadlockDetected,
    LockTimeout,
    ReadOnlyError,
    SerializationFailure,
    TransactionAborted,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

PID = "SELECT pg_backend_pid()"
ENDED = "terminating connection due to administrator command"


def drivers_error(database: Database) -> type[BaseException]:
    """Give what users of a driver catch by its own name."""
    name = database.url.get_driver_name()
    if name == "asyncpg":
        import asyncpg

        return asyncpg.PostgresError  # type: ignore[no-any-return]
    if name == "psycopg":
        import psycopg

        return psycopg.Error
    import sqlite3

    return sqlite3.Error


def has_its_code(error: Any, code: str) -> None:
    """Ask an error, and what is sent and copied of it, for its code: SQLAlchemy's have one of their own."""
    for each in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (each.code, str(each), "sqlalche.me" in str(each)) == (code, str(error), False)
    assert code in str(error)


def beside(work: Awaitable[Any]) -> asyncio.Task[Any]:
    """Do something in no transaction of the caller's."""

    async def do() -> Any:
        return await work

    return asyncio.create_task(do(), context=contextvars.Context())


@pytest.fixture(params=["asyncpg", "psycopg"])
def postgres(request: pytest.FixtureRequest, postgres_url: str) -> Database:
    return Database(sa.make_url(postgres_url).set(drivername=f"postgresql+{request.param}"))


@pytest.fixture
async def witness(postgres_url: str) -> AsyncIterator[Database]:
    """A handle that ends connections, and sees what others do."""
    async with Database(postgres_url) as database:
        yield database


async def end(witness: Database, pid: int) -> None:
    """Have the server end a connection; it has ended then."""
    assert await beside(witness.fetch_val(f"SELECT pg_terminate_backend({pid}, 5000)"))


async def by_text(database: Database) -> None:
    await database.fetch_val("SELECT 1")


async def by_clause(database: Database) -> None:
    await database.fetch_val(sa.select(sa.literal(1)))


async def by_many(database: Database) -> None:
    await database.execute_many("SELECT CAST(:a AS int)", [{"a": 1}, {"a": 2}])


async def by_script(database: Database) -> None:
    await database.execute("SELECT 1; SELECT 2")


async def by_savepoint(database: Database) -> None:
    async with database.transaction():
        pass


async def by_stream(database: Database) -> None:
    async for _ in database.iterate("SELECT 1"):
        pass


async def by_session(database: Database) -> None:
    async with database.session() as session:
        await session.execute(sa.text("SELECT 1"))


async def by_nothing(database: Database) -> None:
    """Only commit."""


MOMENTS = [by_text, by_clause, by_many, by_script, by_savepoint, by_stream, by_session, by_nothing]


async def test_a_stream_whose_server_ends_says_what_the_server_has_said(
    postgres: Database, witness: Database
) -> None:
    query = "SELECT repeat('x', 1000) FROM generate_series(1, 100000)"
    async with postgres:
        with pytest.raises(ConnectionLost) as told:  # noqa: PT012 (it is where the stream is read)
            async with postgres.transaction():
                pid = await postgres.fetch_val(PID)
                async with aclosing(postgres.iterate(query)) as rows:
                    await anext(rows)
                    await end(witness, pid)
                    async for _ in rows:
                        pass
    assert "rollback" not in str(told.value)


@pytest.mark.parametrize("work", MOMENTS)
async def test_a_connection_that_is_lost_in_a_transaction_is_an_error_to_try_again_after(
    postgres: Database, witness: Database, work: Callable[[Database], Awaitable[None]]
) -> None:
    with pytest.raises(ConnectionLost) as caught:  # noqa: PT012
        async with postgres.transaction():
            await end(witness, await postgres.fetch_val(PID))
            await work(postgres)
    assert caught.value.retryable
    assert isinstance(caught.value, ConnectionError)
    assert isinstance(
        caught.value, type(caught.value.__cause__) if work is not by_session else sa.exc.DBAPIError
    )
    assert __file__ in caught.value.args[0]
    assert (ENDED in caught.value.args[0], caught.value.sqlstate) == (True, "57P01")
    assert await postgres.fetch_val("SELECT 1") == 1


@pytest.mark.parametrize("commit", ["by_transaction", "by_session"])
async def test_what_has_ended_while_the_loop_was_blocked_is_not_committed(
    postgres: Database, postgres_url: str, commit: str
) -> None:
    def end_now(pid: int) -> None:
        with ThreadPoolExecutor(1) as other:
            witness = Database(postgres_url, scope="loop")
            query = f"SELECT pg_terminate_backend({pid}, 5000)"
            assert other.submit(asyncio.run, witness.fetch_val(query)).result()

    with pytest.raises(ConnectionLost) as caught:  # noqa: PT012
        if commit == "by_transaction":
            async with postgres.transaction():
                end_now(await postgres.fetch_val(PID))
        else:
            async with postgres.session.begin() as session:
                end_now(await session.scalar(sa.text(PID)))
    assert not isinstance(caught.value, CommitUnknown)
    assert (caught.value.retryable, caught.value.sqlstate) == (True, "57P01")
    assert ENDED in str(caught.value)


@asynccontextmanager
async def a_session(database: Database) -> AsyncIterator[Any]:
    async with database.session.begin() as session:
        yield session


@asynccontextmanager
async def an_engine(database: Database) -> AsyncIterator[Any]:
    async with database.engine.begin() as connection:
        yield connection


@pytest.mark.parametrize("block", [a_session, an_engine])
@pytest.mark.parametrize("query", ["SELECT 1", None])
async def test_sqlalchemys_users_get_it_as_sqlalchemys_error_too(
    postgres: Database, witness: Database, block: Any, query: str | None
) -> None:
    with pytest.raises(sa.exc.DBAPIError) as caught:  # noqa: PT012
        async with block(postgres) as session:
            await end(witness, await session.scalar(sa.text(PID)))
            if query is not None:
                await session.execute(sa.text(query))
    assert isinstance(caught.value, ConnectionLost)
    assert caught.value.retryable
    assert caught.value.orig is not None
    assert (ENDED in caught.value.args[0], caught.value.sqlstate) == (True, "57P01")
    has_its_code(caught.value, "LDB406")
    async with postgres.session() as session:
        assert await session.scalar(sa.text("SELECT 1")) == 1


async def test_what_a_statement_outside_of_a_transaction_has_done_by_then_is_unknown(
    postgres: Database, witness: Database
) -> None:
    async with witness.connection() as holder, postgres.connection() as connection:
        await holder.execute("SELECT pg_advisory_lock(2)")
        pid = await connection.fetch_val(PID)
        asking = asyncio.create_task(connection.execute("SELECT pg_advisory_lock(2)"))
        await somebody_waits(witness)
        await end(witness, pid)
        with pytest.raises(ConnectionLost) as caught:
            await asking
    assert not caught.value.retryable
    assert "query: SELECT pg_advisory_lock(2)" in caught.value.args[0]


async def somebody_waits(witness: Database) -> None:
    """Wait until one waits for an advisory lock."""
    waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
    while not await beside(witness.fetch_val(waits)):
        pass


SLOW_COMMIT = """
CREATE TABLE slow (id int);
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_advisory_lock(3); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION wait()
"""


async def commit_by_transaction(database: Database, pids: list[int]) -> None:
    async with database.transaction():
        pids.append(await database.fetch_val(PID))
        await database.execute("INSERT INTO slow VALUES (1)")


async def commit_by_session(database: Database, pids: list[int]) -> None:
    async with database.session.begin() as session:
        pids.append(await session.scalar(sa.text(PID)))
        await session.execute(sa.text("INSERT INTO slow VALUES (1)"))


@pytest.mark.parametrize("work", [commit_by_transaction, commit_by_session])
async def test_a_connection_that_is_lost_in_a_commit_leaves_its_outcome_unknown(
    postgres: Database, witness: Database, work: Callable[[Database, list[int]], Awaitable[None]]
) -> None:
    await witness.execute(SLOW_COMMIT)
    pids: list[int] = []
    async with witness.connection() as holder:
        await holder.execute("SELECT pg_advisory_lock(3)")
        committing = asyncio.ensure_future(work(postgres, pids))
        await somebody_waits(witness)
        await end(witness, pids[0])
        with pytest.raises(CommitUnknown) as caught:
            await committing
    assert not isinstance(caught.value, ConnectionLost)
    assert not caught.value.retryable
    has_its_code(caught.value, "LDB407")
    assert await postgres.fetch_val("SELECT 1") == 1


async def run_text(database: Database, query: str) -> None:
    await database.execute(query)


async def run_clause(database: Database, query: str) -> None:
    await database.execute(sa.text(query))


async def run_session(database: Database, query: str) -> None:
    async with database.session.begin() as session:
        await session.execute(sa.text(query))


RUNS = [run_text, run_clause, run_session]
CREATE = "CREATE TABLE counters (id int PRIMARY KEY, n int)"
INSERT = "INSERT INTO counters VALUES (1, 0), (2, 0)"


async def deadlock(database: Database, run: Callable[[Database, str], Awaitable[None]]) -> Any:
    """Have two transactions wait for each other; give the error of the one that fails."""
    begun = asyncio.Barrier(2)

    async def change(first: int, second: int) -> None:
        async with database.transaction():
            await run(database, f"UPDATE counters SET n = n + 1 WHERE id = {first}")
            await begun.wait()
            await run(database, f"UPDATE counters SET n = n + 1 WHERE id = {second}")

    outcomes = await asyncio.gather(change(1, 2), change(2, 1), return_exceptions=True)
    (failed,) = [outcome for outcome in outcomes if outcome is not None]
    return failed


@pytest.mark.parametrize("run", RUNS)
async def test_a_deadlock_has_one_name(
    postgres: Database, run: Callable[[Database, str], Awaitable[None]]
) -> None:
    await postgres.execute(CREATE)
    await postgres.execute(INSERT)
    error = await deadlock(postgres, run)
    assert isinstance(error, DeadlockDetected)
    assert (error.retryable, error.sqlstate) == (True, "40P01")
    assert isinstance(error, sa.exc.DBAPIError if run is run_session else drivers_error(postgres))
    assert "query: UPDATE counters" in error.args[0]


@pytest.mark.parametrize("run", RUNS)
async def test_a_serialization_failure_has_one_name(
    postgres: Database, run: Callable[[Database, str], Awaitable[None]]
) -> None:
    await postgres.execute(CREATE)
    await postgres.execute(INSERT)
    with pytest.raises(SerializationFailure) as caught:  # noqa: PT012
        async with postgres.transaction(isolation="repeatable_read"):
            await postgres.fetch_all("SELECT * FROM counters")
            await beside(postgres.execute("UPDATE counters SET n = 5"))
            await run(postgres, "UPDATE counters SET n = 6")
    assert (caught.value.retryable, caught.value.sqlstate) == (True, "40001")


async def test_what_cannot_be_committed_in_a_line_has_that_name_too(postgres: Database) -> None:
    await postgres.execute(CREATE)
    await postgres.execute(INSERT)
    begun = asyncio.Barrier(2)

    async def change(seen: int, changed: int) -> None:
        async with postgres.transaction(isolation="serializable"):
            await postgres.fetch_val(f"SELECT n FROM counters WHERE id = {seen}")
            await begun.wait()
            await postgres.execute(f"UPDATE counters SET n = 1 WHERE id = {changed}")
            await begun.wait()

    outcomes = await asyncio.gather(change(1, 2), change(2, 1), return_exceptions=True)
    (failed,) = [outcome for outcome in outcomes if outcome is not None]
    assert isinstance(failed, SerializationFailure)
    assert failed.retryable


@pytest.mark.parametrize("run", RUNS)
async def test_a_lock_that_is_not_free_has_one_name(
    database: Database, run: Callable[[Database, str], Awaitable[None]]
) -> None:
    await database.execute(CREATE)
    await database.execute(INSERT)
    url = database.url
    is_sqlite = url.get_backend_name() == "sqlite"
    other = Database(url.update_query_dict({"timeout": "0.1"})) if is_sqlite else Database(url)

    async def wait() -> None:
        async with other.transaction():
            if not is_sqlite:
                await other.execute("SET LOCAL lock_timeout = '50ms'")
            await run(other, "UPDATE counters SET n = 1")

    async with database.transaction():
        await database.execute("UPDATE counters SET n = 2")
        with pytest.raises(LockTimeout) as caught:
            await beside(wait())
    assert caught.value.retryable
    assert isinstance(caught.value, TimeoutError)
    has_its_code(caught.value, "LDB410")
    await other.disconnect()


@pytest.mark.parametrize("run", RUNS)
async def test_a_write_that_is_refused_has_one_name(
    database: Database, run: Callable[[Database, str], Awaitable[None]]
) -> None:
    await database.execute(CREATE)
    with pytest.raises(ReadOnlyError) as caught:
        async with database.transaction(readonly=True):
            await run(database, INSERT)
    assert not caught.value.retryable
    has_its_code(caught.value, "LDB411")


@pytest.fixture
def primary(postgres: Database) -> Database:
    """A handle that asks for a server which takes writes."""
    return Database(postgres.url.update_query_dict({"target_session_attrs": "read-write"}))


@pytest.mark.parametrize("run", RUNS)
async def test_a_write_where_readonly_was_asked_for_is_never_tried_again(
    primary: Database, run: Callable[[Database, str], Awaitable[None]]
) -> None:
    await primary.execute(CREATE)
    attempts = 0

    async def write() -> None:
        nonlocal attempts
        attempts += 1
        await run(primary, INSERT)

    with pytest.raises(ReadOnlyError, match="HINT: begin the transaction without readonly=True"):
        await primary.run_in_transaction(write, readonly=True)
    await primary.run_in_transaction(write)
    assert attempts == 2
    await primary.disconnect()


async def test_a_swallowed_write_where_readonly_was_asked_for_is_not_tried_again_either(
    primary: Database,
) -> None:
    await primary.execute(CREATE)

    async def write() -> None:
        with suppress(ReadOnlyError):
            await primary.execute(INSERT)

    with pytest.raises(TransactionAborted) as caught:
        await primary.run_in_transaction(write, readonly=True)
    assert not caught.value.retryable
    assert not getattr(caught.value, "__notes__", [])
    await primary.disconnect()


@pytest.mark.parametrize("run", RUNS)
async def test_the_cure_for_a_write_that_a_server_refuses_is_not_what_the_url_says_already(
    primary: Database, postgres: Database, run: Callable[[Database, str], Awaitable[None]]
) -> None:
    await primary.execute(CREATE)
    for database, cure in ((primary, "HINT: run the whole transaction again"), (postgres, "attrs")):
        with pytest.raises(ReadOnlyError, match=cure) as caught:  # noqa: PT012
            async with database.transaction():
                await database.execute("SET TRANSACTION READ ONLY")
                await run(database, INSERT)
        assert caught.value.retryable is (database is primary)
        assert ("attrs" in str(caught.value)) is (database is postgres)
        await database.disconnect()


async def test_one_of_the_family_survives_a_pickle_as_the_drivers_error(postgres: Database) -> None:
    with pytest.raises(drivers_error(postgres)) as caught:
        await postgres.execute("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$")
    error: Any = caught.value
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert isinstance(again, SerializationFailure)
    assert (again.args, again.retryable, again.sqlstate) == (error.args, True, "40001")


async def test_mariadbs_numbers_are_of_the_family(mariadb_url: str) -> None:
    async with Database(mariadb_url) as database:
        await database.execute("DROP TABLE IF EXISTS counters")
        await database.execute(f"{CREATE} ENGINE=InnoDB")
        await database.execute(INSERT)
        assert isinstance(await deadlock(database, run_text), DeadlockDetected)
        assert isinstance(await deadlock(database, run_clause), DeadlockDetected)
        await database.execute("DROP TABLE counters")


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (by_text, ConnectionLost),
        (by_clause, ConnectionLost),
        (by_session, ConnectionLost),
        (by_nothing, CommitUnknown),
    ],
)
async def test_mariadb_ends_a_connection(
    mariadb_url: str, work: Callable[[Database], Awaitable[None]], kind: type[DriverError]
) -> None:
    async with Database(mariadb_url) as database:
        with pytest.raises(kind) as caught:  # noqa: PT012
            async with database.transaction():
                number = await database.fetch_val("SELECT connection_id()")
                await beside(database.execute(f"KILL {number}"))
                await work(database)
        assert caught.value.retryable is (kind is ConnectionLost)
        has_its_code(caught.value, kind.code)
        assert await database.fetch_val("SELECT 1") == 1
