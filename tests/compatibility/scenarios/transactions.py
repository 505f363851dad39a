# mypy: disable-error-code="untyped-decorator"
"""Transactions: block, decorator, by hand; nested; isolated."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.compatibility.scenarios.tables import notes
from tests.compatibility.world import World, attempt, only

COUNT = "SELECT count(*) FROM notes"


async def _add(database: Any, text: str = "x") -> None:
    await database.execute(notes.insert().values(text=text))


async def _texts(database: Any) -> list[str]:
    return [row.text for row in await database.fetch_all(notes.select().order_by(notes.c.id))]


async def block_commits(world: World) -> Any:
    async with world.database(notes) as database:
        async with database.transaction():
            await _add(database)
        return await _texts(database)


async def block_rolls_back_and_passes_the_exception_on(world: World) -> Any:
    async with world.database(notes) as database:
        try:
            async with database.transaction():
                await _add(database)
                raise ZeroDivisionError
        except ZeroDivisionError:
            return await _texts(database)


async def block_rolls_back_at_a_cancellation(world: World) -> Any:
    async with world.database(notes) as database:
        inside = asyncio.Event()

        async def work() -> None:
            async with database.transaction():
                await _add(database)
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await inside.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return await _texts(database)


async def block_rolls_back_by_force(world: World) -> Any:
    async with world.database(notes) as database:
        async with database.transaction(force_rollback=True):
            await _add(database)
            inside = await _texts(database)
        return inside, await _texts(database)


async def block_on_a_connection(world: World) -> Any:
    async with world.database(notes) as database, database.connection() as connection:
        async with connection.transaction():
            await _add(connection)
        async with connection.transaction(force_rollback=True):
            await _add(connection)
        return await _texts(connection)


async def block_gives_a_transaction(world: World) -> Any:
    async with world.database() as database, database.transaction() as transaction:
        kind = type(transaction).__name__
        return kind, [hasattr(transaction, name) for name in ("start", "commit", "rollback")]


async def block_rolled_back_by_hand_inside(world: World) -> Any:
    async with world.database(notes) as database:

        async def work() -> None:
            async with database.transaction() as transaction:
                await _add(database)
                await transaction.rollback()

        return await attempt(work()), await _texts(database)


async def block_committed_by_hand_inside(world: World) -> Any:
    async with world.database(notes) as database:

        async def work() -> None:
            async with database.transaction() as transaction:
                await _add(database)
                await transaction.commit()

        return await attempt(work()), await _texts(database)


async def block_goes_on_after_an_error_is_caught(world: World) -> Any:
    """PostgreSQL refuses every statement after one that failed; SQLite does not."""
    async with world.database(notes) as database:

        async def work() -> None:
            async with database.transaction():
                await _add(database)
                await attempt(database.fetch_one("SELECT * FROM missing"))
                await _add(database)

        return await attempt(work()), await _texts(database)


async def block_survives_an_error_in_a_savepoint(world: World) -> Any:
    async with world.database(notes) as database:
        async with database.transaction():
            await _add(database, "before")
            try:
                async with database.transaction():
                    await _add(database, "inside")
                    await database.execute("SELECT * FROM missing")
            except Exception:  # noqa: BLE001 (each driver has its own)
                await _add(database, "after")
        return await _texts(database)


async def nested_blocks_are_savepoints(world: World) -> Any:
    async with world.database(notes) as database:
        async with database.transaction():
            await _add(database, "outer")
            async with database.transaction():
                await _add(database, "kept")
            async with database.transaction(force_rollback=True):
                await _add(database, "undone")
                async with database.transaction():
                    await _add(database, "undone with it")
        return await _texts(database)


async def nested_blocks_are_undone_with_the_outer(world: World) -> Any:
    async with world.database(notes) as database:
        async with database.transaction(force_rollback=True), database.transaction():
            await _add(database)
        return await _texts(database)


async def nested_blocks_of_handle_and_connection(world: World) -> Any:
    async with world.database(notes) as database:
        async with database.transaction():
            async with database.connection() as connection, connection.transaction():
                await _add(connection, "a")
            await _add(database, "b")
        return await _texts(database)


async def by_hand_commits(world: World) -> Any:
    async with world.database(notes) as database:
        transaction = await database.transaction()
        try:
            await _add(database)
        except BaseException:
            await transaction.rollback()
            raise
        await transaction.commit()
        return await _texts(database)


async def by_hand_rolls_back(world: World) -> Any:
    async with world.database(notes) as database:
        transaction = await database.transaction()
        await _add(database)
        inside = await _texts(database)
        await transaction.rollback()
        return inside, await _texts(database)


async def by_hand_with_start(world: World) -> Any:
    async with world.database(notes) as database:
        transaction = database.transaction()
        started = await transaction.start()
        await _add(database)
        seen = started is transaction, await transaction.commit()
        again = database.transaction()
        await again.start()
        await _add(database)
        return seen, await again.rollback(), await _texts(database)


async def by_hand_nested(world: World) -> Any:
    async with world.database(notes) as database:
        outer = await database.transaction()
        await _add(database, "outer")
        inner = await database.transaction()
        await _add(database, "inner")
        await inner.rollback()
        await outer.commit()
        return await _texts(database)


async def by_hand_on_a_connection(world: World) -> Any:
    async with world.database(notes) as database, database.connection() as connection:
        transaction = await connection.transaction()
        await _add(connection)
        await transaction.rollback()
        return await _texts(connection)


async def by_hand_in_the_wrong_order(world: World) -> Any:
    async with world.database(notes) as database, database.connection():
        outer = await database.transaction()
        inner = await database.transaction()
        wrong = await attempt(outer.commit())
        await inner.rollback()
        await outer.rollback()
        return wrong


async def by_hand_twice(world: World) -> Any:
    async with world.database(notes) as database, database.connection():
        transaction = await database.transaction()
        await transaction.commit()
        return await attempt(transaction.commit()), await attempt(transaction.rollback())


async def by_hand_without_start(world: World) -> Any:
    async with world.database(notes) as database:
        return await attempt(database.transaction().commit())


async def a_transaction_started_again(world: World) -> Any:
    async with world.database(notes) as database:
        transaction = database.transaction()
        for text in ("one", "two"):
            async with transaction:
                await _add(database, text)
        return await _texts(database)


async def decorator_commits_and_rolls_back(world: World) -> Any:
    async with world.database(notes) as database:

        @database.transaction()
        async def add(text: str, *, fail: bool = False) -> str:
            """Docs."""
            await _add(database, text)
            if fail:
                raise ZeroDivisionError
            return text

        given = await add("kept"), add.__name__, add.__doc__
        failed = await attempt(add("undone", fail=True))
        return given, failed, await add("again"), await _texts(database)


async def decorator_made_before_the_handle_connects(world: World) -> Any:
    database = world.Database(world.url)

    @database.transaction()
    async def add(text: str) -> None:
        await _add(database, text)

    async with database:
        await database.execute("CREATE TABLE notes (id INTEGER, text VARCHAR, completed BOOLEAN)")
        await database.execute(notes.insert().values(id=0, text="first"))
        return await attempt(database.fetch_val(COUNT)), callable(add)


async def decorator_used_concurrently(world: World) -> Any:
    async with world.database(notes) as database:
        inside = asyncio.Barrier(3)

        @database.transaction()
        async def add(text: str) -> int:
            seen = int(await database.fetch_val(COUNT))
            await inside.wait()  # three transactions are open
            return seen

        @database.transaction()
        async def write(text: str) -> None:
            await _add(database, text)

        seen = await attempt(asyncio.gather(*(add(text) for text in "abc")), timeout=1)
        await asyncio.gather(*(write(text) for text in "abc"))
        return seen, sorted(await _texts(database))


async def decorator_used_concurrently_with_one_that_fails(world: World) -> Any:
    async with world.database(notes) as database:

        @database.transaction()
        async def add(text: str) -> None:
            await _add(database, text)
            if text == "b":
                raise ZeroDivisionError

        await asyncio.gather(*(add(text) for text in "abc"), return_exceptions=True)
        return sorted(await _texts(database))


async def decorator_that_calls_itself(world: World) -> Any:
    async with world.database(notes) as database:

        @database.transaction()
        async def add(depth: int) -> None:
            await _add(database, str(depth))
            if depth:
                await add(depth - 1)

        return await attempt(add(2)), await _texts(database)


async def decorated_functions_that_call_each_other(world: World) -> Any:
    async with world.database(notes) as database:

        @database.transaction()
        async def inner() -> None:
            await _add(database, "inner")

        @database.transaction()
        async def outer() -> None:
            await _add(database, "outer")
            await inner()
            raise ZeroDivisionError

        return await attempt(outer()), await _texts(database)


async def decorator_with_force_rollback(world: World) -> Any:
    async with world.database(notes) as database:

        @database.transaction(force_rollback=True)
        async def add() -> Any:
            await _add(database)
            return await _texts(database)

        return await add(), await _texts(database)


async def decorator_of_a_connection(world: World) -> Any:
    async with world.database(notes) as database, database.connection() as connection:

        @connection.transaction()
        async def add() -> None:
            await _add(connection)

        await add()
        return await _texts(connection)


async def siblings_see_nothing_uncommitted(world: World) -> Any:
    async with world.database(notes) as database:
        written, looked = asyncio.Event(), asyncio.Event()

        async def write() -> None:
            async with database.transaction():
                await _add(database)
                written.set()
                await looked.wait()

        async def look() -> Any:
            await written.wait()
            seen = await _texts(database)
            looked.set()
            return seen

        _, seen = await asyncio.gather(write(), look())
        return seen, await _texts(database)


async def siblings_commit_and_roll_back_apart(world: World) -> Any:
    async with world.database(notes) as database:

        async def work(text: str) -> None:
            async with database.transaction(force_rollback=text == "undone"):
                await database.fetch_val("SELECT 1")
            async with database.transaction(force_rollback=text == "undone"):
                await _add(database, text)

        await asyncio.gather(work("kept"), work("undone"))
        return await _texts(database)


async def children_see_nothing_uncommitted(world: World) -> Any:
    async with world.database(notes) as database, database.transaction():
        await _add(database)
        return await asyncio.create_task(_texts(database))


async def children_have_transactions_of_their_own(world: World) -> Any:
    async with world.database(notes) as database:

        async def child() -> Any:
            async with database.transaction(force_rollback=True):
                return await _texts(database)

        async with database.transaction():
            seen = await attempt(asyncio.create_task(child()), timeout=1)
            await _add(database)
        return seen, await _texts(database)


async def a_transaction_ended_by_a_child(world: World) -> Any:
    """The child is given the transaction itself."""
    async with world.database(notes) as database, database.connection():
        transaction = await database.transaction()
        await _add(database)

        async def end() -> Any:
            return await attempt(transaction.rollback())

        outcome = await asyncio.create_task(end())
        if outcome is not None:
            await transaction.rollback()
        return outcome, await _texts(database)


async def parallel_transactions(world: World) -> Any:
    async with world.database() as database:

        async def work() -> Any:
            async with database.transaction():
                return await database.fetch_val("SELECT 1")

        return await asyncio.gather(*(work() for _ in range(8)))


@only("postgresql")
async def isolation_levels(world: World) -> Any:
    async with world.database() as database:
        seen = []
        for level in ("serializable", "repeatable_read", "read_committed", None):
            async with database.transaction(isolation=level):
                seen.append(await database.fetch_val("SHOW transaction_isolation"))
        return seen


@only("postgresql")
async def isolation_of_a_snapshot(world: World) -> Any:
    async with (
        world.database(notes) as database,
        database.transaction(isolation="serializable", force_rollback=True),
    ):
        before = await _texts(database)
        await asyncio.create_task(_add(database))
        return before, await _texts(database)


@only("postgresql")
async def isolation_by_decorator_and_by_hand(world: World) -> Any:
    async with world.database() as database:

        @database.transaction(isolation="serializable")
        async def decorated() -> Any:
            return await database.fetch_val("SHOW transaction_isolation")

        transaction = await database.transaction(isolation="repeatable_read")
        by_hand = await database.fetch_val("SHOW transaction_isolation")
        await transaction.rollback()
        return await decorated(), by_hand


@only("postgresql")
async def isolation_of_an_unknown_level(world: World) -> Any:
    async with world.database() as database:

        async def work() -> None:
            async with database.transaction(isolation="nonsense"):
                pass

        return await attempt(work())


@only("sqlite")
async def isolation_is_ignored_by_sqlite(world: World) -> Any:
    async with world.database() as database:

        async def work() -> Any:
            async with database.transaction(isolation="serializable"):
                return await database.fetch_val("SELECT 1")

        return await attempt(work())


@only("postgresql")
async def readonly_and_deferrable(world: World) -> Any:
    async with world.database(notes) as database:

        async def work(**options: Any) -> Any:
            async with database.transaction(**options):
                await _add(database)

        options = {"isolation": "serializable", "readonly": True, "deferrable": True}
        return await attempt(work(readonly=True)), await attempt(work(**options))


async def an_unknown_option(world: World) -> Any:
    async with world.database() as database:

        async def work() -> Any:
            async with database.transaction(no_such_option=1):
                return await database.fetch_val("SELECT 1")

        return await attempt(work())


@only("postgresql")
async def isolation_of_a_nested_transaction(world: World) -> Any:
    async with world.database() as database, database.transaction(isolation="serializable"):

        async def nested(level: str) -> Any:
            async with database.transaction(isolation=level):
                return await database.fetch_val("SHOW transaction_isolation")

        return await attempt(nested("read_committed"))


@only("postgresql")
async def isolation_of_a_nested_transaction_is_the_same(world: World) -> Any:
    async with (
        world.database() as database,
        database.transaction(isolation="serializable"),
        database.transaction(isolation="serializable"),
    ):
        return await database.fetch_val("SHOW transaction_isolation")


async def iterate_inside_a_transaction(world: World) -> Any:
    async with world.database(notes) as database, database.transaction(force_rollback=True):
        await _add(database, "a")
        await _add(database, "b")
        return [row.text async for row in database.iterate("SELECT * FROM notes ORDER BY id")]


async def rows_and_counts_after_a_rolled_back_key(world: World) -> Any:
    async with world.database(notes) as database:
        async with database.transaction(force_rollback=True):
            first = await database.execute(notes.insert().values(text="x"))
        return first, isinstance(await database.execute(notes.insert().values(text="y")), int)
