"""`force_rollback`: everybody works on one connection, over tasks, loops and threads, and all of it is undone."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.util import greenlet_spawn

from loopsafe_db import Connection, Database, pinned
from loopsafe_db.errors import ConnectionLost, StatementTimeout, TransactionError
from tests.conftest import anyio_timeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

COUNT = "SELECT count(*) FROM things"
INSERT = "INSERT INTO things (id) VALUES (:id)"
things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))


@pytest.fixture
async def undone(any_database: Database) -> AsyncIterator[Database]:
    """A handle whose work is undone; afterwards nothing of it is there."""
    await any_database.execute("CREATE TABLE things (id integer PRIMARY KEY)")
    undone = Database(any_database.url, force_rollback=True)
    yield undone
    await undone.disconnect()
    assert await any_database.fetch_val(COUNT) == 0


def in_thread(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine in a thread and loop of its own, while the caller's loop is blocked."""
    outcomes: list[Any] = []
    thread = threading.Thread(target=lambda: outcomes.append(asyncio.run(work())))
    thread.start()
    thread.join(20)
    return outcomes[0]


async def test_everybody_sees_what_was_done_until_it_is_undone(undone: Database) -> None:
    async with undone:
        await undone.execute(INSERT, {"id": 1})
        await undone.execute(things.insert(), {"id": 2})
        async with undone.transaction():
            await undone.execute_many(INSERT, [{"id": 3}, {"id": 4}])
        assert await asyncio.gather(*(undone.fetch_val(COUNT) for _ in range(3))) == [4] * 3
        assert in_thread(lambda: undone.fetch_val(COUNT)) == 4
        assert len([row async for row in undone.iterate(things.select())]) == 4
    assert not undone.is_connected
    assert await undone.fetch_val(COUNT) == 0


async def test_threads_and_tasks_take_turns(undone: Database) -> None:
    async def write(first: int) -> None:
        async def one(number: int) -> None:
            async with undone.transaction():
                await undone.execute(INSERT, {"id": number})
                await undone.fetch_val(things.select())

        await asyncio.gather(*(one(first + n) for n in range(5)))

    await asyncio.gather(
        *(asyncio.to_thread(asyncio.run, write(first)) for first in range(0, 40, 10)), write(100)
    )
    assert await undone.fetch_val(COUNT) == 25


async def test_the_work_of_one_loop_after_another_is_kept(undone: Database) -> None:
    for number in range(3):
        in_thread(partial(undone.execute, INSERT, {"id": number}))
    assert await undone.fetch_val(COUNT) == 3


async def test_what_fails_is_undone_alone(undone: Database) -> None:
    await undone.execute(INSERT, {"id": 1})
    for query in (INSERT, things.insert()):
        with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
            await undone.execute(query, {"id": 1})
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with undone.transaction():
            await undone.execute(INSERT, {"id": 2})
            raise ZeroDivisionError
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        await undone.execute_many(INSERT, [{"id": 3}, {"id": 1}])
    assert await undone.fetch_val(COUNT) == 1


async def test_what_fails_before_all_else_leaves_a_transaction_to_the_next(
    undone: Database,
) -> None:
    for query in ("SELECT nothing", sa.text("SELECT nothing")):
        with pytest.raises(Exception, match="nothing"):
            await undone.fetch_val(query)
    await undone.execute(INSERT, {"id": 1})
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        await undone.execute(INSERT, {"id": 1})
    assert await undone.fetch_val(COUNT) == 1


async def test_transactions_nest_in_those_that_surround_them_and_wait_for_strangers(
    undone: Database,
) -> None:
    order: list[str] = []
    begun = asyncio.Event()

    async def stranger() -> None:
        await begun.wait()
        async with undone.transaction():
            order.append("stranger")

    async def child() -> None:
        async with undone.transaction():
            await undone.execute(INSERT, {"id": 1})
            order.append("child")

    waiting = asyncio.create_task(stranger())
    async with undone.transaction():
        begun.set()
        await asyncio.sleep(0.05)
        await asyncio.gather(child(), undone.fetch_val(COUNT))
        order.append("around")
    await waiting
    assert order == ["child", "around", "stranger"]


async def test_a_savepoint_may_take_longer_than_who_waits_for_a_stranger(
    undone: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned, "STRANGER_PATIENCE", 0.1)
    async with undone:
        driver, is_slow = undone._pool().driver, asyncio.Event()  # noqa: SLF001

        def begin(raw: Any, options: Any) -> Any:
            made: Any = original(raw, options)
            start = made.start

            async def start_late() -> None:
                await asyncio.sleep(0.3)
                is_slow.set()
                await start()

            made.start = start_late
            return made

        original = driver.transaction
        monkeypatch.setattr(driver, "transaction", begin)
        async with undone.transaction():
            await undone.execute(INSERT, {"id": 1})
        assert is_slow.is_set()
        assert await undone.fetch_val(COUNT) == 1


async def test_a_process_that_stands_still_is_no_reason_to_begin_in_the_transaction_of_a_stranger(
    undone: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned, "STRANGER_PATIENCE", 0.5)
    begun, waits = asyncio.Event(), time.monotonic() + 0.6

    async def stranger() -> None:
        await begun.wait()
        async with undone.transaction():
            await undone.execute(INSERT, {"id": 2})

    waiting = asyncio.create_task(stranger())
    with suppress(ZeroDivisionError):
        async with undone.transaction():
            begun.set()
            while time.monotonic() < waits:  # the stranger has been patient already
                await undone.fetch_val(COUNT)
            asyncio.get_running_loop().call_soon(time.sleep, 0.6)
            await asyncio.sleep(0.05)
            raise ZeroDivisionError
    await waiting
    assert await undone.fetch_val(COUNT) == 1


# MariaDB ends a recursion after 1,000 steps, and says so in a warning only.
TO_100 = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 100) "
SLOW = TO_100 + "SELECT count(*) FROM n a, n b, n c, n d, n e"
MANY = TO_100 + "SELECT (a.x - 1) * 100 + b.x FROM n a, n b WHERE a.x <= 20 ORDER BY 1"


@pytest.mark.parametrize("query", [SLOW, sa.text(SLOW)], ids=["text", "clause"])
async def test_what_is_cancelled_takes_nothing_with_it(undone: Database, query: Any) -> None:
    await undone.execute(INSERT, {"id": 1})
    with pytest.raises(StatementTimeout):
        await undone.fetch_val(query, timeout=0.2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await undone.fetch_val(query)
    with pytest.raises(StatementTimeout):  # noqa: PT012
        async with undone.transaction():
            await undone.execute(INSERT, {"id": 2})
            await undone.fetch_val(query, timeout=0.2)
    assert await undone.fetch_val(COUNT) == 1


async def test_a_session_that_is_cancelled_takes_nothing_with_it(undone: Database) -> None:
    await undone.execute(INSERT, {"id": 1})
    with pytest.raises(TimeoutError):  # noqa: PT012
        async with asyncio.timeout(0.2), undone.session() as session:
            await session.execute(things.insert().values(id=2))
            await session.execute(sa.text(SLOW))
    async with undone.session() as session:
        assert (await session.scalars(things.select())).all() == [1]


@pytest.mark.parametrize("timeout", [asyncio.timeout, anyio_timeout])
async def test_who_is_cancelled_at_whatever_moment_takes_nothing_of_others_with_it(
    undone: Database, timeout: Callable[[float], AbstractAsyncContextManager[Any]]
) -> None:
    async def insert(number: int) -> None:
        if number % 4 == 0:
            await undone.execute(INSERT, {"id": number})
        elif number % 4 == 1:
            await undone.execute_many(INSERT, [{"id": number}, {"id": -number}])
        elif number % 4 == 2:
            async with undone.transaction():
                await undone.execute(things.insert(), {"id": number})
                await undone.fetch_val(COUNT)
        else:
            async with undone.session() as session, session.begin():
                await session.execute(things.insert().values(id=number))
                await session.scalars(things.select())

    await insert(1001)
    kept = {1001}
    for number in range(200):
        with suppress(TimeoutError):
            async with timeout(number % 50 / 6_000):
                await insert(number)
            kept.add(number)
    assert kept <= {row[0] for row in await undone.fetch_all("SELECT id FROM things")}


async def _in_a_block(undone: Database) -> None:
    async with undone.transaction():
        await undone.fetch_val(COUNT)


async def _in_a_session(undone: Database) -> None:
    async with undone.session() as session, session.begin():
        await session.execute(sa.text(COUNT))


async def _in_a_stream(undone: Database) -> None:
    async for _ in undone.iterate(COUNT):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "work", [lambda undone: undone.fetch_val(COUNT), _in_a_block, _in_a_session, _in_a_stream]
)
async def test_a_task_that_is_left_at_the_end_of_a_loop_takes_nothing_with_it(
    undone: Database, work: Callable[[Database], Coroutine[Any, Any, None]]
) -> None:
    async def leave(steps: int) -> None:
        left = asyncio.create_task(work(undone))
        for step in range(steps):
            await asyncio.sleep(step % 2 * 0.0002)
        assert left is not None

    for number in range(24):
        in_thread(partial(leave, number))
        await undone.execute(INSERT, {"id": number})
    assert await undone.fetch_val(COUNT) == 24


async def test_who_is_cancelled_before_its_turn_takes_nothing_of_others_with_it(
    undone: Database,
) -> None:
    kept = {1001}

    async def insert(number: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(number / 1_000), undone.session() as session:
                await session.execute(things.insert().values(id=number))
                await session.commit()
                kept.add(number)

    await undone.execute(INSERT, {"id": 1001})
    await asyncio.gather(*map(insert, range(80)))
    assert undone._pool().pinned.left_open() == []  # noqa: SLF001
    assert kept <= {row[0] for row in await undone.fetch_all("SELECT id FROM things")}


async def test_a_rollback_waits_for_its_turn(
    undone: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopsafe_db.connection.ENDING_TIMEOUT", 0.1)

    async def stranger() -> None:
        with suppress(StatementTimeout):
            await undone.fetch_val(SLOW, timeout=0.5)

    await undone.execute(INSERT, {"id": 1})
    async with undone.transaction(force_rollback=True):
        await undone.execute(INSERT, {"id": 2})
        waiting = asyncio.create_task(stranger())
        await asyncio.sleep(0.05)
    await waiting
    assert await undone.fetch_val(COUNT) == 1


async def test_who_gives_up_while_connecting_is_in_nobodys_way(undone: Database) -> None:
    for number in range(20):
        with suppress(TimeoutError):
            async with asyncio.timeout(number / 10_000):
                await undone.fetch_val(COUNT)
    async with asyncio.timeout(5):
        assert await undone.fetch_val(COUNT) == 0


async def test_where_the_connection_ends_all_is_lost_and_everybody_is_told(
    undone: Database,
) -> None:
    await undone.execute(INSERT, {"id": 1})
    undone._pool().pinned.give_up()  # noqa: SLF001 (as where the server ends it)
    for query in (COUNT, things.select()):
        with pytest.raises(TransactionError, match="has been lost"):
            await undone.fetch_val(query)
    await undone.disconnect()
    assert await undone.fetch_val(COUNT) == 0


async def test_in_a_block_and_no_longer(undone: Database) -> None:
    plain = Database(undone.url)
    seen = []
    with plain.force_rollback():
        for _ in range(2):
            async with plain:
                await plain.execute(INSERT, {"id": 1})
                seen.append(await plain.fetch_val(COUNT))
        await plain.execute(INSERT, {"id": 1})  # undone by the end of the block
    seen.append(await plain.fetch_val(COUNT))
    assert seen == [1, 1, 0]


async def test_sessions_and_engines_take_part(undone: Database) -> None:
    async with undone.session.begin() as session:
        await session.execute(things.insert().values(id=1))
        assert await undone.fetch_val(COUNT) == 1
        async with undone.transaction():
            await session.execute(things.insert().values(id=2))
        with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
            async with session.begin_nested():
                await session.execute(things.insert().values(id=2))
    async with undone.session() as session:
        await session.execute(things.insert().values(id=3))
        await session.rollback()
        assert await session.scalar(sa.select(sa.func.count()).select_from(things)) == 2
    async with undone.engine.begin() as connection:
        await connection.execute(things.insert().values(id=4))
    assert in_thread(partial(undone.fetch_val, COUNT)) == 3


async def test_a_session_that_fails_undoes_its_own_work(undone: Database) -> None:
    await undone.execute(INSERT, {"id": 1})
    async with undone.session() as session:
        with pytest.raises(sa.exc.IntegrityError):
            await session.execute(things.insert().values(id=1))
        await session.rollback()
        await session.execute(things.insert().values(id=2))
        await session.commit()
    assert await undone.fetch_val(COUNT) == 2


async def test_sessions_of_tasks_and_threads_take_turns_and_end_in_any_order(
    undone: Database,
) -> None:
    async def write(first: int) -> None:
        async with undone.session() as one, undone.session() as other:
            await one.execute(things.insert().values(id=first))
            await other.execute(things.insert().values(id=first + 1))
            await one.commit()
            await other.commit()

    threads = (asyncio.to_thread(asyncio.run, write(first)) for first in range(0, 40, 10))
    await asyncio.gather(*threads, write(100), write(110))
    assert await undone.fetch_val(COUNT) == 12


async def beside(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a task that is in no transaction of its caller's."""
    return await asyncio.create_task(work, context=contextvars.Context())


async def test_rows_that_a_session_streams_come_in_its_turns(undone: Database) -> None:
    async with undone.session() as session:
        rows = await session.stream(sa.text(MANY))
        seen = []
        while batch := (await asyncio.gather(rows.fetchmany(300), undone.fetch_val(COUNT)))[0]:
            seen += [row[0] for row in batch]
            assert await asyncio.to_thread(asyncio.run, undone.fetch_val(COUNT)) == 0
    assert seen == list(range(1, 2001))


async def test_a_stranger_that_fails_or_is_cancelled_takes_no_transaction_with_it(
    undone: Database,
) -> None:
    async with undone.transaction():
        await undone.execute(INSERT, {"id": 1})
        for query in ("SELECT nothing", sa.text("SELECT nothing")):
            with pytest.raises(Exception, match="nothing"):
                await beside(undone.fetch_val(query))
        for query in (SLOW, sa.text(SLOW)):
            with pytest.raises(TimeoutError):
                await beside(asyncio.wait_for(undone.fetch_val(query), 0.2))
        await beside(undone.execute(INSERT, {"id": 2}))
    assert await undone.fetch_val(COUNT) == 2


@pytest.mark.parametrize("interrupted", [False, True], ids=["failed", "interrupted"])
async def test_a_stranger_waits_where_a_statement_of_a_transaction_has_failed(
    undone: Database, *, interrupted: bool
) -> None:
    async def fail(run: Callable[[Any], Awaitable[Any]]) -> None:
        if interrupted:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await run(sa.text(SLOW))
        else:
            with pytest.raises(Exception, match="nothing"):
                await run(sa.text("SELECT nothing"))

    async def seen_by_a_stranger() -> asyncio.Task[Any]:
        stranger = asyncio.create_task(undone.fetch_val(COUNT), context=contextvars.Context())
        await asyncio.wait([stranger], timeout=0.1)  # on PostgreSQL it is not done by then
        return stranger

    async with undone.transaction(force_rollback=True):
        await fail(undone.fetch_val)
        stranger = await seen_by_a_stranger()
    assert await stranger == 0
    async with undone.session() as session:
        await fail(session.execute)
        stranger = await seen_by_a_stranger()
    assert await stranger == 0


async def test_who_is_cancelled_while_a_stream_steps_aside_costs_its_reader_no_rows(
    undone: Database,
) -> None:
    for turns in range(40):
        rows = undone.iterate(MANY)
        seen = [(await anext(rows))[0]]
        other = asyncio.create_task(undone.fetch_val(COUNT))
        for _ in range(turns):
            await asyncio.sleep(0)
        other.cancel()
        await asyncio.wait([other])
        seen += [row[0] async for row in rows]
        assert seen == list(range(1, 2001))


async def test_who_is_cancelled_as_its_statement_fails_takes_nothing_with_it(
    undone: Database,
) -> None:
    await undone.execute(INSERT, {"id": 1})
    for turns in range(20):
        failing = asyncio.create_task(undone.execute(INSERT, {"id": 1}))
        for _ in range(turns):
            await asyncio.sleep(0)
            time.sleep(0.002)  # noqa: ASYNC251 (the server has answered by the next turn)
        failing.cancel()
        await asyncio.wait([failing])
        assert await undone.fetch_val(COUNT) == 1


async def test_the_one_connection_does_not_expire(any_database: Database) -> None:
    await any_database.execute("CREATE TABLE things (id integer PRIMARY KEY)")
    with any_database.force_rollback():
        await any_database.execute(INSERT, {"id": 1})
        any_database.expire_connections()
        assert await any_database.fetch_val(COUNT) == 1
        await any_database.disconnect()


async def test_the_drivers_own_connection_may_be_used_between_what_others_do(
    any_database: Database,
) -> None:
    async def insert(connection: Connection, number: int) -> None:
        query = f"INSERT INTO things VALUES ({number})"
        if any_database.url.get_backend_name() != "mysql":
            await connection.raw_connection.execute(query)
            return
        async with connection.raw_connection.driver_connection.cursor() as cursor:
            await cursor.execute(query)

    await any_database.execute("CREATE TABLE things (n int)")
    with any_database.force_rollback():
        await any_database.execute("INSERT INTO things VALUES (1)")
        async with any_database.connection() as connection:
            await insert(connection, 2)
            assert await any_database.fetch_val("SELECT count(*) FROM things") == 2
        async with any_database.transaction(), any_database.connection() as connection:
            await insert(connection, 3)
        async with any_database.session() as session:
            assert await session.scalar(sa.text("SELECT count(*) FROM things")) == 3
        await any_database.disconnect()
    assert await any_database.fetch_val("SELECT count(*) FROM things") == 0


_ENDS_ITSELF = (
    "CREATE FUNCTION end_it() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER ends AFTER INSERT ON things DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW EXECUTE FUNCTION end_it()",
)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_connection_that_is_lost_at_its_begin_or_commit_is_told_as_everywhere(
    postgres_url: str, driver: str
) -> None:
    url = sa.make_url(postgres_url).set(drivername=f"postgresql+{driver}")
    postgresql, witness = Database(url), Database(url)
    await witness.execute("CREATE TABLE things (id integer PRIMARY KEY)")
    for statement in _ENDS_ITSELF:
        await witness.execute(statement)

    async def commit() -> None:
        async with postgresql.transaction():
            await postgresql.execute(INSERT, {"id": 1})

    with postgresql.force_rollback(), pytest.raises(ConnectionLost):
        await commit()

    async def end(_: Any) -> None:
        who = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'ended'"
        await witness.fetch_all(who)

    ended = Database(url, setup=end, application_name="ended")
    with ended.force_rollback(), pytest.raises(ConnectionLost):
        await ended.execute(INSERT, {"id": 2})
    assert await witness.fetch_val(COUNT) == 0
    for database in (postgresql, ended, witness):
        await database.disconnect()


async def test_a_cursor_that_was_made_before_a_stream_costs_it_no_rows(undone: Database) -> None:
    if undone.url.get_backend_name() != "mysql":
        pytest.skip("MySQL's: one result at a time")

    def stream(raw: Any) -> list[int]:
        before, rows = raw.cursor(), raw.cursor(server_side=True)
        rows.execute(MANY)
        seen = [rows.fetchone()]
        before.execute("SELECT 1")
        return [row[0] for row in (*seen, *rows.fetchall())]

    async with undone.connection() as connection:
        seen = await greenlet_spawn(stream, connection.raw_connection)
    assert seen == list(range(1, 2001))
