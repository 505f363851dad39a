"""Threads with loops of their own, while the first loop runs, or is blocked, or is gone: never a deadlock."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from tests.compatibility.scenarios.tables import notes
from tests.compatibility.world import World, attempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATIENCE = 5.0  # seconds for a thread; then it is left behind


def _in_thread(work: Callable[[], Awaitable[Any]]) -> tuple[threading.Thread, list[Any]]:
    """Start a thread that runs `work` in a loop of its own; give what will hold the outcome."""
    outcomes: list[Any] = []

    def run() -> None:
        outcomes.append(asyncio.run(attempt(work(), timeout=PATIENCE - 1)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcomes


async def _joined(started: tuple[threading.Thread, list[Any]]) -> Any:
    """Wait for a thread while this loop runs."""
    thread, outcomes = started
    await asyncio.to_thread(thread.join, PATIENCE)
    return outcomes[0] if outcomes else "never came back"


def _joined_blocking(started: tuple[threading.Thread, list[Any]]) -> Any:
    """Wait for a thread while this loop is blocked."""
    thread, outcomes = started
    thread.join(PATIENCE)
    return outcomes[0] if outcomes else "never came back"


async def _leave(database: Any) -> str:
    """Disconnect, with patience."""
    try:
        async with asyncio.timeout(3):
            await database.disconnect()
    except Exception as error:  # noqa: BLE001 (whatever is raised is the outcome)
        return type(error).__name__
    return "left"


async def query_while_the_first_loop_runs(world: World) -> Any:
    database = world.Database(world.url)
    await database.connect()
    seen = await _joined(_in_thread(lambda: database.fetch_val("SELECT 1")))
    return seen, await attempt(database.fetch_val("SELECT 2"), 3), await _leave(database)


async def query_while_the_first_loop_is_blocked(world: World) -> Any:
    database = world.Database(world.url)
    await database.connect()
    seen = _joined_blocking(_in_thread(lambda: database.fetch_val("SELECT 1")))
    return seen, await attempt(database.fetch_val("SELECT 2"), 3), await _leave(database)


async def query_while_the_first_loop_holds_a_transaction(world: World) -> Any:
    database = world.Database(world.url)
    await database.connect()
    async with database.transaction():
        await database.fetch_val("SELECT 1")
        seen = _joined_blocking(_in_thread(lambda: database.fetch_val("SELECT 1")))
    return seen, await _leave(database)


async def transactions_in_several_threads_at_once(world: World) -> Any:
    async with world.Database(world.url) as setting_up:
        await setting_up.execute("CREATE TABLE notes (id INTEGER, text VARCHAR, completed BOOLEAN)")
    database = world.Database(world.url)
    await database.connect()

    async def write() -> Any:
        for _ in range(5):
            async with database.transaction():
                await database.execute("INSERT INTO notes (id, text) VALUES (1, 'x')")
        return "done"

    seen = [await _joined(one) for one in [_in_thread(write) for _ in range(4)]]
    seen.append(await attempt(database.fetch_val("SELECT count(*) FROM notes"), 3))
    return seen, await _leave(database)


async def connect_and_disconnect_in_a_thread_leave_the_first_loop_alone(world: World) -> Any:
    database = world.Database(world.url)
    await database.connect()

    async def other() -> Any:
        await database.connect()
        value = await database.fetch_val("SELECT 1")
        await database.disconnect()
        return value

    seen = await _joined(_in_thread(other))
    return seen, await attempt(database.fetch_val("SELECT 2"), 3), await _leave(database)


async def disconnect_in_a_thread_during_a_transaction_of_the_first_loop(world: World) -> Any:
    database = world.Database(world.url)
    await database.connect()
    transaction = await database.transaction()
    await database.fetch_val("SELECT 1")
    seen = await _joined(_in_thread(database.disconnect))
    try:
        async with asyncio.timeout(3):
            seen = seen, await database.fetch_val("SELECT 2"), await transaction.commit()
    except Exception as error:  # noqa: BLE001 (whatever is raised is the outcome)
        seen = seen, type(error).__name__
    return seen, await _leave(database)


async def one_loop_after_another(world: World) -> Any:
    """A worker that calls `asyncio.run` per job, and never disconnects."""
    database = world.Database(world.url)

    async def job() -> Any:
        await database.connect()
        return await database.fetch_val("SELECT 1")

    return [await _joined(_in_thread(job)) for _ in range(3)]


async def one_loop_after_another_with_disconnect(world: World) -> Any:
    """A worker that calls `asyncio.run` per job, with connect and disconnect in each."""
    database = world.Database(world.url)

    async def job() -> Any:
        async with database:
            return await database.fetch_val("SELECT 1")

    return [await _joined(_in_thread(job)) for _ in range(3)]


async def a_handle_made_in_a_thread(world: World) -> Any:
    async def work() -> Any:
        async with world.database(notes) as database:
            await database.execute(notes.insert().values(text="x"))
            return await database.fetch_val("SELECT text FROM notes")

    return await _joined(_in_thread(work))
