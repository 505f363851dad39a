"""Connections belong to asyncio tasks."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

from tests.compatibility.scenarios.tables import notes
from tests.compatibility.world import World, attempt, attempt_call, only

PID = "SELECT pg_backend_pid()"
COUNT = "SELECT count(*) FROM notes"
INSERT = "INSERT INTO notes (text) VALUES (:text)"


async def connection_is_one_object_within_a_task(world: World) -> Any:
    async with world.database() as database, database.connection() as outer:
        async with database.connection() as inner:
            same = outer is inner, outer.raw_connection is inner.raw_connection
        return same, await outer.fetch_val("SELECT 1")


async def connection_called_twice_before_it_is_entered(world: World) -> Any:
    async with world.database() as database:
        return database.connection() is database.connection()


async def connection_is_not_the_one_of_before(world: World) -> Any:
    async with world.database() as database:
        async with database.connection() as one:
            pass
        async with database.connection() as two:
            return one is two


async def connection_is_used_by_the_handle(world: World) -> Any:
    """What the handle is asked inside the block goes over the connection of the block."""
    temporary = "CREATE TEMPORARY TABLE mine (x INTEGER)"
    async with world.database() as database, database.connection() as connection:
        await connection.execute(temporary)
        await database.execute("INSERT INTO mine VALUES (1)")
        return await database.fetch_val("SELECT x FROM mine")


async def connections_of_siblings_differ(world: World) -> Any:
    async with world.database() as database:
        both_are_there = asyncio.Barrier(2)

        async def take() -> Any:
            async with database.connection() as connection:
                await both_are_there.wait()
                return connection, connection.raw_connection

        (one, raw_one), (two, raw_two) = await asyncio.gather(take(), take())
        return one is two, raw_one is raw_two


async def connection_of_a_child_differs(world: World) -> Any:
    async with world.database() as database, database.connection() as mine:

        async def take() -> bool:
            async with database.connection() as connection:
                return connection is mine

        return await asyncio.create_task(take())


async def connection_handed_to_a_child(world: World) -> Any:
    async with world.database(notes) as database, database.connection() as connection:

        async def use(given: Any) -> Any:
            await given.execute(INSERT, {"text": "by the child"})
            return await given.fetch_val("SELECT text FROM notes")

        return await asyncio.create_task(use(connection))


async def connection_handed_to_a_child_inside_a_transaction(world: World) -> Any:
    """The documented example: what the child does is part of the parent's transaction."""
    async with world.database(notes) as database:

        async def change(connection: Any) -> None:
            await connection.execute("UPDATE notes SET text = 'child'")

        async with database.transaction(force_rollback=True):
            await database.execute(INSERT, {"text": "setup"})
            await asyncio.create_task(change(database.connection()))
            inside = await database.fetch_val("SELECT text FROM notes")
        return inside, await database.fetch_val(COUNT)


async def connection_handed_to_several_children_at_once(world: World) -> Any:
    async with world.database(notes) as database:
        async with database.transaction():
            connection = database.connection()
            await asyncio.gather(
                *(connection.execute(INSERT, {"text": str(n)}) for n in range(5)),
                *(connection.fetch_all("SELECT * FROM notes") for _ in range(5)),
            )
        return await database.fetch_val(COUNT)


async def connection_entered_by_a_child(world: World) -> Any:
    async with world.database() as database, database.connection() as connection:

        async def enter() -> Any:
            async with connection as entered:
                return entered is connection, await entered.fetch_val("SELECT 1")

        return await asyncio.create_task(enter()), await connection.fetch_val("SELECT 2")


async def connection_handed_to_a_child_that_opens_a_transaction(world: World) -> Any:
    async with world.database(notes) as database, database.connection() as connection:

        async def write() -> None:
            async with connection.transaction():
                await connection.execute(INSERT, {"text": "x"})

        await asyncio.create_task(write())
        return await connection.fetch_val(COUNT)


async def connection_used_before_it_is_entered(world: World) -> Any:
    async with world.database() as database:
        return await attempt(database.connection().fetch_val("SELECT 1"))


async def connection_used_after_its_block(world: World) -> Any:
    async with world.database() as database:
        async with database.connection() as connection:
            pass
        return await attempt(connection.fetch_val("SELECT 1"))


async def connection_entered_again_after_its_block(world: World) -> Any:
    async with world.database() as database:
        connection = database.connection()
        async with connection:
            pass
        async with connection as again:
            return await again.fetch_val("SELECT 1")


async def connection_outside_a_task(world: World) -> Any:
    database = world.Database(world.url)
    outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(
        lambda: outcome.set_result(attempt_call(lambda: type(database.connection())))
    )
    return await outcome


async def connection_is_given_back_after_an_exception(world: World) -> Any:
    async with world.database() as database:
        for _ in range(30):
            await attempt(database.fetch_val("SELECT * FROM missing"))
        return await database.fetch_val("SELECT 1")


async def connection_is_given_back_after_a_cancellation(world: World) -> Any:
    async with world.database() as database:
        for _ in range(30):
            task = asyncio.create_task(database.fetch_val("SELECT 1"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return await attempt(database.fetch_val("SELECT 1"))


async def connection_does_not_outlive_its_task(world: World) -> Any:
    async with world.database() as database:
        kept: list[weakref.ref[Any]] = []

        async def take() -> None:
            async with database.connection() as connection:
                kept.append(weakref.ref(connection))

        await asyncio.create_task(take())
        await asyncio.sleep(0)
        gc.collect()
        return kept[0]() is None


@only("postgresql")
async def raw_connection_of_postgresql(world: World) -> Any:
    async with world.database(notes) as database, database.connection() as connection:
        raw = connection.raw_connection
        async with connection.transaction(force_rollback=True):
            insert = "INSERT INTO notes (text, completed) VALUES ($1, $2)"
            await raw.execute(insert, "example1", True)  # noqa: FBT003
            await raw.executemany(insert, [("example2", False), ("example3", True)])
            rows = await raw.fetch("SELECT text, completed FROM notes ORDER BY id")
            inside = [tuple(row) for row in rows]
        return inside, await raw.fetchval(COUNT)


@only("postgresql")
async def raw_connection_of_postgresql_listens_and_copies(world: World) -> Any:
    async with world.database(notes) as database, database.connection() as connection:
        heard: list[str] = []
        raw = connection.raw_connection

        def hear(*arguments: Any) -> None:
            heard.append(arguments[-1])

        await raw.add_listener("channel", hear)
        await database.execute("NOTIFY channel, 'hello'")
        await raw.fetchval("SELECT 1")
        await raw.remove_listener("channel", hear)
        records = [(1, "a"), (2, "b")]
        copied = await raw.copy_records_to_table("notes", records=records, columns=["id", "text"])
        return heard, copied, isinstance(raw.get_server_pid(), int)


@only("sqlite")
async def raw_connection_of_sqlite(world: World) -> Any:
    async with world.database(notes) as database, database.connection() as connection:
        raw = connection.raw_connection
        async with connection.transaction(force_rollback=True):
            insert = "INSERT INTO notes (text, completed) VALUES ($1, $2)"
            await raw.execute(insert, ("example1", True))
            await raw.executemany(insert, [("example2", False), ("example3", True)])
            rows = await raw.execute_fetchall("SELECT text, completed FROM notes ORDER BY id")
            inside = [tuple(row) for row in rows]
        cursor = await raw.execute(COUNT)
        return inside, list(await cursor.fetchone())


async def raw_connection_before_it_is_entered(world: World) -> Any:
    async with world.database() as database:
        return attempt_call(lambda: database.connection().raw_connection)


async def many_tasks_at_once(world: World) -> Any:
    async with world.database() as database:
        asked = (database.fetch_val("SELECT CAST(:n AS int)", {"n": n}) for n in range(50))
        return await asyncio.gather(*asked)


async def gather_within_a_transaction_uses_other_connections(world: World) -> Any:
    async with world.database(notes) as database, database.transaction():
        await database.execute(INSERT, {"text": "x"})
        return await asyncio.gather(database.fetch_val(COUNT), database.fetch_val(COUNT))


async def awaiting_a_coroutine_joins_and_a_task_does_not(world: World) -> Any:
    """As in a code base that asks `get_database()` in each function: no handle is passed on."""
    async with world.database(notes) as database:

        def get_database() -> Any:
            return database

        async def repository() -> Any:
            await get_database().execute(INSERT, {"text": "x"})
            return await get_database().fetch_val(COUNT)

        async with get_database().transaction(force_rollback=True):
            joined = await repository()
            apart = await asyncio.create_task(get_database().fetch_val(COUNT))
        return joined, apart, await get_database().fetch_val(COUNT)


async def wait_for_joins_the_transaction_or_not(world: World) -> Any:
    async with world.database(notes) as database, database.transaction():
        await database.execute(INSERT, {"text": "x"})
        async with asyncio.timeout(5):
            return await database.fetch_val(COUNT)
