"""A stream may be left at any row, in any way: whatever is done next on its connection means what it says.

What is left is closed by Python at some moment or never, so nothing here waits for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
import uvloop
from sqlalchemy import make_url

from loopsafe_db import Database, PoolLimits, Timeouts
from loopsafe_db.errors import ForeignLoopError, ReleasedError, TransactionError
from tests.conftest import anyio_timeout

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine

    from loopsafe_db import Connection
    from loopsafe_db.records import Record

MANY = 2000  # rows: some batches
ROWS = "SELECT id FROM many ORDER BY id"
INSERT = "INSERT INTO things (id) VALUES (:id)"
COUNT = "SELECT count(*) FROM things"
things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer))
many = sa.Table("many", sa.MetaData(), sa.Column("id", sa.Integer))
CLAUSE = many.select().order_by(many.c.id)


@pytest.fixture(params=["asyncpg", "psycopg", "aiosqlite", "aiomysql", "asyncmy"])
def database(request: pytest.FixtureRequest, tmp_path: Any) -> Database:
    """Every driver, and MariaDB by the generic one."""
    if request.param in ("aiomysql", "asyncmy"):
        url = make_url(request.getfixturevalue("mariadb_url"))
        return Database(url.set(drivername=f"mysql+{request.param}"))
    if request.param != "aiosqlite":
        url = make_url(request.getfixturevalue("postgres_url"))
        return Database(url.set(drivername=f"postgresql+{request.param}"))
    return Database(f"sqlite:///{tmp_path}/test.db?timeout=30")


@asynccontextmanager
async def filled(database: Database) -> AsyncIterator[Database]:
    """The tables, for the length of a block; what it gives is another handle: the witness."""
    witness = Database(database.url)
    for table in ("things", "many"):
        await witness.execute(f"DROP TABLE IF EXISTS {table}")
        await witness.execute(f"CREATE TABLE {table} (id integer)")
    await witness.execute_many("INSERT INTO many VALUES (:id)", [{"id": n} for n in range(MANY)])
    try:
        yield witness
    finally:
        await database.disconnect()
        for table in ("things", "many"):
            await witness.execute(f"DROP TABLE IF EXISTS {table}")
        await witness.disconnect()


@pytest.fixture
async def witness(database: Database) -> AsyncIterator[Database]:
    async with filled(database) as witness:
        yield witness


def one(database: Database) -> Database:
    """The same database by one connection, and little patience."""
    return Database(database.url, pool=PoolLimits(1), timeouts=Timeouts(acquire=3))


async def write_and_fail(database: Database) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async with database.transaction():
            await database.execute(INSERT, {"id": 3})
            raise ZeroDivisionError


async def rest(rows: AsyncGenerator[Record, None]) -> int:
    return len([row async for row in rows])


# -- how a stream is left

Source = Any  # a handle or a connection


async def by_break(source: Source, then: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    async for _ in source.iterate(ROWS):
        break
    await then()


async def by_return(source: Source, then: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    async def first() -> Any:
        async for row in source.iterate(CLAUSE):
            return row

    await first()
    await then()


async def by_an_error(source: Source, then: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    with contextlib.suppress(KeyError):
        async for _ in source.iterate(ROWS):
            raise KeyError
    await then()


async def by_an_error_that_is_being_handled(
    source: Source, then: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    async def fail() -> None:
        rows = source.iterate(ROWS)  # the traceback holds it
        async for _ in rows:
            raise KeyError

    try:
        await fail()
    except KeyError:
        await then()


async def by_keeping_it(source: Source, then: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    rows = source.iterate(CLAUSE)
    assert (await anext(rows)).id == 0
    await then()
    await rows.aclose()


async def by_a_loop_turn_or_more(
    source: Source, then: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    for turns in (1, 2, 3, 5, 8):
        async for _ in source.iterate(ROWS):
            break
        for _turn in range(turns):
            await asyncio.sleep(0)
    await then()


LEAVE = [
    by_break,
    by_return,
    by_an_error,
    by_an_error_that_is_being_handled,
    by_keeping_it,
    by_a_loop_turn_or_more,
]


@pytest.mark.parametrize("leave", LEAVE)
async def test_a_write_after_a_stream_that_was_left_is_there_at_once(
    database: Database, witness: Database, leave: Any
) -> None:
    async with database.connection() as connection:

        async def write() -> None:
            assert await connection.execute(INSERT, {"id": 1}) == 1
            assert await witness.fetch_val(COUNT) == 1

        await leave(connection, write)
    assert await witness.fetch_val(COUNT) == 1


@pytest.mark.parametrize("leave", LEAVE)
async def test_a_transaction_after_a_stream_that_was_left_is_whole(
    database: Database, witness: Database, leave: Any
) -> None:
    async def transact() -> None:
        before = await witness.fetch_val(COUNT)
        async with database.transaction():
            await database.execute(INSERT, {"id": 1})
            await database.execute(things.insert(), {"id": 2})
        assert await witness.fetch_val(COUNT) == before + 2
        await write_and_fail(database)
        assert await witness.fetch_val(COUNT) == before + 2

    await leave(database, transact)
    async with database.connection() as connection:
        await leave(connection, transact)
        await leave(database, transact)


@pytest.mark.parametrize("query", [ROWS, CLAUSE], ids=["text", "clause"])
async def test_a_write_while_rows_are_read_is_there_at_once(
    database: Database, witness: Database, query: Any
) -> None:
    async with database.connection() as connection:
        for source in (connection, database):
            writes: list[Callable[[], Any]] = [
                lambda: connection.execute(INSERT, {"id": 1}),
                lambda: connection.execute(things.insert(), {"id": 2}),
                lambda: database.execute_many(INSERT, [{"id": 3}, {"id": 4}]),
                lambda: database.execute("DELETE FROM things"),
            ]
            counts = iter([1, 2, 4, 0])
            seen = []
            async for row in source.iterate(query):
                seen.append(row.id)
                if row.id % 600 == 0 and writes:
                    await writes.pop(0)()
                    assert await witness.fetch_val(COUNT) == next(counts)
            assert seen == [*range(MANY)]
            assert not writes


async def test_a_transaction_while_rows_are_read_is_the_outermost(
    database: Database, witness: Database
) -> None:
    seen = []
    async with database.connection() as connection:
        async for row in connection.iterate(ROWS):
            seen.append(row.id)
            if row.id == 7:
                async with connection.transaction(isolation="serializable"):
                    await database.execute(INSERT, {"id": 1})
                assert await witness.fetch_val(COUNT) == 1
            if row.id == 8:
                async with connection.transaction(force_rollback=True):
                    await connection.execute(INSERT, {"id": 2})
    assert seen == [*range(MANY)]
    assert await witness.fetch_val(COUNT) == 1


async def test_streams_on_one_connection_each_give_all_of_their_rows(
    database: Database, witness: Database
) -> None:
    async with database.connection() as connection:
        for begin in (contextlib.nullcontext, connection.transaction):
            async with contextlib.AsyncExitStack() as stack:
                if begin is not contextlib.nullcontext:
                    await stack.enter_async_context(connection.transaction())
                pairs = []
                async for outer in connection.iterate(ROWS):
                    if outer.id % 700 == 3:
                        pairs += [(outer.id, row.id) async for row in connection.iterate(CLAUSE)]
                assert pairs == [(n, m) for n in (3, 703, 1403) for m in range(MANY)]
                first, second = connection.iterate(ROWS), connection.iterate(CLAUSE)
                for n in range(MANY):
                    assert (await anext(first)).id == (await anext(second)).id == n


async def test_a_session_beside_a_stream_is_on_its_own(
    database: Database, witness: Database
) -> None:
    async with database.connection():
        async for _ in database.iterate(ROWS):
            async with database.session.begin() as session:
                await session.execute(things.insert(), {"id": 1})
            assert await witness.fetch_val(COUNT) == 1
            break
        async with database.session.begin() as session:
            await session.execute(things.insert(), {"id": 2})
    assert await witness.fetch_val(COUNT) == 2


async def test_the_handle_uses_the_connection_of_the_block_while_rows_are_read(
    database: Database, witness: Database
) -> None:
    async with database.connection() as connection:
        await connection.execute("CREATE TEMPORARY TABLE mine (id integer)")
        async for row in database.iterate(ROWS):
            await database.execute("INSERT INTO mine VALUES (:id)", {"id": row.id})
            if row.id == 9:
                break
        assert await database.fetch_val("SELECT count(*) FROM mine") == 10
        await database.execute("DROP TABLE mine")


async def stream(session: Any, query: Any) -> Any:
    result = await session.stream(query)
    await result.fetchone()
    return result


async def stream_scalars(session: Any, query: Any) -> Any:
    rows = await session.stream_scalars(query)
    async for _ in rows:
        break
    return rows


async def read_in_parts(session: Any, query: Any) -> Any:
    query = query.execution_options(yield_per=10)
    return await session.run_sync(lambda sync: next(iter(sync.execute(query).partitions())))


@pytest.mark.parametrize("read", [stream, stream_scalars, read_in_parts])
@pytest.mark.parametrize("end", ["close", "commit"])
async def test_a_session_that_is_left_with_a_half_read_result_comes_back_clean(
    database: Database, witness: Database, read: Any, end: str
) -> None:
    handle = one(database)
    async with handle.session() as session:
        kept = await read(session, CLAUSE)
        await getattr(session, end)()
    for n in range(1, 3):
        await witness.execute(INSERT, {"id": -n})
        async with handle.session.begin() as session:
            await session.execute(things.insert(), {"id": 3 * n})
        async with handle.transaction():
            await handle.execute(INSERT, {"id": 3 * n + 1})
        await handle.execute(INSERT, {"id": 3 * n + 2})
        assert await witness.fetch_val(COUNT) == 4 * n
    del kept
    assert handle.stats().opened == 1
    await handle.disconnect()


# -- inside transactions of the user's


@pytest.mark.parametrize("leave", [by_break, by_an_error, by_a_loop_turn_or_more])
async def test_a_transaction_goes_on_after_a_stream_in_it_was_left(
    database: Database, witness: Database, leave: Any
) -> None:
    async def go_on() -> None:
        await database.execute(INSERT, {"id": 1})
        async with database.transaction(force_rollback=True):
            await leave(database, lambda: database.execute(INSERT, {"id": 2}))
        if database.url.get_backend_name() != "mysql":  # whose DDL commits
            await database.execute("DROP TABLE many")  # no portal keeps it
        assert await database.fetch_val(COUNT) == 1

    async with database.transaction():
        await leave(database, go_on)
    assert await witness.fetch_val(COUNT) == 1


async def test_a_stream_in_a_transaction_stays_on_the_server_while_others_work(
    database: Database, witness: Database
) -> None:
    seen = []
    async with database.transaction():
        async for row in database.iterate(ROWS):
            seen.append(row.id)
            if row.id % 300 == 0:
                await database.execute(INSERT, {"id": row.id})
                async with database.transaction(force_rollback=True):
                    await database.execute(INSERT, {"id": -1})
        assert await witness.fetch_val(COUNT) == 0
    assert seen == [*range(MANY)]
    assert await witness.fetch_val(COUNT) == 7


@pytest.mark.parametrize("options", [{}, {"force_rollback": True}], ids=["commit", "rollback"])
async def test_a_stream_ends_with_the_transaction_that_it_was_begun_in(
    database: Database, witness: Database, options: Any
) -> None:
    async with database.transaction():
        async with database.transaction(**options):
            rows = database.iterate(ROWS)
            await anext(rows)
        with pytest.raises(TransactionError, match="went with the transaction"):
            await rest(rows)
        outer = database.iterate(CLAUSE)
        await anext(outer)
        await database.execute(INSERT, {"id": 1})
    with pytest.raises(TransactionError, match="went with the transaction"):
        await rest(outer)
    assert await witness.fetch_val(COUNT) == 1


async def test_an_error_of_a_row_is_the_readers_alone(
    database: Database, witness: Database
) -> None:
    if database.url.get_backend_name() != "postgresql":
        pytest.skip("only PostgreSQL divides by zero here")
    broken = "SELECT id, 1 / (1500 - id) AS x FROM generate_series(0, 1999) id"
    seen = []

    async def read(connection: Connection) -> None:
        async for row in connection.iterate(broken):
            seen.append(row.id)
            if row.id == 5 and len(seen) > MANY / 2:  # it steps aside, and meets the error then
                assert await connection.execute(INSERT, {"id": 2}) == 1
                assert await witness.fetch_val(COUNT) == 2

    async with database.connection() as connection:
        with pytest.raises(Exception, match="division by zero"):
            await read(connection)
        assert seen == [*range(1500)]
        assert await connection.execute(INSERT, {"id": 1}) == 1
        with pytest.raises(Exception, match="division by zero"):
            await read(connection)
        assert await witness.fetch_val(COUNT) == 2


# -- ends


async def test_a_stream_kept_after_its_block_touches_nothing(
    database: Database, witness: Database
) -> None:
    handle = one(database)
    kept = []
    for _ in range(2):
        async with handle.connection() as connection:
            kept.append(connection.iterate(ROWS))
            await anext(kept[-1])
    async with handle.transaction():
        await handle.execute(INSERT, {"id": 1})
        await kept[0].aclose()
        with pytest.raises(ReleasedError):
            await rest(kept[1])
        await handle.execute(INSERT, {"id": 2})
    assert await witness.fetch_val(COUNT) == 2
    await handle.disconnect()


async def test_at_the_pools_limit_one_goes_on_after_a_stream_that_was_left(
    database: Database, witness: Database
) -> None:
    handle = one(database)
    for n, leave in enumerate([by_break, by_return, by_an_error, by_a_loop_turn_or_more]):
        await leave(handle, lambda: handle.execute(INSERT, {"id": 1}))
        assert await witness.fetch_val(COUNT) == n + 1
    assert handle.stats().opened == 1
    await handle.disconnect()


async def test_a_stream_whose_rows_are_all_here_holds_no_connection(
    database: Database, witness: Database
) -> None:
    handle = one(database)
    async for row in handle.iterate("SELECT id FROM many WHERE id < 400 ORDER BY id"):
        await handle.execute(INSERT, {"id": row.id})
    assert await witness.fetch_val(COUNT) == 400
    await handle.disconnect()


@pytest.mark.parametrize("timeout", [asyncio.timeout, anyio_timeout], ids=["asyncio", "anyio"])
async def test_a_fetch_that_is_cancelled_takes_nothing_along(
    database: Database, witness: Database, timeout: Any
) -> None:
    async def read_for_too_long(connection: Connection) -> None:
        for _ in range(100):  # AnyIO cancels only who waits: all may have come before, as on uvloop
            rows = connection.iterate(ROWS)
            await anext(rows)
            async with timeout(0):
                await rest(rows)

    async with database.connection() as connection:
        for n in range(1, 4):
            with pytest.raises(TimeoutError):
                await read_for_too_long(connection)
            if database.url.get_backend_name() == "mysql":
                break  # that costs the connection, which says so
            await connection.execute(INSERT, {"id": n})
            assert await witness.fetch_val(COUNT) == n
    assert await database.execute(INSERT, {"id": 9}) == 1


async def test_a_stream_may_be_handed_to_another_task(
    database: Database, witness: Database
) -> None:
    rows = database.iterate(ROWS)
    await anext(rows)
    assert await asyncio.create_task(rest(rows)) == MANY - 1
    async with database.connection() as connection:
        rows = connection.iterate(ROWS)
        await anext(rows)
        reading = asyncio.create_task(rest(rows))
        assert await connection.execute(INSERT, {"id": 1}) == 1
        assert await witness.fetch_val(COUNT) == 1
        assert await reading == MANY - 1
    assert database.stats().in_use == 0


async def test_many_tasks_leave_streams_and_write(database: Database, witness: Database) -> None:
    handle = Database(database.url, pool=PoolLimits(3))

    async def work(n: int) -> None:
        if n % 2:
            await by_break(handle, lambda: handle.execute(INSERT, {"id": n}))
        else:
            async with handle.connection() as connection:
                await by_break(connection, lambda: handle.execute(INSERT, {"id": n}))

    await asyncio.gather(*map(work, range(24)))
    assert await witness.fetch_val("SELECT count(DISTINCT id) FROM things") == 24
    await handle.disconnect()


async def test_it_is_an_async_generator(database: Database, witness: Database) -> None:
    async with aclosing(database.iterate(ROWS)) as rows:
        assert aiter(rows) is rows
        assert (await rows.asend(None)).id == 0
        with pytest.raises(KeyError):
            await rows.athrow(KeyError("mine"))
        with pytest.raises(StopAsyncIteration):
            await anext(rows)
    await rows.aclose()
    assert database.stats().in_use == 0
    never_begun = database.iterate(ROWS)
    await never_begun.aclose()
    del never_begun


async def test_the_raw_connection_is_refused_while_it_is_in_the_streams_transaction(
    database: Database, witness: Database
) -> None:
    async with database.connection() as connection:
        rows = connection.iterate(ROWS)
        await anext(rows)
        with pytest.raises(TransactionError, match=r"aclose\(\)"):
            _ = connection.raw_connection
        await rows.aclose()
        assert connection.raw_connection is not None
        async with connection.transaction():
            async for _ in connection.iterate(ROWS):
                assert connection.raw_connection is not None
                break


# -- loops, threads, processes


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_in_other_loops_and_threads_too(database: Database, run: Any) -> None:
    async def main(n: int) -> None:
        for _ in range(5):
            await by_break(database, lambda: database.execute(INSERT, {"id": n}))
            async with database.connection() as connection:
                await by_break(connection, lambda: connection.execute(INSERT, {"id": n}))

    async def in_threads() -> None:
        async with filled(database) as witness:
            await asyncio.gather(*(asyncio.to_thread(lambda n=n: run(main(n))) for n in range(3)))  # type: ignore[misc]
            assert await witness.fetch_val(COUNT) == 30

    asyncio.run(in_threads())


async def test_another_loop_may_not_read_it_and_does_no_harm(
    database: Database, witness: Database
) -> None:
    async with database.connection() as connection:
        rows = connection.iterate(ROWS)
        await anext(rows)
        with pytest.raises(ForeignLoopError):
            await asyncio.to_thread(asyncio.run, rest(rows))
        assert await connection.execute(INSERT, {"id": 1}) == 1
    assert await witness.fetch_val(COUNT) == 1


async def test_a_stream_that_is_collected_in_another_thread_is_ended(
    database: Database, witness: Database
) -> None:
    handle = one(database)
    kept = [handle.iterate(ROWS)]
    await anext(kept[0])
    await asyncio.to_thread(kept.clear)
    assert await handle.execute(INSERT, {"id": 1}) == 1
    await handle.disconnect()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_stream_that_outlives_its_loop_ends_with_it(database: Database, run: Any) -> None:
    async def begin() -> None:
        rows = database.iterate(ROWS)
        kept.append(rows)
        await anext(rows)

    async def main() -> None:
        async with filled(database):
            kept.append(database.iterate(ROWS))
            await asyncio.to_thread(run, begin())
            kept.clear()
            gc.collect()
            assert await database.execute(INSERT, {"id": 1}) == 1

    kept: list[Any] = []
    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
async def test_a_forked_child_does_not_touch_it(database: Database, witness: Database) -> None:
    async with database.connection() as connection:
        rows, lone = connection.iterate(ROWS), None
        await anext(rows)
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                rows.aclose().send(None)
            del rows, lone
            gc.collect()
            os._exit(0)
        await asyncio.to_thread(os.waitpid, pid, 0)
        assert len([row async for row in rows]) == MANY - 1
        assert await connection.execute(INSERT, {"id": 1}) == 1


async def test_under_force_rollback_it_is_as_ever(database: Database, witness: Database) -> None:
    with database.force_rollback():
        for n, leave in enumerate(LEAVE):
            await leave(database, lambda n=n: database.execute(INSERT, {"id": n}))  # type: ignore[misc]
            assert await database.fetch_val(COUNT) == n + 1
        seen = []
        async for row in database.iterate(ROWS):
            seen.append(row.id)
            if row.id == 3:
                await write_and_fail(database)
        assert seen == [*range(MANY)]
        async with database.transaction():
            rows = database.iterate(CLAUSE)
            await anext(rows)
        with pytest.raises(TransactionError, match="went with the transaction"):
            await rest(rows)
        assert await database.fetch_val(COUNT) == len(LEAVE)
        await database.disconnect()
    assert await witness.fetch_val(COUNT) == 0
