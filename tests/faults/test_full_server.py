"""A server that has no room for one more connection: who is refused waits for what comes back, as in any queue."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, PoolLimits, Timeouts
from loopsafe_db.errors import TooManyConnections

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

LONG = Timeouts(connect=3.0, acquire=30.0)
NOW = "SELECT 1"


class Server:
    """One that lets a user have few connections."""

    def __init__(self, admin: Database, url: sa.URL, allow: str) -> None:
        self.admin, self.url, self._allow = admin, url, allow

    async def allow(self, connections: int) -> None:
        await self.admin.execute(self._allow.format(connections))


@pytest.fixture(params=["asyncpg", "psycopg", "asyncmy"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    user, password = f"few_{uuid.uuid4().hex[:8]}", "secret"
    if request.param == "asyncmy":
        url = sa.make_url(request.getfixturevalue("mariadb_url")).set(drivername="mysql+asyncmy")
        make = f"CREATE USER '{user}'@'%' IDENTIFIED BY '{password}'"
        allow = f"ALTER USER '{user}'@'%' WITH MAX_USER_CONNECTIONS {{}}"
        drop = f"DROP USER '{user}'@'%'"
    else:
        url = sa.make_url(request.getfixturevalue("postgres_url"))
        url = url.set(drivername=f"postgresql+{request.param}")
        make = f"CREATE ROLE {user} LOGIN PASSWORD '{password}'"
        allow, drop = f"ALTER ROLE {user} CONNECTION LIMIT {{}}", f"DROP ROLE {user}"
    async with Database(url) as admin:
        await admin.execute(make)
        name = (
            url.database if url.get_backend_name() == "postgresql" else ""
        )  # it has no right to any
        yield Server(admin, url.set(username=user, password=password, database=name), allow)
        await admin.execute(drop)


@contextlib.asynccontextmanager
async def pool_of(server: Server, size: int, **options: Any) -> AsyncIterator[Database]:
    given: dict[str, Any] = {"timeouts": LONG, **options}
    async with asyncio.timeout(60), Database(server.url, max_size=size, **given) as database:
        yield database


async def waiting(database: Database, count: int) -> None:
    await until(lambda: database.stats().waiting == count)


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0.01)


async def direct(database: Database) -> Any:
    return await database.fetch_val(NOW)


async def block(database: Database) -> Any:
    async with database.transaction():
        return await database.fetch_val(NOW)


async def session(database: Database) -> Any:
    async with database.session() as own:
        return await own.scalar(sa.text(NOW))


async def engine(database: Database) -> Any:
    async with database.engine.connect() as connection:
        return await connection.scalar(sa.text(NOW))


async def in_another_loop(database: Database) -> Any:
    return await asyncio.to_thread(asyncio.run, direct(database))


WAYS = [direct, block, session, engine, in_another_loop]


@pytest.mark.parametrize("way", WAYS)
async def test_who_is_refused_gets_what_comes_back(
    server: Server, way: Callable[[Database], Awaitable[Any]]
) -> None:
    await server.allow(1)
    async with pool_of(server, 10) as database:
        async with database.connection() as held:
            await held.fetch_val(NOW)
            asking = [asyncio.ensure_future(way(database)) for _ in range(4)]
            await waiting(database, 4)
        assert await asyncio.gather(*asking) == [1] * 4
        stats = database.stats()
        assert (stats.requests_errors, stats.connections_errors, stats.waiting) == (0, 0, 0)


async def test_who_comes_first_is_served_first(server: Server) -> None:
    await server.allow(1)
    served: list[int] = []
    async with pool_of(server, 10) as database:

        async def ask(number: int) -> None:
            async with database.engine.connect() if number % 2 else database.connection():
                served.append(number)

        async with asyncio.TaskGroup() as group, database.connection() as held:
            await held.fetch_val(NOW)
            for number in range(6):
                group.create_task(ask(number))
                await waiting(database, number + 1)
            tried = database.stats().connections_num
            await until(lambda: database.stats().connections_num >= tried + 2)
            await waiting(database, 6)  # who has tried is in his place again
    assert served == [0, 1, 2, 3, 4, 5]


async def test_who_is_cancelled_takes_no_place_with_it(server: Server) -> None:
    await server.allow(2)
    async with pool_of(server, 4) as database:
        for number in range(6):
            async with database.engine.connect(), database.engine.connect():
                asking = [asyncio.ensure_future(w(database)) for w in (direct, engine) * 2]
                await waiting(database, 4)
            for task in asking[
                number % 2 :: 2
            ]:  # what comes back has just been given to some of them
                task.cancel()
            ends = await asyncio.gather(*asking, return_exceptions=True)
            assert ends.count(1) >= 2
        await server.allow(0 if "mysql" in server.url.drivername else -1)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(database.engine.connect())
            assert database.stats().in_use == 4
        assert database.stats().in_use == 0


async def test_who_waits_in_vain_hears_of_the_full_server(server: Server) -> None:
    await server.allow(1)
    short = Timeouts(connect=2, acquire=2)
    async with pool_of(server, 10, timeouts=short) as database, database.connection() as held:
        await held.fetch_val(NOW)
        asking = (way(database) for way in (direct, block, session, engine) * 2)
        ends = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(end) for end in ends} == {TooManyConnections}
        stats = database.stats()
        assert (stats.requests_errors, stats.waiting, stats.in_use) == (8, 0, 1)


async def test_where_nothing_may_come_back_nobody_waits_for_longer_than_for_a_connection(
    server: Server,
) -> None:
    await server.allow(1)
    short = Timeouts(connect=2, acquire=10**6)
    async with pool_of(server, 1) as other, other.connection() as held:
        await held.fetch_val(NOW)
        database = Database(server.url, max_size=2, timeouts=short)
        ends = await asyncio.gather(*(direct(database) for _ in range(6)), return_exceptions=True)
        assert {type(end) for end in ends} == {TooManyConnections}


async def test_the_least_that_a_pool_has_to_have_is_not_made_of_one_that_it_has(
    server: Server,
) -> None:
    await server.allow(2)
    short = Timeouts(connect=2)
    limits = PoolLimits(min_connections=3)
    database = Database(server.url, pool=limits, timeouts=short)
    with pytest.raises(TooManyConnections):
        await database.connect()
    await database.disconnect()
