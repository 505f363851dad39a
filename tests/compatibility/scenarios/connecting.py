"""`connect`, `disconnect`, `is_connected`: when they must be called, and what they raise."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.compatibility.world import World, attempt, only


async def connect_and_disconnect_set_is_connected(world: World) -> Any:
    database = world.Database(world.url)
    seen = [database.is_connected]
    await database.connect()
    seen.append(database.is_connected)
    await database.disconnect()
    seen.append(database.is_connected)
    return seen


async def connect_and_disconnect_are_idempotent(world: World) -> Any:
    database = world.Database(world.url)
    seen = [await database.connect(), await database.connect(), database.is_connected]
    seen += [await database.disconnect(), await database.disconnect(), database.is_connected]
    return seen


async def disconnect_before_connect_does_nothing(world: World) -> Any:
    return await attempt(world.Database(world.url).disconnect())


async def connect_again_after_disconnect(world: World) -> Any:
    database = world.Database(world.url)
    seen = []
    for _ in range(3):
        await database.connect()
        seen.append(await database.fetch_val("SELECT 1"))
        await database.disconnect()
    return seen


async def async_with_gives_the_handle_and_disconnects(world: World) -> Any:
    database = world.Database(world.url)
    async with database as entered:
        inside = entered is database, database.is_connected
    return inside, database.is_connected


async def async_with_disconnects_after_an_exception(world: World) -> Any:
    database = world.Database(world.url)
    try:
        async with database:
            raise ZeroDivisionError
    except ZeroDivisionError:
        return "passed on", database.is_connected


async def async_with_inside_async_with(world: World) -> Any:
    database = world.Database(world.url)
    async with database:
        async with database:
            inner = database.is_connected
        return inner, database.is_connected, await attempt(database.fetch_val("SELECT 1"))


async def query_before_connect(world: World) -> Any:
    database = world.Database(world.url)
    outcome = await attempt(database.fetch_val("SELECT 1"))
    await database.disconnect()
    return outcome


async def query_after_disconnect(world: World) -> Any:
    database = world.Database(world.url)
    await database.connect()
    await database.disconnect()
    outcome = await attempt(database.fetch_val("SELECT 1"))
    await database.disconnect()
    return outcome


async def transaction_before_connect(world: World) -> Any:
    async def use() -> Any:
        async with database.transaction():
            return await database.fetch_val("SELECT 1")

    database = world.Database(world.url)
    outcome = await attempt(use())
    await database.disconnect()
    return outcome


async def is_connected_after_an_idle_moment(world: World) -> Any:
    async with world.Database(world.url) as database:
        await asyncio.gather(*(database.fetch_val("SELECT 1") for _ in range(3)))
        await asyncio.sleep(0.1)
        return database.is_connected


@only("postgresql")
async def connect_with_a_wrong_password(world: World) -> Any:
    url = world.DatabaseURL(world.url).replace(password="wrong")
    return await attempt(world.Database(str(url)).connect())


@only("postgresql")
async def connect_to_a_database_that_is_not_there(world: World) -> Any:
    url = world.DatabaseURL(world.url).replace(database="no_such_database")
    return await attempt(world.Database(str(url)).connect())


@only("postgresql")
async def connect_where_nobody_listens_is_an_os_error(world: World) -> Any:
    url = world.DatabaseURL(world.url).replace(port=1)
    try:
        await world.Database(str(url)).connect()
    except OSError:
        return "an OSError"


@only("sqlite")
async def connect_to_a_folder_that_is_not_there(world: World) -> Any:
    database = world.Database("sqlite:////no/such/folder/my.db")
    return await attempt(database.connect()), await attempt(database.fetch_val("SELECT 1"))


async def a_failed_connect_can_be_tried_again(world: World) -> Any:
    database = world.Database(world.url.replace("://", "://", 1))
    await attempt(asyncio.wait_for(database.connect(), 1e-9))
    await database.connect()
    seen = await database.fetch_val("SELECT 1")
    await database.disconnect()
    return seen


@only("postgresql")
async def disconnect_lets_no_query_in_flight_be_lost(world: World) -> Any:
    async with world.Database(world.url) as database, world.Database(world.url) as watcher:
        asked = asyncio.create_task(attempt(database.fetch_val("SELECT 1 FROM pg_sleep(0.5)")))
        running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT 1 FROM pg_sleep%'"
        while not await watcher.fetch_val(running):
            pass
        await database.disconnect()
    return await asked


async def two_handles_are_strangers(world: World) -> Any:
    async with world.Database(world.url) as one, world.Database(world.url) as two:
        await one.execute("CREATE TABLE t (x INTEGER)")
        async with one.transaction():
            await one.execute("INSERT INTO t VALUES (1)")
            seen = await two.fetch_val("SELECT count(*) FROM t")
        return seen, await two.fetch_val("SELECT count(*) FROM t")
