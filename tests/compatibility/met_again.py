"""Who meets a handle again in another loop, thread or process: ``python -m tests.compatibility.met_again LIBRARY URL``.

Prints JSON: what became of it, for each of `PLACES` and `EVENTS`. The same for every library, against a real server.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    Meanwhile = Callable[[], Awaitable[object]]  # awaited with the connection in hand

    Server = Callable[[str, object], Awaitable[Any]]  # a query with one parameter

    class Ask(Protocol):
        """Has a connection, awaits something, and sends a query; gives the server process that answered."""

        async def __call__(self, meanwhile: Meanwhile, query: str = ...) -> int: ...


_BACKEND = "SELECT pg_backend_pid()"
_LONG = f"SELECT pg_backend_pid() FROM pg_sleep(60) /* {os.getpid()} */"
_WHO = "SELECT pid FROM pg_stat_activity WHERE query = $1 AND state = 'active'"
_MOST = 3  # connections of each pool
_PATIENCE = 10  # seconds for what takes milliseconds, or never ends


def loopsafe_db(url: str) -> Ask:
    from loopsafe_db import Database

    database = Database(url, max_size=_MOST)

    async def ask(meanwhile: Meanwhile, query: str = _BACKEND) -> int:
        async with database.connection() as connection:
            await meanwhile()
            return int(await connection.fetch_val(query))

    return ask


def asyncpg_pool(url: str) -> Ask:
    import asyncpg

    pool: Any = None

    async def ask(meanwhile: Meanwhile, query: str = _BACKEND) -> int:
        nonlocal pool
        pool = pool or await asyncpg.create_pool(url, min_size=1, max_size=_MOST)
        async with pool.acquire() as connection:
            await meanwhile()
            return int(await connection.fetchval(query))

    return ask


def psycopg_pool(url: str) -> Ask:
    from psycopg_pool import AsyncConnectionPool

    pool: Any = None  # it can only be made where a loop runs

    async def ask(meanwhile: Meanwhile, query: str = _BACKEND) -> int:
        nonlocal pool
        if pool is None:
            pool = AsyncConnectionPool(url, min_size=1, max_size=_MOST, open=False, timeout=2)
            await pool.open(
                wait=True
            )  # a worker that is cancelled while it connects goes on for ever
        async with pool.connection() as connection:
            await meanwhile()
            cursor = await connection.execute(query)
            return int((await cursor.fetchone())[0])

    return ask


def sqlalchemy(url: str) -> Ask:
    return _engine(url, pool_size=_MOST, max_overflow=0)


def sqlalchemy_without_a_pool(url: str) -> Ask:
    from sqlalchemy import NullPool

    return _engine(url, poolclass=NullPool)


def _engine(url: str, **options: Any) -> Ask:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url.replace("postgresql", "postgresql+asyncpg", 1), **options)

    async def ask(meanwhile: Meanwhile, query: str = _BACKEND) -> int:
        async with engine.connect() as connection:
            await meanwhile()
            return int((await connection.execute(text(query))).scalar_one())

    return ask


def databases(url: str) -> Ask:
    from databases import Database  # type: ignore[import-not-found]

    database = Database(url, min_size=1, max_size=_MOST)

    async def ask(meanwhile: Meanwhile, query: str = _BACKEND) -> int:
        if not database.is_connected:
            await database.connect()
        async with database.connection() as connection:
            await meanwhile()
            return int(await connection.fetch_val(query))

    return ask


LIBRARIES = {
    "loopsafe_db": loopsafe_db,
    "asyncpg.Pool": asyncpg_pool,
    "psycopg_pool": psycopg_pool,
    "SQLAlchemy": sqlalchemy,
    "databases": databases,
}

WITHOUT_A_POOL = "SQLAlchemy with NullPool"


async def _together(ask: Ask, tasks: int) -> list[int]:
    """Have that many tasks ask, each when all have a connection."""
    await ask(_nothing)  # a pool that is made here is made once
    all_have_one = asyncio.Barrier(tasks)
    async with asyncio.timeout(_PATIENCE):
        return await asyncio.gather(*(ask(all_have_one.wait) for _ in range(tasks)))


async def _nothing() -> None:
    pass


def _run(
    ask: Ask, tasks: int = 1, run: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run
) -> list[int]:
    """Ask in a loop of one's own; nothing if that fails in whichever way."""
    try:
        pids: list[int] = run(_together(ask, tasks))
    except Exception as error:  # noqa: BLE001  (that it fails is the outcome)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return []
    return pids


def _left_open(main: Coroutine[Any, Any, Any]) -> Any:
    """Run in a loop that is not closed: psycopg_pool's worker that is cancelled while it connects goes on for ever."""
    return asyncio.new_event_loop().run_until_complete(main)


def in_the_next_run(ask: Ask) -> str:
    _run(ask)
    return "works" if _run(ask, run=_left_open) else "fails"


def by_many_tasks_of_the_next_run(ask: Ask) -> str:
    _run(ask)
    return "works" if _run(ask, _MOST, _left_open) else "fails"


def in_a_second_thread(ask: Ask) -> str:
    found: list[int] = []

    async def main() -> None:
        await ask(_nothing)
        thread = threading.Thread(target=lambda: found.extend(_run(ask)))
        thread.start()
        await asyncio.to_thread(thread.join)

    asyncio.run(main())
    return "works" if found else "fails"


def in_a_forked_child(ask: Ask) -> str:
    parents = _run(ask, _MOST)
    reading, writing = os.pipe()
    if not os.fork():
        os.write(writing, json.dumps(_run(ask)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        found = json.loads(answer.read())
    if not found:
        return "fails"
    return "on the parent's connection" if found[0] in parents else "works"


def of_a_cancelled_query(ask: Ask, server: Server) -> str:
    """Cancel the task that waits for it; look what the server does, and who answers next."""

    async def main() -> str:
        await ask(_nothing)
        task = asyncio.create_task(ask(_nothing, _LONG))
        while (pid := await server(_WHO, _LONG)) is None and not task.done():  # noqa: ASYNC110 (no event)
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task], timeout=_PATIENCE)
        if await server(_WHO, _LONG) is not None:
            return "goes on"
        return "stopped, and kept" if pid in await _together(ask, _MOST) else "stopped, and lost"

    return str(_left_open(main()))


def after_the_server_has_ended_them(ask: Ask, server: Server) -> str:
    async def main() -> str:
        for pid in await _together(ask, _MOST):
            await server("SELECT pg_terminate_backend($1, 5000)", pid)
        try:
            await ask(_nothing)
        except Exception as error:  # noqa: BLE001  (that it fails is the outcome)
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return "fails once"
        return "works"

    return str(_left_open(main()))


PLACES = {
    "the handle in the next `asyncio.run`": in_the_next_run,
    "there, with three connections in use at once": by_many_tasks_of_the_next_run,
    "in a second thread with a loop": in_a_second_thread,
    "in a forked child": in_a_forked_child,
}
EVENTS = {
    "a query whose task is cancelled, and its connection": of_a_cancelled_query,
    "idle connections that the server has ended": after_the_server_has_ended_them,
}


def server_at(url: str) -> Server:
    """Give what asks the server on a connection of its own."""

    async def ask(query: str, value: object) -> Any:
        import asyncpg

        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(query, value)
        finally:
            await connection.close()

    return ask


def main() -> None:
    """Print what becomes of a handle of its own in each place."""
    library, url = sys.argv[1:]
    make = {**LIBRARIES, WITHOUT_A_POOL: sqlalchemy_without_a_pool}[library]
    found = {place: meet(make(url)) for place, meet in PLACES.items()}
    found |= {event: see(make(url), server_at(url)) for event, see in EVENTS.items()}
    print(json.dumps(found), flush=True)
    os._exit(0)  # what some of them have left in loops that are gone is not waited for


if __name__ == "__main__":
    main()
