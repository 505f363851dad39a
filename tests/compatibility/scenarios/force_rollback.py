# mypy: disable-error-code="untyped-decorator"
"""`force_rollback`: one connection for everybody, rolled back at `disconnect`."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from tests.compatibility.scenarios.tables import notes
from tests.compatibility.world import World, attempt, create, only

COUNT = "SELECT count(*) FROM notes"


async def _add(database: Any, text: str = "x") -> None:
    await database.execute(notes.insert().values(text=text))


async def _set_up(world: World) -> None:
    async with world.Database(world.url) as database:
        await create(database, notes)


async def as_an_option_undoes_everything_at_disconnect(world: World) -> Any:
    await _set_up(world)
    database = world.Database(world.url, force_rollback=True)
    seen = []
    for _ in range(2):
        await database.connect()
        await _add(database)
        seen.append(await database.fetch_val(COUNT))
        await database.disconnect()
    return seen


async def as_an_option_undoes_what_was_committed_in_blocks(world: World) -> Any:
    await _set_up(world)
    async with world.Database(world.url, force_rollback=True) as database:
        async with database.transaction():
            await _add(database)
        inside = await database.fetch_val(COUNT)
    async with world.Database(world.url) as plain:
        return inside, await plain.fetch_val(COUNT)


async def as_an_option_nested_blocks_roll_back_alone(world: World) -> Any:
    await _set_up(world)
    async with world.Database(world.url, force_rollback=True) as database:
        await _add(database, "kept")
        try:
            async with database.transaction():
                await _add(database, "undone")
                raise ZeroDivisionError
        except ZeroDivisionError:
            return await database.fetch_val(COUNT)


async def as_an_option_with_the_decorator(world: World) -> Any:
    """The documented example, with the decorator made before the handle connects."""
    await _set_up(world)
    database = world.Database(world.url, force_rollback=True)

    @database.transaction()
    async def add(*, fail: bool) -> None:
        await _add(database)
        if fail:
            raise ZeroDivisionError

    async with database:
        failed = await attempt(add(fail=True))
        after_failure = await database.fetch_val(COUNT)
        await add(fail=False)
        return failed, after_failure, await database.fetch_val(COUNT)


async def as_a_context_manager(world: World) -> Any:
    await _set_up(world)
    database = world.Database(world.url)
    seen = []
    with database.force_rollback():
        async with database:
            await _add(database)
            seen.append(await database.fetch_val(COUNT))
        async with database:
            seen.append(await database.fetch_val(COUNT))
    async with database:
        await _add(database)
    async with database:
        seen.append(await database.fetch_val(COUNT))
    return seen


async def as_a_context_manager_over_a_connected_handle(world: World) -> Any:
    """The handle is connected: `disconnect` finds that nothing was begun."""
    async with world.database(notes) as database:

        async def work() -> None:
            with database.force_rollback():
                await _add(database)

        return await attempt(work()), await database.fetch_val(COUNT)


async def connection_is_one_object_for_all_tasks(world: World) -> Any:
    async with world.Database(world.url, force_rollback=True) as database:

        async def take() -> Any:
            async with database.connection() as connection:
                return connection

        taken = await asyncio.gather(take(), take())
        return taken[0] is taken[1], taken[0] is database.connection()


async def children_and_siblings_see_everything(world: World) -> Any:
    async with world.Database(world.url, force_rollback=True) as database:
        await create(database, notes)
        await _add(database)
        return await asyncio.gather(*(database.fetch_val(COUNT) for _ in range(3)))


async def concurrent_queries_take_turns(world: World) -> Any:
    async with world.Database(world.url, force_rollback=True) as database:
        await create(database, notes)
        await asyncio.gather(*(_add(database, str(n)) for n in range(20)))
        rows = await database.fetch_all("SELECT text FROM notes")
        return sorted(int(row.text) for row in rows)


@only("postgresql")
async def concurrent_slow_queries_take_turns(world: World) -> Any:
    async with world.Database(world.url, force_rollback=True) as database:
        asked = (database.fetch_val("SELECT pg_backend_pid() FROM pg_sleep(0.05)") for _ in "abc")
        return len(set(await asyncio.gather(*asked)))


async def concurrent_transactions_that_do_not_overlap(world: World) -> Any:
    async with world.Database(world.url, force_rollback=True) as database:
        await create(database, notes)
        for text in "abc":

            async def add(text: str = text) -> None:
                async with database.transaction():
                    await _add(database, text)

            await asyncio.create_task(add())
        return await database.fetch_val(COUNT)


async def concurrent_transactions_that_overlap(world: World) -> Any:
    """The first to begin is the first to end: for a stack of savepoints that is the wrong order."""
    async with world.Database(world.url, force_rollback=True) as database:
        await create(database, notes)
        begun = [asyncio.Event(), asyncio.Event()]

        async def first() -> None:
            async with database.transaction():
                begun[0].set()
                await _add(database, "first")
                await asyncio.wait({asyncio.ensure_future(begun[1].wait())}, timeout=0.5)

        async def second() -> None:
            await begun[0].wait()
            async with database.transaction():
                begun[1].set()
                await _add(database, "second")
                await asyncio.sleep(0.2)

        async with asyncio.timeout(3):
            outcomes = await asyncio.gather(first(), second(), return_exceptions=True)
        return [type(outcome).__name__ for outcome in outcomes]


async def concurrent_transactions_by_gather(world: World) -> Any:
    async with world.Database(world.url, force_rollback=True) as database:

        async def work() -> Any:
            async with database.transaction():
                return await database.fetch_val("SELECT 1")

        async with asyncio.timeout(3):
            outcomes = await asyncio.gather(*(work() for _ in range(4)), return_exceptions=True)
        return outcomes if all(outcome == 1 for outcome in outcomes) else "failures"


async def iterate_on_the_one_connection(world: World) -> Any:
    async with world.Database(world.url, force_rollback=True) as database:
        await create(database, notes)
        await _add(database, "a")
        return [row.text async for row in database.iterate(notes.select())]


async def disconnect_and_is_connected(world: World) -> Any:
    database = world.Database(world.url, force_rollback=True)
    seen = [database.is_connected]
    await database.connect()
    await database.connect()
    seen.append(database.is_connected)
    await database.disconnect()
    await database.disconnect()
    seen.append(database.is_connected)
    return seen


async def query_before_connect(world: World) -> Any:
    await _set_up(world)
    database = world.Database(world.url, force_rollback=True)
    outcome = await attempt(_add(database))
    await database.disconnect()
    async with world.Database(world.url) as plain:
        return outcome, await plain.fetch_val(COUNT)


async def handle_made_at_import_and_used_in_one_loop_after_another(world: World) -> Any:
    await _set_up(world)
    database = world.Database(world.url, force_rollback=True)

    async def test() -> Any:
        async with database:
            await _add(database)
            return await database.fetch_val(COUNT)

    seen: list[Any] = []

    def tests() -> None:
        seen.extend(asyncio.run(attempt(test())) for _ in range(3))

    thread = threading.Thread(target=tests, daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, 15)
    return seen


async def connected_here_and_used_from_a_thread_with_a_loop_of_its_own(world: World) -> Any:
    """A Starlette `TestClient`: the application runs in another thread and loop than the test."""
    await _set_up(world)
    database = world.Database(world.url, force_rollback=True)
    await database.connect()
    await _add(database, "by the test")
    seen: list[Any] = []

    def client() -> None:
        async def request() -> Any:
            before = await database.fetch_val(COUNT)
            await _add(database, "by the application")
            return before

        seen.append(asyncio.run(attempt(request(), timeout=5)))

    thread = threading.Thread(target=client, daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, 8)
    seen.append(await attempt(database.fetch_val(COUNT), timeout=3))
    try:
        async with asyncio.timeout(3):
            await database.disconnect()
    except Exception as error:  # noqa: BLE001 (whatever is raised is the outcome)
        seen.append(type(error).__name__)
    async with world.Database(world.url) as plain:
        seen.append(await attempt(plain.fetch_val(COUNT), timeout=3))
    return seen


async def connected_in_the_loop_of_the_client(world: World) -> Any:
    """A `TestClient` used as a context manager: start-up, requests and shutdown share a loop."""
    await _set_up(world)
    database = world.Database(world.url, force_rollback=True)
    seen: list[Any] = []

    def client() -> None:
        with asyncio.Runner() as runner:
            runner.run(database.connect())
            runner.run(_add(database))
            seen.append(runner.run(database.fetch_val(COUNT)))
            runner.run(database.disconnect())

    for _ in range(2):
        thread = threading.Thread(target=client, daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, 8)
    return seen
