"""What every driver has to do: a suite for authors of drivers, run by pytest.

::

    # test_my_driver.py
    import pytest
    from loopsafe_db.testing.conformance import DriverConformance

    class TestMyDriver(DriverConformance):
        @pytest.fixture
        def url(self):
            return "mysql+mydriver://user:password@host/database"

The user must be allowed to create tables. The tests run loops of their own, and so need no plugin for async tests.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import pickle
import secrets
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from loopsafe_db.database import Database
from loopsafe_db.drivers.discovery import find_driver
from loopsafe_db.errors import (
    AuthenticationError,
    ConnectError,
    ForeignLoopError,
    LoopsafeError,
    QueryError,
    StatementTimeout,
)
from loopsafe_db.options import PoolLimits, Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ["DriverConformance"]

SLOW = {
    "postgresql": "SELECT pg_sleep(3)",
    "mysql": "SELECT SLEEP(3)",
    "mariadb": "SELECT SLEEP(3)",
    "sqlite": (
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000000)"
        " SELECT count(*) FROM c"
    ),
}
START = "import asyncio, os, sys\nfrom loopsafe_db import Database\ndb = Database(os.environ['CONFORMANCE_URL'])\n"
SCRIPTS = {
    "one run": "asyncio.run(db.fetch_val('SELECT 1'))",
    "two runs": "asyncio.run(db.fetch_val('SELECT 1')); asyncio.run(db.fetch_val('SELECT 1'))",
    "a bare loop": (
        "loop = asyncio.new_event_loop(); loop.run_until_complete(db.fetch_val('SELECT 1')); loop.close()"
    ),
    "a half-read stream": (
        "async def main():\n    async for _ in db.iterate('SELECT 1 UNION SELECT 2'): break\nasyncio.run(main())"
    ),
    "a cancelled query": (
        "async def main():\n    asyncio.create_task(db.fetch_val('SELECT 1'))\n    await asyncio.sleep(0)\n"
        "asyncio.run(main())"
    ),
    "a thread": (
        "import threading; t = threading.Thread(target=lambda: asyncio.run(db.fetch_val('SELECT 1')))\n"
        "t.start(); t.join()"
    ),
}
# From CPython 3.14 on a child that was forked in a coroutine does not leave it by `sys.exit`, but runs on in its
# parent's loop for ever: bare asyncio does so, too.
EXIT_IN_A_COROUTINE = "sys.exit(7)" if sys.version_info < (3, 14) else "os._exit(7)"
if hasattr(os, "fork"):
    SCRIPTS["a child that exits in a coroutine"] = (
        "async def main():\n    await db.fetch_val('SELECT 1')\n    pid = os.fork()\n"
        f"    if not pid: {EXIT_IN_A_COROUTINE}\n"
        "    wait = lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "    assert await asyncio.to_thread(wait) == 7\n    assert await db.fetch_val('SELECT 2') == 2\n"
        "asyncio.run(main())"
    )
needs_fork: pytest.MarkDecorator = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="this system has no fork"
)


class DriverConformance:
    """The suite. Subclass it, and give the fixture ``url``.

    Attributes:
        slow_query: Takes some seconds; needed for another dialect than PostgreSQL's, MySQL's or SQLite's.
        prelude: Python code that each process runs first, where the driver has no entry point.
    """

    slow_query = ""
    prelude = ""

    @pytest.fixture
    def url(self) -> Any:
        """Give the URL of a database in which tables may be made."""
        raise NotImplementedError("a subclass of DriverConformance has a fixture `url`")

    @pytest.fixture
    def database(self, url: Any) -> Iterator[Database]:
        """Give a handle; its connections are closed after the test."""
        database = Database(url)
        yield database
        asyncio.run(database.disconnect())

    @pytest.fixture
    def other(self, database: Database) -> Iterator[Database]:
        """Give a handle that sees only what is committed."""
        other = Database(database.url)
        yield other
        asyncio.run(other.disconnect())

    @pytest.fixture
    def things(self, database: Database) -> Iterator[sa.Table]:
        """Give a table that is empty, and dropped after the test."""
        table = sa.Table(
            f"things_{secrets.token_hex(4)}",
            sa.MetaData(),
            sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("name", sa.String(100)),
        )
        asyncio.run(database.execute(sa.schema.CreateTable(table)))
        yield table
        asyncio.run(database.execute(sa.schema.DropTable(table)))

    # -- queries and rows

    def test_a_row_is_mapping_tuple_and_has_attributes(self, database: Database) -> None:
        row = asyncio.run(database.fetch_one("SELECT 1 AS a, 'x' AS b"))
        assert row is not None
        assert tuple(row) == (row[0], row[1]) == (row["a"], row["b"]) == (row.a, row.b) == (1, "x")
        assert dict(row) == {"a": 1, "b": "x"}
        assert pickle.loads(pickle.dumps(row)) == row

    def test_parameters_have_names_and_may_repeat(self, database: Database) -> None:
        query = "SELECT :x + 0 AS x, :y + 0 AS y, :x + 0 AS again"
        row = asyncio.run(database.fetch_one(query, {"x": 2, "y": 3}))
        assert row is not None
        assert tuple(row) == (2, 3, 2)
        with pytest.raises(QueryError):
            asyncio.run(database.fetch_one(query, {"x": 2}))

    def test_signs_that_mean_something_to_drivers_are_text(
        self, database: Database, things: sa.Table
    ) -> None:
        nasty = "100% %s %(x)s $1 ? :x 'quoted' \u20ac"

        async def main() -> None:
            insert = f"INSERT INTO {things.name} (id, name) VALUES (:id, :name)"
            await database.execute(insert, {"id": 1, "name": nasty})
            assert await database.fetch_val(f"SELECT name FROM {things.name}") == nasty
            for query, values in (
                ("SELECT '10% %s' AS a", None),
                ("SELECT '10% %s' AS a, :x + 0 AS b", {"x": 1}),
                ("SELECT '10% %s' AS a, ':x' AS b, /* it's :x */ :x + 0 AS c -- :x", {"x": 1}),
            ):
                assert await database.fetch_val(query, values) == "10% %s"

        asyncio.run(main())

    def test_no_row_is_none_and_no_rows_are_none_of_them(
        self, database: Database, things: sa.Table
    ) -> None:
        query = f"SELECT id FROM {things.name}"
        assert asyncio.run(database.fetch_one(query)) is None
        assert asyncio.run(database.fetch_val(query)) is None
        assert asyncio.run(database.fetch_all(query)) == []

    def test_execute_gives_the_rows_affected_or_a_key(
        self, database: Database, things: sa.Table
    ) -> None:
        async def main() -> None:
            insert = f"INSERT INTO {things.name} (id, name) VALUES (:id, 'n')"
            assert await database.execute(insert, {"id": 1}) == 1
            assert await database.execute(things.insert().values(id=2)) == 2
            update = f"UPDATE {things.name} SET name = :name"
            assert await database.execute(update, {"name": "m"}) == 2
            assert await database.execute(things.update().values(name="o")) == 2
            assert await database.execute(f"DELETE FROM {things.name} WHERE id = 3") == 0
            assert await database.execute(f"SELECT id FROM {things.name} WHERE id = 2") == 2
            assert await database.execute(f"SELECT id FROM {things.name} WHERE id = 3") is None

        asyncio.run(main())

    def test_execute_many_is_all_or_none(self, database: Database, things: sa.Table) -> None:
        insert = f"INSERT INTO {things.name} (id, name) VALUES (:id, :name)"

        async def main() -> None:
            for query in (insert, things.insert()):
                with pytest.raises(Exception):  # noqa: B017, PT011 (the driver's own)
                    await database.execute_many(
                        query, [{"id": number % 3, "name": "x"} for number in range(4)]
                    )
                assert await count(database, things) == 0
            assert await database.execute_many(insert, []) == 0
            rows = [{"id": number, "name": "x"} for number in range(700)]
            assert await database.execute_many(insert, rows) in (700, None)
            assert await count(database, things) == 700

        asyncio.run(main())

    def test_execute_many_in_a_transaction_undoes_only_itself(
        self, database: Database, things: sa.Table
    ) -> None:
        insert = f"INSERT INTO {things.name} (id, name) VALUES (:id, 'x')"

        async def main() -> None:
            async with database.transaction():
                await database.execute(insert, {"id": 1})
                with pytest.raises(Exception):  # noqa: B017, PT011 (the driver's own)
                    async with database.transaction():
                        await database.execute_many(insert, [{"id": 2}, {"id": 2}])
            assert await count(database, things) == 1

        asyncio.run(main())

    def test_rows_are_streamed(self, database: Database, things: sa.Table) -> None:
        async def main() -> None:
            rows = [{"id": number, "name": "x"} for number in range(1200)]
            await database.execute_many(things.insert(), rows)
            text = f"SELECT id FROM {things.name} ORDER BY id"
            for query in (text, things.select().order_by(things.c.id)):
                assert [row.id async for row in database.iterate(query)] == [*range(1200)]
            async for row in database.iterate(text):
                if row.id == 7:
                    break
            assert await count(database, things) == 1200

        asyncio.run(main())

    def test_other_statements_do_not_disturb_a_stream_in_their_transaction(
        self, database: Database, things: sa.Table
    ) -> None:
        async def main() -> None:
            rows = [{"id": number, "name": "x"} for number in range(1200)]
            await database.execute_many(things.insert(), rows)
            text = f"SELECT id FROM {things.name} ORDER BY id"
            for query in (text, things.select().order_by(things.c.id)):
                async with database.transaction():
                    seen = []
                    async for row in database.iterate(query):
                        seen.append(row.id)
                        if row.id in (3, 600):
                            assert await database.fetch_val("SELECT 5") == 5
                assert seen == [*range(1200)]

        asyncio.run(main())

    def test_the_servers_errors_are_the_drivers_own(
        self, database: Database, things: sa.Table
    ) -> None:
        async def main() -> set[type[BaseException]]:
            kinds: set[type[BaseException]] = set()
            await database.execute(things.insert().values(id=1))
            for query in (
                f"INSERT INTO {things.name} (id) VALUES (1)",
                things.insert().values(id=1),
            ):
                with pytest.raises(Exception) as caught:  # noqa: PT011
                    await database.execute(query)
                kinds.add(caught.type)
                assert await database.fetch_val("SELECT 1") == 1
            return kinds

        (kind,) = asyncio.run(main())
        assert not issubclass(kind, (sa.exc.SQLAlchemyError, LoopsafeError))

    # -- transactions

    def test_what_is_done_outside_a_transaction_is_committed(
        self, database: Database, other: Database, things: sa.Table
    ) -> None:
        async def main() -> None:
            await database.execute(f"INSERT INTO {things.name} (id) VALUES (1)")
            await database.execute(things.insert().values(id=2))
            await database.execute(f"INSERT INTO {things.name} (id) VALUES (3)")
            await database.execute_many(things.insert(), [{"id": 4}, {"id": 5}])
            assert await count(other, things) == 5
            async with database.connection() as connection:
                await connection.execute(things.insert().values(id=6))
                assert await count(other, things) == 6

        asyncio.run(main())

    def test_a_transaction_is_committed_or_rolled_back_whole(
        self, database: Database, other: Database, things: sa.Table
    ) -> None:
        async def main() -> None:
            async with database.transaction():
                await database.execute(f"INSERT INTO {things.name} (id) VALUES (1)")
                await database.execute(things.insert().values(id=2))
                assert await count(database, things) == 2
                assert await count(other, things) == 0
            assert await count(other, things) == 2
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async with database.transaction():
                    await database.execute(things.delete())
                    await database.execute(f"INSERT INTO {things.name} (id) VALUES (3)")
                    raise ZeroDivisionError
            assert await count(database, things) == 2

        asyncio.run(main())

    def test_an_inner_transaction_is_undone_alone(
        self, database: Database, things: sa.Table
    ) -> None:
        async def main() -> None:
            async with database.transaction():
                await database.execute(f"INSERT INTO {things.name} (id) VALUES (1)")
                text = f"INSERT INTO {things.name} (id) VALUES (2)"
                for query in (text, things.insert().values(id=2)):
                    with pytest.raises(ZeroDivisionError):  # noqa: PT012
                        async with database.transaction():
                            await database.execute(query)
                            raise ZeroDivisionError
                async with database.transaction():
                    await database.execute(f"INSERT INTO {things.name} (id) VALUES (3)")
            assert await ids(database, things) == [1, 3]

        asyncio.run(main())

    def test_an_error_leaves_the_outer_transaction_as_it_was(
        self, database: Database, things: sa.Table
    ) -> None:
        async def main() -> None:
            async with database.transaction():
                await database.execute(things.insert().values(id=1))
                for query in (
                    f"INSERT INTO {things.name} (id) VALUES (1)",
                    things.insert().values(id=1),
                ):
                    with pytest.raises(Exception):  # noqa: B017, PT011 (the driver's own)
                        async with database.transaction():
                            await database.execute(query)
                await database.execute(things.insert().values(id=2))
            assert await ids(database, things) == [1, 2]

        asyncio.run(main())

    def test_a_transaction_belongs_to_its_task_and_those_that_it_starts(
        self, database: Database, things: sa.Table
    ) -> None:
        async def main() -> None:
            async with database.transaction() as transaction:
                connection = transaction.connection
                await database.execute(things.insert().values(id=1))
                assert await asyncio.create_task(count(database, things)) == 1
                handed = connection.fetch_val(f"SELECT count(*) FROM {things.name}")
                assert await asyncio.create_task(handed) == 1
                beside = asyncio.create_task(count(database, things), context=contextvars.Context())
                assert await beside == 0

        asyncio.run(main())

    def test_a_transaction_that_nobody_ended_is_undone(
        self, database: Database, things: sa.Table
    ) -> None:
        async def main() -> None:
            async with database.connection() as connection:
                forgotten = await connection.transaction()
                await connection.execute(f"INSERT INTO {things.name} (id) VALUES (1)")
            del forgotten  # there was a name for it until then: else it would be warned of
            async with database.transaction():
                await database.execute(f"INSERT INTO {things.name} (id) VALUES (2)")
            assert await ids(database, things) == [2]

        asyncio.run(main())

    # -- SQLAlchemy's engine on the same connections

    def test_a_session_commits_or_rolls_back(
        self, database: Database, other: Database, things: sa.Table
    ) -> None:
        async def main() -> None:
            async with AsyncSession(database.engine) as session:
                await session.execute(things.insert().values(id=1))
                await session.rollback()
                await session.execute(things.insert().values(id=2))
                assert await count(other, things) == 0
                await session.commit()
            async with AsyncSession(database.engine) as session:
                await session.execute(things.insert().values(id=3))
            await database.execute(f"INSERT INTO {things.name} (id) VALUES (4)")
            assert await ids(other, things) == [2, 4]

        asyncio.run(main())

    def test_an_engines_block_is_all_or_none(
        self, database: Database, other: Database, things: sa.Table
    ) -> None:
        async def main() -> None:
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async with database.engine.begin() as connection:
                    await connection.execute(things.insert().values(id=1))
                    raise ZeroDivisionError
            async with database.engine.begin() as connection:
                await connection.execute(things.insert().values(id=2))
            assert await ids(other, things) == [2]

        asyncio.run(main())

    # -- loops, threads, forks

    def test_one_handle_works_in_loop_after_loop(self, database: Database) -> None:
        asyncio.run(database.fetch_val("SELECT 1"))
        gc.collect()
        before = descriptors()
        for number in range(20):
            assert asyncio.run(echo(database, number)) == number
        gc.collect()
        assert descriptors() == before
        assert database.stats().in_use == 0
        assert database.stats().idle == (0 if is_loop_bound(database) else 1)

    def test_a_loop_that_is_only_closed_leaves_nothing(self, database: Database) -> None:
        before = None
        for number in range(5):
            loop = bare_loop(database)
            assert loop.run_until_complete(echo(database, number)) == number
            loop.close()
            gc.collect()
            before = descriptors() if before is None else before
        assert descriptors() == before

    def test_threads_with_loops_get_their_own_answers(self, database: Database) -> None:
        async def many(first: int) -> list[int]:
            return await asyncio.gather(*(echo(database, first + offset) for offset in range(3)))

        def jobs(thread: int) -> bool:
            firsts = [thread * 1000 + turn * 10 for turn in range(8)]
            return all(asyncio.run(many(f)) == [f, f + 1, f + 2] for f in firsts)

        before = threading.active_count()
        with ThreadPoolExecutor(4) as executor:
            assert all(executor.map(jobs, range(4)))
        assert database.stats().in_use == 0
        assert threading.active_count() <= before + database.stats().idle + 1  # the reaper

    def test_a_connection_kept_for_another_loop_is_refused(self, database: Database) -> None:
        kept: list[Any] = []

        async def keep() -> None:
            async with database.connection() as connection:
                kept.append(connection)

        asyncio.run(keep())
        with pytest.raises(ForeignLoopError):
            asyncio.run(kept[0].fetch_val("SELECT 1"))

    @needs_fork
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_a_child_queries_and_its_parent_is_not_disturbed(self, database: Database) -> None:
        if find_driver(database.url.drivername).traits.closes_before_fork:
            pytest.skip("a connection that is in use at a fork is in the way of the child's own")

        async def main() -> int:
            async with database.connection() as held:
                assert await held.fetch_val("SELECT 1") == 1
                await echo(database, 0)
                child = os.fork()
                if child == 0:
                    leave(lambda: ask(database))
                for number in range(100):
                    assert await echo(database, number) == number
                    assert await held.fetch_val("SELECT :n + 0", {"n": number}) == number
                code = await asyncio.to_thread(exit_code, child)
                async with asyncio.timeout(5):
                    assert await held.fetch_val("SELECT 5") == 5
                return code

        assert asyncio.run(main()) == 0

    @needs_fork
    def test_a_child_between_two_loops_queries(self, database: Database) -> None:
        with asyncio.Runner() as runner:
            assert runner.run(echo(database, 1)) == 1
            child = os.fork()
            if child == 0:
                leave(lambda: ask(database))
            for number in range(20):
                assert runner.run(echo(database, number)) == number
            assert exit_code(child) == 0
            assert runner.run(echo(database, 2)) == 2

    @needs_fork
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_a_connection_in_a_child_is_refused(self, database: Database) -> None:
        async def main() -> None:
            async with database.connection() as held, AsyncSession(database.engine) as session:
                await session.execute(sa.text("SELECT 1"))
                child = os.fork()
                if child == 0:
                    leave(lambda: refused(held.fetch_val("SELECT 1"), session))
                assert await asyncio.to_thread(exit_code, child) == 0
                assert await held.fetch_val("SELECT 1") == 1
                assert (await session.execute(sa.text("SELECT 2"))).scalar_one() == 2

        asyncio.run(main())

    # -- all of it undone

    def test_what_fails_under_force_rollback_is_undone_alone_and_the_rest_in_the_end(
        self, database: Database, things: sa.Table
    ) -> None:
        async def main() -> None:
            async with Database(database.url, force_rollback=True) as undone:
                await undone.execute(things.insert().values(id=1))
                with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
                    await undone.execute(f"INSERT INTO {things.name} (id) VALUES (1)")
                async with undone.transaction():
                    await undone.execute(things.insert().values(id=2))
                assert await ids(undone, things) == [1, 2]
            assert await ids(database, things) == []

        asyncio.run(main())

    def test_what_a_user_makes_for_his_session_is_gone_for_the_next(
        self, database: Database, things: sa.Table
    ) -> None:
        small = Database(database.url, pool=PoolLimits(1))

        async def main() -> None:
            async with small.connection() as connection:
                await connection.execute("CREATE TEMPORARY TABLE mine (id INTEGER)")
                await connection.execute("INSERT INTO mine VALUES (1)")
            with pytest.raises(Exception, match="mine"):
                await small.fetch_all("SELECT id FROM mine")
            assert await ids(small, things) == []

        asyncio.run(main())
        asyncio.run(small.disconnect())

    def test_the_drivers_connection_is_refused_after_the_block_that_gave_it(
        self, database: Database
    ) -> None:
        async def main() -> None:
            async with database.connection() as connection:
                raw = connection.raw_connection
            with pytest.raises(Exception, match=r"released|closed"):
                use(raw)

        asyncio.run(main())

    # -- what goes wrong

    def test_cancelled_queries_leave_a_usable_pool(self, database: Database) -> None:
        small = Database(database.url, pool=PoolLimits(2))
        slow = self.slow_query or SLOW[database.url.get_backend_name()]

        async def main() -> None:
            tasks = [asyncio.create_task(small.fetch_val(slow)) for _ in range(4)]
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in done] == [asyncio.CancelledError] * 4
            await asyncio.gather(*(quick(small, number) for number in range(20)))
            assert await asyncio.gather(*(echo(small, n) for n in range(9))) == [*range(9)]
            assert small.stats().in_use == 0

        asyncio.run(within(20, main()))
        asyncio.run(small.disconnect())

    def test_a_cancelled_transaction_is_undone(self, database: Database, things: sa.Table) -> None:
        slow = self.slow_query or SLOW[database.url.get_backend_name()]

        async def job(query: Any) -> None:
            async with database.transaction():
                await database.execute(things.insert().values(id=1))
                await database.fetch_all(query)

        async def main() -> None:
            for query in (slow, sa.text(slow)):
                task = asyncio.create_task(job(query))
                await asyncio.sleep(0.2)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await ids(database, things) == []

        asyncio.run(within(20, main()))

    def test_a_write_that_is_given_up_in_a_transaction_leaves_all_of_it_or_nothing(
        self, database: Database, things: sa.Table
    ) -> None:
        slow = self.slow_query or SLOW[database.url.get_backend_name()]
        write = f"INSERT INTO {things.name} (id) SELECT 2 FROM ({slow}) AS slow"

        async def job() -> None:
            async with database.transaction():
                await database.execute(things.insert().values(id=1))
                with pytest.raises(StatementTimeout):
                    await database.execute(write, timeout=0.1)
                await database.execute(f"INSERT INTO {things.name} (id) VALUES (3)")

        async def main() -> None:
            with suppress(Exception):  # most servers, or their drivers, refuse to go on
                await job()
            assert await ids(database, things) in ([], [1, 3])

        asyncio.run(within(20, main()))

    def test_a_statement_that_takes_too_long_is_given_up(self, database: Database) -> None:
        small = Database(database.url, pool=PoolLimits(1))
        slow = self.slow_query or SLOW[database.url.get_backend_name()]

        async def main() -> None:
            for query in (slow, sa.text(slow)):
                async with asyncio.timeout(2.5):
                    with pytest.raises(StatementTimeout):
                        await small.fetch_val(query, timeout=0.1)
                assert await echo(small, 1) == 1

        asyncio.run(main())
        asyncio.run(small.disconnect())

    def test_a_wrong_password_is_named_so(self, database: Database) -> None:
        if database.url.host is None:
            pytest.skip("this database asks for no password")
        wrong = Database(database.url.set(password="wrong"))
        with pytest.raises(AuthenticationError) as caught:
            asyncio.run(wrong.fetch_val("SELECT 1"))
        assert str(database.url.password) not in str(caught.value)

    def test_a_server_that_is_not_there_is_named_so(self, database: Database) -> None:
        if database.url.host is None:
            pytest.skip("this database has no server")
        url = database.url.set(host="127.0.0.1", port=1)
        wrong = Database(url, timeouts=Timeouts(connect=0.5))
        with pytest.raises(ConnectError) as caught:
            asyncio.run(wrong.fetch_val("SELECT 1"))
        assert not isinstance(caught.value, AuthenticationError)

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_a_script_that_forgets_everything_ends_silently(
        self, database: Database, name: str
    ) -> None:
        done = subprocess.run(
            [
                sys.executable,
                "-X",
                "dev",
                # No warning is an error: CPython 3.12 and later swallow what they say of a fork then.
                "-W",
                "always",
                "-W",  # a driver may have threads
                "ignore:This process:DeprecationWarning",
                "-c",
                f"{self.prelude}\n{START}{SCRIPTS[name]}",
            ],
            env={
                **os.environ,
                "CONFORMANCE_URL": database.url.render_as_string(hide_password=False),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        said = [line for line in done.stderr.splitlines() if not line.startswith("Executing ")]
        assert (done.returncode, said) == (0, [])


async def echo(database: Database, number: int) -> int:
    """Have the server say a number."""
    return int(await database.fetch_val("SELECT :n + 0", {"n": number}))


async def count(database: Database, table: sa.Table) -> int:
    """Count the rows of a table."""
    return int(await database.fetch_val(f"SELECT count(*) FROM {table.name}"))


def use(raw: Any) -> None:
    """Begin to ask something by a driver's own connection."""
    for name in ("execute", "cursor", "query"):
        if hasattr(raw, name):
            getattr(raw, name)(*([] if name == "cursor" else ["SELECT 1"]))


async def ids(database: Database, table: sa.Table) -> list[int]:
    """List what is in a table."""
    return [row.id for row in await database.fetch_all(f"SELECT id FROM {table.name} ORDER BY id")]


async def quick(database: Database, number: int) -> None:
    """Ask for something, and wait for it no longer than a moment."""
    task = asyncio.create_task(echo(database, number))
    for _ in range(number % 7):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Fail if something takes longer."""
    async with asyncio.timeout(seconds):
        await work


def is_loop_bound(database: Database) -> bool:
    """Tell whether the connections of a handle end with their loop."""
    return find_driver(database.url.drivername).traits.loop_bound


def bare_loop(database: Database) -> asyncio.AbstractEventLoop:
    """Make a loop; not uvloop's where connections cannot leave it: that warns of them as it is closed."""
    return asyncio.SelectorEventLoop() if is_loop_bound(database) else asyncio.new_event_loop()


def descriptors() -> int:
    """Count the open files of this process, where the system tells."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def ask(database: Database) -> None:
    """Query in loops of one's own."""
    for number in range(5):
        assert asyncio.run(echo(database, number)) == number


def refused(query: Coroutine[Any, Any, Any], session: AsyncSession) -> None:
    """Use in a child what is its parent's."""
    with pytest.raises(ForeignLoopError, match=f"process {os.getppid()}"):
        asyncio.run(query)
    with pytest.raises((ForeignLoopError, sa.exc.StatementError), match="LDB101"):
        asyncio.run(session.execute(sa.text("SELECT 1")))


def leave(action: Callable[[], object]) -> None:
    """End a forked child; a failure is exit code 9, not a second run of the tests."""
    signal.alarm(20)
    try:
        action()
    except BaseException:  # noqa: BLE001 (it has to end here)
        sys.excepthook(*sys.exc_info())
        os._exit(9)
    os._exit(0)


def exit_code(child: int) -> int:
    """Wait for a child."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
