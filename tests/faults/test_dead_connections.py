"""A connection that its server has ended while it was idle is never lent, in a loop that runs, either."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
import uvloop

from loopsafe_db import Database
from loopsafe_db.errors import ConnectionLost
from tests.conftest import SCOPE
from tests.faults.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Way = Callable[[Database], Awaitable[Any]]

SEVEN = "SELECT 7 AS seven"


async def by_text(database: Database) -> Any:
    return await database.fetch_val(SEVEN)


async def by_clause(database: Database) -> Any:
    return await database.fetch_val(sa.select(sa.literal_column("7")))


async def in_a_block(database: Database) -> Any:
    async with database.connection() as connection:
        return await connection.fetch_val(SEVEN)


async def in_a_transaction(database: Database) -> Any:
    async with database.transaction():
        return await database.fetch_val(SEVEN)


async def in_a_session(database: Database) -> Any:
    async with database.session() as session:
        return await session.scalar(sa.text(SEVEN))


async def on_the_engine(database: Database) -> Any:
    async with database.engine.connect() as connection:
        return await connection.scalar(sa.text(SEVEN))


async def streamed(database: Database) -> Any:
    rows = [row async for row in database.iterate(SEVEN)]
    return rows[0].seven


WAYS = [by_text, by_clause, in_a_block, in_a_transaction, in_a_session, on_the_engine, streamed]


@pytest.fixture(params=["asyncpg", "psycopg", "mariadb"])
def url(request: pytest.FixtureRequest) -> sa.URL:
    if request.param == "mariadb":
        if SCOPE == "process":
            pytest.skip("connections of aiomysql belong to one loop")
        return sa.make_url(request.getfixturevalue("mariadb_url"))
    url = sa.make_url(request.getfixturevalue("postgres_url"))
    return url.set(drivername=f"postgresql+{request.param}")


async def end_from_outside(database: Database, url: sa.URL) -> None:
    """Have the server end the one connection, from another thread, while the running loop stands still."""
    if url.get_backend_name() == "postgresql":
        end = f"SELECT pg_terminate_backend({await database.fetch_val('SELECT pg_backend_pid()')}, 5000)"
    else:
        end = f"KILL {await database.fetch_val('SELECT connection_id()')}"

    async def execute() -> None:
        async with Database(url, scope="loop") as outside:
            await outside.execute(end)

    killer = threading.Thread(target=lambda: asyncio.run(execute()))
    killer.start()
    killer.join()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("turns", [0, 1])
def test_what_the_server_ended_is_replaced_before_its_next_use(
    url: sa.URL, turns: int, loop: Any
) -> None:
    database = Database(url, max_size=1, scope=SCOPE)

    async def main() -> None:
        for way in WAYS:
            await end_from_outside(database, url)
            for _ in range(turns):
                await asyncio.sleep(0)
            assert await way(database) == 7
        assert (database.stats().opened, database.stats().in_use) == (1 + len(WAYS), 0)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_farewell_is_enough_whose_end_comes_late(postgres_url: str, driver: str) -> None:
    with Wire(postgres_url) as wire:
        wire.holds_ends = True
        database = Database(wire.url.set(drivername=f"postgresql+{driver}"), max_size=1)
        for way in WAYS:
            await end_from_outside(database, sa.make_url(postgres_url))
            async with asyncio.timeout(5):
                while wire.ends_held < database.stats().opened:  # noqa: ASYNC110 (a thread's)
                    await asyncio.sleep(0.01)
            assert await way(database) == 7
        await database.disconnect()


@pytest.mark.parametrize("way", [way for way in WAYS if way is not on_the_engine])
async def test_a_farewell_in_a_transaction_is_a_lost_connection_before_its_end_comes(
    postgres_url: str, way: Way
) -> None:
    async def ask_after_the_farewell() -> None:
        async with database.transaction():
            await end_from_outside(database, sa.make_url(postgres_url))
            async with asyncio.timeout(5):
                while not wire.ends_held:  # noqa: ASYNC110 (a thread's)
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)  # it is read
            await way(database)

    with Wire(postgres_url) as wire:
        wire.holds_ends = True
        async with Database(wire.url, max_size=1) as database:
            with pytest.raises(ConnectionLost) as told:
                await ask_after_the_farewell()
            assert told.value.retryable
            assert await way(database) == 7


def sockets() -> set[int]:
    """Give the numbers of the sockets that this process has open."""
    return {int(fd) for fd in os.listdir("/proc/self/fd") if is_socket(f"/proc/self/fd/{fd}")}


def is_socket(path: str) -> bool:
    return os.path.islink(path) and os.readlink(path).startswith("socket:")


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_lets_go_of_a_dead_connection_leaves_alone_what_has_its_number_by_then(
    postgres_url: str, loop: Any
) -> None:
    database = Database(postgres_url, max_size=1, scope="process")

    async def main() -> None:
        before = sockets()
        await database.fetch_val(SEVEN)
        (number,) = sockets() - before
        await end_from_outside(database, sa.make_url(postgres_url))
        async with asyncio.timeout(5):
            while number in sockets():  # noqa: ASYNC110 (no event tells of it)
                await asyncio.sleep(0.01)
        await hears_at(number, lambda: by_text(database))

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


async def hears_at(number: int, way: Callable[[], Awaitable[Any]]) -> None:
    """Wait for a message at a descriptor, while another loop does something."""
    reading, writing = os.pipe()
    if reading != number:
        os.dup2(reading, number)
        os.close(reading)
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(number, heard.set)
    try:
        await asyncio.to_thread(lambda: asyncio.run(ask(way)))
        os.write(writing, b"!")
        async with asyncio.timeout(5):
            await heard.wait()
    finally:
        loop.remove_reader(number)
        os.close(number)
        os.close(writing)


async def ask(way: Callable[[], Awaitable[Any]]) -> None:
    await way()
