"""A transaction is run again where nothing of it is stored and that may help, and never where it may be stored."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, Timeouts
from loopsafe_db.errors import (
    CommitUnknown,
    InvalidSettingError,
    LockTimeout,
    SerializationFailure,
    TransactionError,
)
from tests.faults.test_failures import run_clause, run_session, run_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CREATE = "CREATE TABLE counters (id int PRIMARY KEY, n int)"
INSERT = "INSERT INTO counters VALUES (1, 0), (2, 0)"
PID = "SELECT pg_backend_pid()"


@pytest.fixture(params=["asyncpg", "psycopg"])
def postgres(request: pytest.FixtureRequest, postgres_url: str) -> Database:
    return Database(sa.make_url(postgres_url).set(drivername=f"postgresql+{request.param}"))


@pytest.fixture
async def witness(postgres_url: str) -> AsyncIterator[Database]:
    async with Database(postgres_url) as database:
        yield database


class Failing:
    """A function that fails as often as it is told, and then gives how often it was called."""

    def __init__(self, error: Callable[[], Exception], times: int) -> None:
        self.error, self.times, self.calls = error, times, 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error()
        return self.calls


def failure() -> Exception:
    return SerializationFailure("staged")


async def test_what_may_succeed_is_run_again_from_its_beginning(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await database.execute(CREATE)
    failing = Failing(failure, 2)

    async def work() -> int:
        await database.execute("INSERT INTO counters VALUES (1, 0)")
        return await failing()

    assert await database.run_in_transaction(work) == 3
    assert await database.fetch_val("SELECT count(*) FROM counters") == 1
    assert "attempt 1 of 5 failed, the transaction is run again in" in caplog.text
    assert "attempt 2 of 5 failed" in caplog.text


async def test_who_got_no_connection_tries_again(database: Database) -> None:
    full = Database(database.url, max_size=1, timeouts=Timeouts(acquire=0.1))
    work = Failing(failure, 0)
    async with full.connection():
        asking = asyncio.create_task(full.run_in_transaction(work), context=Context())
        await asyncio.sleep(0.3)
    assert await asking == 1
    await full.disconnect()


async def test_other_errors_come_out_at_once(database: Database) -> None:
    failing = Failing(ZeroDivisionError, 1)
    with pytest.raises(ZeroDivisionError):
        await database.run_in_transaction(failing)
    assert failing.calls == 1


async def test_the_last_attempt_says_so(database: Database) -> None:
    failing = Failing(failure, 9)
    with pytest.raises(SerializationFailure) as caught:
        await database.run_in_transaction(failing, attempts=3)
    assert failing.calls == 3
    assert caught.value.__notes__ == ["attempt 3 of 3, and the last one"]


async def test_none_begins_after_the_deadline(database: Database) -> None:
    failing = Failing(failure, 9)
    with pytest.raises(SerializationFailure):
        await database.run_in_transaction(failing, within=1e-9)
    assert failing.calls == 1


async def test_inside_a_transaction_only_what_is_outermost_is_run_again(database: Database) -> None:
    await database.execute(CREATE)
    failing = Failing(failure, 1)
    outer = Failing(failure, 0)

    async def work() -> int:
        await outer()
        return await database.run_in_transaction(failing)

    assert await database.run_in_transaction(work) == 2
    assert outer.calls == 2


async def test_a_decorated_function_has_its_arguments_and_its_name(database: Database) -> None:
    await database.execute(CREATE)
    failing = Failing(failure, 1)

    @database.transactional(attempts=2)
    async def store(number: int, *, n: int) -> int:
        """Store it."""
        await database.execute("INSERT INTO counters VALUES (:id, :n)", {"id": number, "n": n})
        await failing()
        return number

    assert await store(7, n=8) == 7
    assert (store.__name__, store.__doc__) == ("store", "Store it.")
    assert [tuple(row) for row in await database.fetch_all("SELECT * FROM counters")] == [(7, 8)]


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"attempts": "x"}, {"within": 0}])
async def test_what_is_no_number_of_attempts_is_refused(database: Database, wrong: Any) -> None:
    with pytest.raises(InvalidSettingError):
        await database.run_in_transaction(Failing(failure, 0), **wrong)
    with pytest.raises(InvalidSettingError):
        database.transactional(**wrong)
    with pytest.raises(TransactionError):
        database.transactional(isolation="strict")  # type: ignore[arg-type]


async def count_in_turn(database: Database, add: Any) -> int:
    """Have two transactions wait for each other; give how often they were run."""
    await database.execute("DROP TABLE IF EXISTS counters")
    await database.execute(CREATE)
    await database.execute(INSERT)
    meeting, calls = asyncio.Barrier(2), [0]

    async def change(first: int, second: int) -> None:
        calls[0] += 1
        await add(database, f"UPDATE counters SET n = n + 1 WHERE id = {first}")
        if calls[0] <= 2:
            await meeting.wait()
        await add(database, f"UPDATE counters SET n = n + 1 WHERE id = {second}")

    await asyncio.gather(
        database.run_in_transaction(lambda: change(1, 2)),
        database.run_in_transaction(lambda: change(2, 1)),
    )
    rows = await database.fetch_all("SELECT n FROM counters")
    assert [row[0] for row in rows] == [2, 2]
    return calls[0]


@pytest.mark.parametrize("add", [run_text, run_clause, run_session])
async def test_both_sides_of_a_deadlock_are_stored_in_the_end(postgres: Database, add: Any) -> None:
    assert await count_in_turn(postgres, add) == 3


@pytest.mark.parametrize("add", [run_text, run_clause])
async def test_so_they_are_in_mariadb(mariadb_url: str, add: Any) -> None:
    async with Database(mariadb_url) as database:
        assert await count_in_turn(database, add) == 3
        await database.execute("DROP TABLE counters")


async def test_a_deadlock_that_was_swallowed_is_one_all_the_same(mariadb_url: str) -> None:
    async def swallow(database: Database, query: str) -> None:
        with suppress(Exception):
            await database.execute(query)

    async with Database(mariadb_url) as database:
        assert await count_in_turn(database, swallow) == 3
        await database.execute("DROP TABLE counters")


async def test_what_cannot_be_put_in_a_line_is_run_again(postgres: Database) -> None:
    await postgres.execute(CREATE)
    await postgres.execute(INSERT)
    meeting, calls = asyncio.Barrier(2), [0]

    async def change(seen: int, changed: int) -> None:
        calls[0] += 1
        n = await postgres.fetch_val(f"SELECT n FROM counters WHERE id = {seen}")
        if calls[0] <= 2:
            await meeting.wait()
        await postgres.execute(f"UPDATE counters SET n = {n} + 1 WHERE id = {changed}")

    await asyncio.gather(
        postgres.run_in_transaction(lambda: change(1, 2), isolation="serializable"),
        postgres.run_in_transaction(lambda: change(2, 1), isolation="serializable"),
    )
    rows = await postgres.fetch_all("SELECT n FROM counters")
    assert sorted(row[0] for row in rows) == [1, 2]
    assert calls == [3]


@pytest.mark.parametrize("ask", [run_text, run_session])
async def test_a_connection_that_is_lost_before_its_commit_costs_an_attempt(
    postgres: Database, witness: Database, ask: Any
) -> None:
    await postgres.execute(CREATE)
    calls = 0

    async def work() -> None:
        nonlocal calls
        calls += 1
        await postgres.execute("INSERT INTO counters VALUES (1, 0)")
        if calls == 1:
            pid = await postgres.fetch_val(PID)
            assert await witness.fetch_val(f"SELECT pg_terminate_backend({pid}, 5000)")
        await ask(postgres, "INSERT INTO counters VALUES (2, 0)")

    await postgres.run_in_transaction(work)
    assert await postgres.fetch_val("SELECT count(*) FROM counters") == 2
    assert calls == 2


async def test_what_may_be_stored_is_never_run_again(postgres: Database, witness: Database) -> None:
    await witness.execute(
        """
        CREATE TABLE slow (id int);
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_lock(3); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION wait()
        """
    )
    pids: list[int] = []

    async def work() -> None:
        pids.append(await postgres.fetch_val(PID))
        await postgres.execute("INSERT INTO slow VALUES (1)")

    waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
    async with witness.connection() as holder:
        await holder.execute("SELECT pg_advisory_lock(3)")
        committing = asyncio.create_task(postgres.run_in_transaction(work))
        while not await holder.fetch_val(waits):
            pass
        assert await holder.fetch_val(f"SELECT pg_terminate_backend({pids[0]}, 5000)")
        with pytest.raises(CommitUnknown):
            await committing
    assert len(pids) == 1


class Telling(logging.Handler):
    """Sets an event at the first thing that is logged."""

    def __init__(self, event: asyncio.Event) -> None:
        super().__init__()
        self.event = event

    def emit(self, record: logging.LogRecord) -> None:
        self.event.set()


async def test_a_lock_that_is_not_free_costs_an_attempt(database: Database) -> None:
    await database.execute(CREATE)
    await database.execute(INSERT)
    failed, url = asyncio.Event(), database.url
    is_sqlite = url.get_backend_name() == "sqlite"
    other = Database(url.update_query_dict({"timeout": "0.1"}) if is_sqlite else url)
    handler = Telling(failed)
    logging.getLogger("loopsafe_db").addHandler(handler)

    async def add() -> None:
        if not is_sqlite:
            await other.execute("SET LOCAL lock_timeout = '50ms'")
        await other.execute("UPDATE counters SET n = n + 1")

    async with database.transaction():
        await database.execute("UPDATE counters SET n = n + 1")
        adding = asyncio.create_task(other.run_in_transaction(add, attempts=100))
        await failed.wait()
    await adding
    logging.getLogger("loopsafe_db").removeHandler(handler)
    assert await database.fetch_val("SELECT sum(n) FROM counters") == 4
    async with database.transaction():
        await database.execute("UPDATE counters SET n = n + 1")
        with pytest.raises(LockTimeout):
            await other.run_in_transaction(add, attempts=1)
    await other.disconnect()
