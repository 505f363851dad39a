"""What a task has left is taken back, in any thread; what tasks hand on to each other meanwhile is not."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db import Database, register_driver
from loopsafe_db.drivers.aiosqlite import AiosqliteDriver
from loopsafe_db.drivers.asyncpg import AsyncpgDriver
from loopsafe_db.drivers.psycopg import PsycopgDriver

if TYPE_CHECKING:
    from collections.abc import Callable

DRIVERS: dict[str, Any] = {
    "aiosqlite": AiosqliteDriver,
    "asyncpg": AsyncpgDriver,
    "psycopg": PsycopgDriver,
}


class Look:
    """A look for what was left, in another thread, held up after each of its two steps."""

    def __init__(self, look: Callable[[], object]) -> None:
        self._thread = threading.Thread(target=look)
        self._asks, self._may_know = threading.Event(), threading.Event()
        self._ends, self._may_end = threading.Event(), threading.Event()

    def begin(self) -> None:
        """Begin; wait until it asks whether a task is done."""
        self._thread.start()
        assert self._asks.wait(10)

    def is_done(self, task: asyncio.Task[Any]) -> bool:
        """Be what it asks."""
        if threading.current_thread() is self._thread:
            self._asks.set()
            assert self._may_know.wait(10)
        return asyncio.Task.done(task)

    def go_on(self) -> None:
        """Tell it; wait until it has ended a connection, or is over."""
        self._may_know.set()
        while self._thread.is_alive() and not self._ends.is_set():
            time.sleep(0.001)

    def note_end(self) -> None:
        """Be told that a connection was ended."""
        if threading.current_thread() is self._thread:
            self._ends.set()
            assert self._may_end.wait(10)

    def finish(self) -> None:
        """Wait until it is over."""
        self._may_end.set()
        self._thread.join()


class HandingOn:
    """A first task whose connection a second one gets while another thread looks at the first."""

    def __init__(self, database: Database) -> None:
        url, look = database.url, Look(lambda: self.database.stats())
        driver = url.driver or "aiosqlite"
        base: Any = DRIVERS[driver]

        class Driver(base):  # type: ignore[misc]
            def terminate(self, raw: Any) -> None:
                super().terminate(raw)
                look.note_end()

        class First(asyncio.Task[object]):
            def done(self) -> bool:
                return look.is_done(self)

        register_driver(f"{url.dialect}+handing_on_{driver}", Driver())
        staged = url.set(drivername=f"{url.dialect}+handing_on_{driver}")
        self.database = Database(staged, max_size=1, scope="process")
        self.look, self._first = look, First

    async def hand_on(self, second: Callable[[], Any]) -> asyncio.Task[Any]:
        """Go on when the second task is about to get it, and the other thread knows that the first is done."""
        await self.database.fetch_val("SELECT 0")
        loop = asyncio.get_running_loop()
        first = self._first(self.database.fetch_val("SELECT 1"), loop=loop)
        await asyncio.sleep(0)
        self.look.begin()
        task = loop.create_task(second())
        while not first.done():  # noqa: ASYNC110 (it is to be seen at once, before the second runs)
            await asyncio.sleep(0)
        self.look.go_on()  # the second has not run yet
        return task


@pytest.fixture
def handing_on(database: Database) -> HandingOn:
    asyncio.run(make_table(database))
    return HandingOn(database)


async def make_table(database: Database) -> None:
    await database.execute("CREATE TABLE written (who text)")
    await database.disconnect()


def test_what_is_written_beside_a_transaction_is_never_written_in_it(handing_on: HandingOn) -> None:
    database, look = handing_on.database, handing_on.look
    inside, may_leave = asyncio.Event(), asyncio.Event()

    async def roll_back() -> None:
        async with database.transaction(force_rollback=True):
            await database.execute("INSERT INTO written VALUES ('second')")
            inside.set()
            await may_leave.wait()

    async def write() -> None:
        assert await database.execute("INSERT INTO written VALUES ('third')") == 1

    async def main() -> None:
        second = await handing_on.hand_on(roll_back)
        await inside.wait()
        look.finish()
        third = asyncio.create_task(write())
        for _ in range(200):
            await asyncio.sleep(0.001 if third.done() else 0)
        may_leave.set()
        await asyncio.gather(second, third)
        assert await database.fetch_val("SELECT count(*) FROM written WHERE who = 'third'") == 1
        await database.disconnect()

    asyncio.run(main())


def test_who_looks_for_lost_connections_ends_none_that_a_second_task_has(
    handing_on: HandingOn,
) -> None:
    database, look = handing_on.database, handing_on.look

    async def main() -> None:
        second = await handing_on.hand_on(lambda: database.fetch_val("SELECT 2"))
        look.finish()
        assert await second == 2
        assert database.stats().terminated == 0
        await database.disconnect()

    asyncio.run(main())
