"""COPY by records and by queries, LISTEN, advisory locks, and batches of an async iterator."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import make_url, text

from loopsafe_db import Database, Gap, Notification, Timeouts
from loopsafe_db.errors import (
    BusyConnectionError,
    ConnectionLost,
    CopyRowsError,
    InvalidSettingError,
    NotUndoableError,
    QueryError,
    StatementTimeout,
    TransactionAborted,
    UnsupportedError,
)
from loopsafe_db.testing.children import call_in_child
from tests.faults.test_silence import KEPT, run
from tests.faults.wire import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

IN_TIME = 20  # seconds, of a machine that is busy
MANY = 3000
LISTENERS = "FROM pg_stat_activity WHERE query ILIKE 'LISTEN %' AND datname = current_database()"
# What listens is suspended where it gives what it has heard, and nobody asks it again.
KEPT_LISTENING = """
async def main():
    global listening
    listening = db.listen('news')
    first = asyncio.ensure_future(anext(listening))
    while not first.done():
        await db.execute("SELECT pg_notify('news', '')")
        await asyncio.sleep(0.01)
"""
KEPT_BLOCKS = {
    "lock": "async def generator():\n    async with db.advisory_lock(len(kept)): yield",
    "lock of a connection": (
        "async def generator():\n"
        "    async with db.connection() as c, c.advisory_lock(len(kept)): yield"
    ),
    "copy": (
        "async def generator():\n"
        "    async with aclosing(db.copy_from_query('SELECT 1 UNION SELECT 2')) as pieces:\n"
        "        async for piece in pieces: yield piece"
    ),
    "listen": (
        "async def generator():\n"
        "    async with aclosing(db.listen('news')) as heard:\n"
        "        telling = asyncio.create_task(tell())\n"
        "        async for one in heard:\n"
        "            telling.cancel()\n            yield one\n"
        "async def tell():\n"
        "    while True: await db.execute(\"SELECT pg_notify('news', '')\")"
    ),
}


@pytest.fixture(params=["asyncpg", "psycopg"])
async def db(request: pytest.FixtureRequest, postgres_url: str) -> AsyncIterator[Database]:
    url = make_url(postgres_url).set(drivername=f"postgresql+{request.param}")
    async with Database(url, max_size=2, timeouts=Timeouts(acquire=5)) as db:
        await db.execute('CREATE TABLE "a table" (n integer, word text)')
        yield db
        assert db.stats().in_use == 0


async def count(db: Database) -> Any:
    return await db.fetch_val('SELECT count(*) FROM "a table"')


async def numbers(most: int) -> AsyncIterator[tuple[int, str | None]]:
    for n in range(most):
        await asyncio.sleep(0)
        yield n, None if n % 2 else f"tab\t{n}"


async def one_by_one(rows: list[Any]) -> AsyncIterator[Any]:
    for row in rows:
        yield row


async def test_records_are_copied_from_an_iterable_or_an_async_one(db: Database) -> None:
    assert await db.copy_records_to("a table", [(1, "one"), (2, None)]) == 2
    assert await db.copy_records_to("a table", numbers(MANY)) == MANY
    assert await db.copy_records_to("a table", [("x",)], columns=["word"], schema="public") == 1

    assert await count(db) == MANY + 3
    assert await db.fetch_val('SELECT word FROM "a table" WHERE n = 4') == "tab\t4"


async def test_what_fails_half_way_copies_nothing(db: Database) -> None:
    async def broken() -> AsyncIterator[tuple[int, str]]:
        for n in range(MANY):
            yield n, "x"
        raise LookupError

    with pytest.raises(LookupError):
        await db.copy_records_to("a table", broken())
    with pytest.raises(Exception, match=r"no such table|does not exist"):
        await db.copy_records_to("no such table", [(1, "x")])

    assert await count(db) == 0


async def test_a_time_limit_in_the_rows_of_a_copy_is_told_as_it_is(db: Database) -> None:
    async def late() -> AsyncIterator[tuple[int, str]]:
        yield 1, "x"
        raise TimeoutError("in the rows")

    def late_too() -> Iterator[tuple[int, str]]:
        yield 1, "x"
        raise TimeoutError("in the rows")

    for rows in (late(), late_too()):
        with pytest.raises(TimeoutError, match="in the rows"):
            await db.copy_records_to("a table", rows)
        assert await count(db) == 0


@pytest.mark.parametrize("makes", [list, one_by_one])
@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"n": 1, "word": "x"}, "row {} of a COPY is dict"),
        ("ab", "row {} of a COPY is str"),
        (b"ab", "row {} of a COPY is bytes"),
        (1, "row {} of a COPY is int"),
        (None, "row {} of a COPY is NoneType"),
    ],
)
async def test_what_is_no_row_is_refused(
    db: Database, makes: Callable[[list[Any]], Any], row: object, says: str
) -> None:
    for rows in ([row], [(1, "x"), row, (3, "z")]):
        with pytest.raises(CopyRowsError, match=says.format(min(len(rows), 2))):
            await db.copy_records_to("a table", makes(rows))
    assert await count(db) == 0


@pytest.mark.parametrize("makes", [list, one_by_one])
@pytest.mark.parametrize("row", [(), (1,), (1, "x", "too many")])
async def test_a_row_has_a_value_for_each_column(
    db: Database, makes: Callable[[list[Any]], Any], row: tuple[Any, ...]
) -> None:
    for rows in ([row], [row, (2, "y")], [(1, "x"), row], [(1, "x"), row, (3, "z")]):
        with pytest.raises((CopyRowsError, psycopg.DataError)):
            await db.copy_records_to("a table", makes(rows))
    with pytest.raises((CopyRowsError, psycopg.DataError)):
        await db.copy_records_to("a table", makes([(1, "x")]), columns=["n"])
    assert await count(db) == 0


async def test_a_value_that_a_column_cannot_have_is_told_with_its_row(db: Database) -> None:
    with pytest.raises((CopyRowsError, psycopg.DataError), match=r"row 2|line 2"):
        await db.copy_records_to("a table", [(1, "x"), ("y", "y")])
    with pytest.raises(ZeroDivisionError):
        await db.copy_records_to("a table", ((1, str(1 // n)) for n in (1, 0)))
    assert await count(db) == 0


async def test_the_rows_of_a_query_are_rows(db: Database) -> None:
    query = "SELECT n, 'x' AS word FROM generate_series(1, 3) n"
    assert await db.copy_records_to("a table", db.iterate(query)) == 3
    assert await db.copy_records_to("a table", await db.fetch_all(text(query))) == 3
    async with db.session() as session:
        assert await db.copy_records_to("a table", await session.execute(text(query))) == 3
    assert await count(db) == 9


@pytest.mark.parametrize("rows", [None, 5, "text", {"n": 1}])
async def test_what_are_no_rows_costs_no_connection(db: Database, rows: Any) -> None:
    async with db.connection() as connection:
        with pytest.raises(CopyRowsError, match="the rows of a COPY are an iterable"):
            await connection.copy_records_to("a table", rows)
        with pytest.raises(CopyRowsError, match="a list of names, not 'n'"):
            await connection.copy_records_to("a table", [(1,)], columns="n")
        assert await connection.copy_records_to("a table", [[1, "x"], (2, "y")]) == 2


async def test_a_copy_takes_part_in_a_transaction(db: Database) -> None:
    async with db.transaction(force_rollback=True):
        await db.copy_records_to("a table", numbers(10))
        assert await count(db) == 10
    with db.force_rollback():
        await db.copy_records_to("a table", numbers(10))
        pieces = [piece async for piece in db.copy_from_query('TABLE "a table"')]
        assert b"".join(pieces).count(b"\n") == await count(db) == 10
        await db.disconnect()

    assert await count(db) == 0


async def read_by_iterate(db: Database) -> AsyncIterator[tuple[int, str]]:
    async for row in db.iterate("SELECT n FROM generate_series(1, 1200) AS n"):
        yield row.n, "x"


async def read_by_fetch_val(db: Database) -> AsyncIterator[tuple[int, str]]:
    for n in range(1200):
        yield await db.fetch_val("SELECT CAST(:n AS integer)", {"n": n}), "x"


async def read_in_a_task(db: Database) -> AsyncIterator[tuple[int, str]]:
    yield await asyncio.create_task(db.fetch_val("SELECT 1")), "x"


async def read_in_a_transaction(db: Database) -> AsyncIterator[tuple[int, str]]:
    async with db.transaction():
        yield await db.fetch_val("SELECT 1"), "x"


async def read_raw(db: Database) -> AsyncIterator[tuple[int, str]]:
    async with db.connection() as connection:
        assert connection.raw_connection
        yield 1, "x"


async def read_in_a_session(db: Database) -> AsyncIterator[tuple[int, str]]:
    async with db.session() as session:
        yield (await session.execute(text("SELECT 1"))).scalar_one(), "x"


READERS = [
    read_by_iterate,
    read_by_fetch_val,
    read_in_a_transaction,
    read_in_a_session,
    read_raw,
]


@pytest.mark.parametrize("read", [*READERS, read_in_a_task])
async def test_what_makes_the_rows_of_a_copy_may_use_the_handle(db: Database, read: Any) -> None:
    async with asyncio.timeout(IN_TIME):
        copied = await db.copy_records_to("a table", read(db))

    assert await count(db) == copied > 0


@pytest.mark.parametrize("read", [*READERS, read_in_a_task])
async def test_what_makes_the_rows_of_a_copy_cannot_use_its_connection(
    db: Database, read: Any
) -> None:
    async with asyncio.timeout(IN_TIME):
        async with db.connection():
            if read not in (read_in_a_task, read_in_a_session):  # these have one of their own
                with pytest.raises(BusyConnectionError, match="LDB117"):
                    await db.copy_records_to("a table", read(db))
            assert await count(db) == 0
        with pytest.raises(BusyConnectionError):
            async with db.transaction():
                await db.copy_records_to("a table", read(db))
        with db.force_rollback():
            with pytest.raises(BusyConnectionError):
                await db.copy_records_to("a table", read(db))
            assert await count(db) == 0
            await db.disconnect()


async def test_a_stream_that_was_begun_before_cannot_be_read_on_by_the_rows_of_a_copy(
    db: Database,
) -> None:
    async with asyncio.timeout(IN_TIME), db.transaction():
        rows = read_by_iterate(db)
        assert (await anext(rows))[0] == 1
        with pytest.raises(BusyConnectionError):
            async with db.transaction():
                await db.copy_records_to("a table", rows)
        assert await count(db) == 0


@pytest.mark.parametrize("timeout", [None, 0.3])
async def test_a_copy_that_is_stopped_half_way_leaves_nothing(
    db: Database, timeout: float | None
) -> None:
    at_work = asyncio.Event()

    async def endless() -> AsyncIterator[tuple[int, str]]:
        yield 1, "x"
        at_work.set()
        await asyncio.Event().wait()

    task: Any = asyncio.ensure_future(db.copy_records_to("a table", endless(), timeout=timeout))
    await at_work.wait()
    if timeout is None:
        task.cancel()
    async with asyncio.timeout(IN_TIME):
        with pytest.raises(asyncio.CancelledError if timeout is None else StatementTimeout):
            await task

    assert (await count(db), db.stats().in_use) == (0, 0)


async def test_a_query_is_copied_out_as_it_is_needed(db: Database) -> None:
    await db.copy_records_to("a table", numbers(MANY))
    query = 'SELECT n, word FROM "a table" ORDER BY n'

    pieces = [piece async for piece in db.copy_from_query(query, format="csv", header=True)]

    lines = b"".join(pieces).decode().splitlines()
    assert (lines[0], lines[2], len(lines)) == ("n,word", "1,", MANY + 1)
    with pytest.raises(QueryError, match="format"):
        db.copy_from_query(query, format="json")


async def test_who_leaves_a_copy_early_gives_its_connection_back(db: Database) -> None:
    await db.copy_records_to("a table", numbers(MANY))

    for _ in range(3):
        async with aclosing(db.copy_from_query('TABLE "a table"')) as pieces:
            async for _piece in pieces:
                assert await count(db) == MANY  # on a connection of its own
                break

    assert db.stats().in_use == 0


ENDLESS = "SELECT repeat('x', 1000), generate_series(1, 100000000)"


async def test_who_leaves_an_endless_copy_hears_no_error_and_only_its_connection_is_ended(
    db: Database,
) -> None:
    async with asyncio.timeout(IN_TIME):
        async with aclosing(db.copy_from_query(ENDLESS)) as pieces:
            assert await anext(pieces)
        assert (await count(db), db.stats().terminated, db.stats().in_use) == (0, 1, 0)
        async with db.connection() as connection:
            async with aclosing(connection.copy_from_query(ENDLESS)) as pieces:
                assert await anext(pieces)
            with pytest.raises(ConnectionLost, match="left early"):
                await connection.fetch_val("SELECT 1")
        with pytest.raises(ConnectionLost) as caught:
            await leave_in_a_transaction(db)
        assert caught.value.retryable
        assert await count(db) == 0


async def leave_in_a_transaction(db: Database) -> None:
    async with db.transaction():
        await db.execute("INSERT INTO \"a table\" VALUES (1, 'x')")
        async with aclosing(db.copy_from_query(ENDLESS)) as pieces:
            assert await anext(pieces)


def read_half(url: str, query: str) -> list[str]:
    """Run a loop that ends with a COPY half-read; give what asyncio tells then."""
    told: list[str] = []
    kept = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(str(context)))
        kept.append(Database(url).copy_from_query(query))
        await anext(kept[0])

    asyncio.run(main())
    return told


@pytest.mark.parametrize("rows", [10000, 300000, 100000000])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_copy_that_is_half_read_lets_its_loop_end(
    postgres_url: str, driver: str, rows: int
) -> None:
    url = make_url(postgres_url).set(drivername=f"postgresql+{driver}")
    query = ENDLESS.replace("100000000", str(rows))

    assert not call_in_child(
        read_half, url.render_as_string(hide_password=False), query, timeout=IN_TIME
    )


@pytest.mark.parametrize(
    ("query", "look"),
    [
        (
            "SELECT set_config('its.tenant', 'A', false)",
            "SELECT current_setting('its.tenant', true)",
        ),
        (
            "SELECT pg_advisory_lock(7)",
            "SELECT 'locked' FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        ),
    ],
)
async def test_what_a_query_that_is_copied_sets_does_not_reach_the_next_user(
    db: Database, query: str, look: str
) -> None:
    async with Database(db.url, max_size=1) as alone:
        async for _ in alone.copy_from_query(query):
            pass
        assert not await alone.fetch_val(look)


async def test_in_a_transaction_the_rest_of_a_copy_is_read_before_anything_else_is_done(
    db: Database,
) -> None:
    async with db.transaction():
        await db.copy_records_to("a table", numbers(MANY))
        rows = b""
        async for piece in db.copy_from_query('TABLE "a table"'):
            rows += piece
            assert await count(db) == MANY
        await db.execute("INSERT INTO \"a table\" VALUES (-1, '')")

    assert (rows.count(b"\n"), await count(db)) == (MANY, MANY + 1)


async def test_an_error_of_the_query_that_is_copied_is_the_readers(db: Database) -> None:
    with pytest.raises(Exception, match="division by zero") as caught:
        async for _ in db.copy_from_query("SELECT 1 / (n - 5) FROM generate_series(1, 10) AS n"):
            pass

    assert type(caught.value).__name__ in ("DivisionByZeroError", "DivisionByZero")
    assert (await count(db), db.stats().in_use, db.stats().terminated) == (0, 0, 0)


async def test_execute_many_takes_an_async_iterator_all_or_none(db: Database) -> None:
    async def values(*, fails: bool) -> AsyncIterator[dict[str, Any]]:
        async for n, word in numbers(MANY):
            yield {"n": n, "word": word}
        if fails:
            raise LookupError

    insert = 'INSERT INTO "a table" VALUES (:n, :word)'
    with pytest.raises(LookupError):
        await db.execute_many(insert, values(fails=True))
    assert await count(db) == 0
    affected = await db.execute_many(insert, values(fails=False))

    assert affected in (MANY, None)
    assert await count(db) == MANY


@pytest.mark.parametrize("key", [7, "meetings/7"])
async def test_an_advisory_lock_keeps_others_out_until_its_block_ends(
    db: Database, key: int | str
) -> None:
    async def other() -> None:
        async with db.advisory_lock(key, timeout=0.2):
            pass

    async with db.advisory_lock(key):
        assert await db.fetch_val("SELECT 7") == 7
        with pytest.raises(StatementTimeout):
            await asyncio.create_task(other())
    await asyncio.create_task(other())
    with pytest.raises(TransactionAborted):
        await fail_under_a_lock(db, key)
    await asyncio.create_task(other())

    async with db.advisory_lock(key, shared=True):
        await asyncio.create_task(hold_shared(db, key))


async def fail_under_a_lock(db: Database, key: int | str) -> None:
    async with db.transaction(), db.advisory_lock(key):
        with pytest.raises(Exception, match="division by zero"):
            await db.fetch_val("SELECT 1 / 0")


@pytest.mark.parametrize("key", [None, True, 1.5, b"x", ("a", 1), 2**63, -(2**63) - 1])
async def test_what_is_no_key_of_an_advisory_lock_is_refused_before_anything_is_sent(
    db: Database, key: Any
) -> None:
    fresh = Database(db.url)

    with pytest.raises(InvalidSettingError, match=r"a text or a number of 64 bits, not \w+"):
        async with fresh.advisory_lock(key):
            pass
    assert fresh.stats().opened == 0
    async with db.connection() as connection:
        with pytest.raises(InvalidSettingError):
            async with connection.advisory_lock(key):
                pass
    for fits in (2**63 - 1, -(2**63), ""):
        async with db.advisory_lock(fits):
            pass


END_LOCKS = """SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory'
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


async def test_a_lock_that_was_lost_is_told_when_its_block_ends(db: Database) -> None:
    async def lose_it(error: Exception | None) -> None:
        async with db.advisory_lock("nightly"):
            await asyncio.create_task(db.fetch_all(END_LOCKS))
            if error is not None:
                raise error

    with pytest.raises(ConnectionLost) as caught:
        await lose_it(None)
    with pytest.raises(LookupError):
        await lose_it(LookupError())

    assert not caught.value.retryable
    async with db.advisory_lock("nightly", timeout=5):
        pass


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("undone", [False, True])
async def test_inside_a_transaction_an_advisory_lock_is_held_until_that_ends(
    db: Database, *, undone: bool, shared: bool
) -> None:
    async with Database(db.url) as others:

        async def other(timeout: float) -> Any:
            async with others.advisory_lock("counter", timeout=timeout):
                return await count(others)

        async with db.transaction(force_rollback=undone):
            async with db.advisory_lock("counter", shared=shared):
                await db.execute("INSERT INTO \"a table\" VALUES (1, 'x')")
            with pytest.raises(StatementTimeout):
                await other(0.2)
        assert await other(5) == (0 if undone else 1)

        async with db.advisory_lock("counter"):
            async with db.transaction():
                pass
            with pytest.raises(StatementTimeout):
                await other(0.2)
        await other(5)


async def test_under_force_rollback_an_advisory_lock_ends_with_its_block(db: Database) -> None:
    async with Database(db.url) as others:
        with db.force_rollback():
            async with db.transaction():
                async with db.advisory_lock("counter"):
                    with pytest.raises(StatementTimeout):
                        async with others.advisory_lock("counter", timeout=0.2):
                            pass
                async with others.advisory_lock("counter", timeout=5):
                    pass
            await db.disconnect()


async def hold_shared(db: Database, key: int | str) -> None:
    async with db.advisory_lock(key, shared=True, timeout=5):
        pass


async def until_it_is_listened(db: Database, listening: Any) -> Any:
    """Give the task of the first that is heard, when it is listened."""
    task = asyncio.ensure_future(anext(listening))
    query = f"SELECT count(*) {LISTENERS}"
    async with asyncio.timeout(IN_TIME):
        while not await db.fetch_val(query):  # noqa: ASYNC110 (the server knows it)
            await asyncio.sleep(0.01)
    return task


async def test_what_is_notified_is_heard(db: Database) -> None:
    async with aclosing(db.listen("A channel")) as listening:
        first = await until_it_is_listened(db, listening)
        async with db.transaction():
            await db.execute("SELECT pg_notify('A channel', 'one')")
        sender = await db.fetch_val("SELECT pg_backend_pid()")
        await db.execute('NOTIFY "A channel"')

        assert await first == Notification("A channel", "one", sender)
        assert await anext(listening) == Notification("A channel", "", sender)


async def test_a_connection_that_was_lost_is_a_gap(postgres_url: str, db: Database) -> None:
    with Wire(db.url) as wire:
        far = Database(wire.url, max_size=1)
        async with aclosing(far.listen("news")) as listening:
            task = await until_it_is_listened(db, listening)
            await db.execute(f"SELECT pg_terminate_backend(pid) {LISTENERS}")
            async with asyncio.timeout(IN_TIME):
                gap = await task
            assert isinstance(gap, Gap)
            assert gap.reason
            await db.execute("SELECT pg_notify('news', 'later')")
            async with asyncio.timeout(IN_TIME):
                later = await anext(listening)
            assert isinstance(later, Notification)
            assert later.payload == "later"


async def test_who_stops_listening_leaves_no_connection(db: Database) -> None:
    listening = db.listen("news")
    task = await until_it_is_listened(db, listening)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await listening.aclose()

    query = f"SELECT count(*) {LISTENERS}"
    async with asyncio.timeout(IN_TIME):
        while await db.fetch_val(query):  # noqa: ASYNC110 (the server knows it)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("runs", ["asyncio.run(main())", "import uvloop; uvloop.run(main())"])
def test_a_script_that_ends_while_it_listens_ends_silently(
    postgres_url: str, driver: str, runs: str
) -> None:
    database = Database(make_url(postgres_url).set(drivername=f"postgresql+{driver}"))

    assert run(database, KEPT_LISTENING + runs) == (0, [])


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("name", KEPT_BLOCKS)
def test_a_loop_that_ends_kept_blocks_ends_silently(
    postgres_url: str, driver: str, loop: str, name: str
) -> None:
    database = Database(make_url(postgres_url).set(drivername=f"postgresql+{driver}"))
    ends = f"\nimport {loop}; {loop}.run(main())\nassert db.stats().in_use == 0"

    assert run(database, KEPT + KEPT_BLOCKS[name] + ends) == (0, [])


async def copy_one(url: str) -> Any:
    async with Database(url) as db:
        await db.copy_records_to("a table", [(1, "child")])
        return await db.fetch_val('SELECT word FROM "a table"')


def test_it_works_in_a_forked_child(postgres_url: str) -> None:
    async def make_table() -> None:
        async with Database(postgres_url) as db:
            await db.execute('CREATE TABLE "a table" (n integer, word text)')

    asyncio.run(make_table())
    assert call_in_child(copy_one, postgres_url) == "child"


async def test_what_a_driver_cannot_do_is_told(tmp_path: Any, postgres_url: str) -> None:
    sqlite = Database(f"sqlite:///{tmp_path}/a.db")
    bouncer = Database(postgres_url, pgbouncer="transaction")

    with pytest.raises(UnsupportedError, match=r"copy_records_to .* aiosqlite"):
        await sqlite.copy_records_to("t", [(1,)])
    with pytest.raises(UnsupportedError, match="copy_from_query"):
        async for _ in sqlite.copy_from_query("SELECT 1"):
            pass
    for db in (sqlite, bouncer):
        with pytest.raises(UnsupportedError, match="advisory_lock"):
            async with db.advisory_lock(1):
                pass
        with pytest.raises(UnsupportedError, match="listen"):
            db.listen("news")
    with bouncer.force_rollback(), pytest.raises(NotUndoableError, match="LISTEN"):
        bouncer.listen("news")
