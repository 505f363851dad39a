"""Loops, and ways to run them, beside asyncio.run and uvloop: Runner, eager tasks, rloop."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database

if TYPE_CHECKING:
    from collections.abc import Callable

    Factory = Callable[[], asyncio.AbstractEventLoop]

TASKS = 20
_SLOW = {
    "postgresql": "SELECT pg_sleep(30)",
    "sqlite": "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 100000000) "
    "SELECT count(*) FROM n",
}
things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))


def eager_loop() -> asyncio.AbstractEventLoop:
    eager = getattr(asyncio, "eager_task_factory", None)
    if eager is None:
        pytest.skip("CPython 3.12 has them")

    def factory(*coroutine: Any, eager_start: object = None, **given: Any) -> Any:
        del eager_start  # uvloop hands it on, and CPython 3.13.0's factory takes none
        return eager(*coroutine, **given)

    loop = asyncio.new_event_loop()
    loop.set_task_factory(factory)
    return loop


def rloops_loop() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = pytest.importorskip("rloop").new_event_loop()
    return loop


# rloop leaves its own pair of sockets to the garbage collector
unclosed = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(
    params=[asyncio.new_event_loop, eager_loop, pytest.param(rloops_loop, marks=unclosed)]
)
def factory(request: pytest.FixtureRequest) -> Factory:
    made: Factory = request.param
    made().close()  # or a skip
    return made


async def do_everything(database: Database, first: int) -> None:
    await database.execute("INSERT INTO things (id) VALUES (:id)", {"id": first})
    async with database.transaction():
        await database.execute(things.insert().values(id=first + 1))
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with database.transaction():
                await database.execute("DELETE FROM things")
                raise ZeroDivisionError
    async with database.session() as session, session.begin():
        await session.execute(things.insert().values(id=first + 2))
    query = "SELECT id FROM things WHERE id >= :first AND id < :last ORDER BY id"
    values = {"first": first, "last": first + 10}
    rows = [row.id async for row in database.iterate(query, values)]
    assert rows == [first, first + 1, first + 2]


def test_everything_works_in_it(database: Database, factory: Factory) -> None:
    async def create() -> None:
        await database.execute("CREATE TABLE things (id int PRIMARY KEY)")

    async def many(first: int) -> None:
        async with asyncio.TaskGroup() as group:
            for task in range(TASKS):
                group.create_task(do_everything(database, first + task * 10))

    async def count() -> Any:
        return await database.fetch_val("SELECT count(*) FROM things")

    for first in (0, 1000):
        with asyncio.Runner(loop_factory=factory) as runner:
            if first == 0:
                runner.run(create())
            runner.run(many(first))
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(count()) == 2 * TASKS * 3


def test_tasks_that_are_begun_in_a_transaction_are_in_it_and_others_are_not(
    database: Database, factory: Factory
) -> None:
    async def count() -> int:
        return int(await database.fetch_val("SELECT count(*) FROM things"))

    async def main() -> list[int]:
        await database.execute("CREATE TABLE things (id int PRIMARY KEY)")
        begun = asyncio.Event()

        async def outside() -> int:
            await begun.wait()
            return await count()

        asking = asyncio.create_task(outside())
        async with database.transaction():
            await database.execute("INSERT INTO things (id) VALUES (1)")
            begun.set()
            found = await asyncio.gather(*(asyncio.create_task(count()) for _ in range(5)))
            return [*found, await asking]

    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(main()) == [1] * 5 + [0]


def test_a_cancelled_statement_keeps_its_connection(database: Database, factory: Factory) -> None:
    if factory is rloops_loop and database.url.driver == "asyncpg":
        # rloop's transports take no other protocol, as asyncpg needs it to ask for TLS
        database = Database(database.url.update_query_dict({"sslmode": "disable"}), max_size=1)

    async def main() -> None:
        assert await database.fetch_val("SELECT 1") == 1
        asking = asyncio.ensure_future(database.fetch_val(_SLOW[database.url.dialect]))
        await asyncio.wait([asking], timeout=0.3)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await database.fetch_val("SELECT 2") == 2
        assert (database.stats().opened, database.stats().terminated) == (1, 0)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def test_a_runner_that_runs_twice_has_one_loop_and_one_connection(database: Database) -> None:
    with asyncio.Runner() as runner:
        for _ in range(3):
            assert runner.run(database.fetch_val("SELECT 1")) == 1
    assert database.stats().opened == 1


class LoopThatTakesNumbers(asyncio.SelectorEventLoop):
    """As rloop: a socket is its descriptor."""

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        assert isinstance(fd, int)
        super().add_reader(fd, callback, *args)

    def remove_reader(self, fd: Any) -> bool:
        assert isinstance(fd, int)
        return super().remove_reader(fd)


@pytest.mark.skipif(sys.platform == "win32", reason="there connections do not move")
def test_a_loop_may_know_sockets_by_their_number_only(database: Database) -> None:
    with asyncio.Runner(loop_factory=LoopThatTakesNumbers) as runner:
        assert runner.run(database.fetch_val("SELECT 7")) == 7
