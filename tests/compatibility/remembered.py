"""What the next user of a connection meets: ``python -m tests.compatibility.remembered LIBRARY URL``.

Prints JSON: for each kind of state ``kept``, ``reset`` or ``closed``, and of a raw connection that was kept whether it
``works``. The same for every library, against a real server.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

# What is to be remembered, and one way to do it.
KINDS = {
    "a setting, `SET`": "SET statement_timeout = '54321ms'",
    "`search_path`": "SET search_path = pg_catalog",
    "a variable of your own, `set_config(…, false)`": "SELECT set_config('my.tenant', 'a', false)",
    "`SET ROLE`": "SET ROLE pg_monitor",
    "`SET SESSION AUTHORIZATION`": "SET SESSION AUTHORIZATION pg_monitor",
    "`LISTEN`": "LISTEN mine",
    "a session's advisory lock": "SELECT pg_advisory_lock(1)",
    "a cursor `WITH HOLD`": "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
    "a temporary table": "CREATE TEMPORARY TABLE mine (x int)",
    "a statement prepared by text": "PREPARE mine AS SELECT 1",
    "a setting made in a block `DO`": "DO $$ BEGIN PERFORM set_config('my.tenant', 'a', false); END $$",
    "a setting made in a function of yours": "SELECT become_tenant()",
    "a library, `LOAD`": "LOAD 'auto_explain'",
}
KEPT = "the raw connection itself, used after its block"
_FUNCTION = """
CREATE OR REPLACE FUNCTION become_tenant() RETURNS text LANGUAGE sql
AS $$ SELECT set_config('my.tenant', 'a', false) $$
"""
_SESSION = """
SELECT pg_backend_pid(), current_setting('statement_timeout'), current_setting('search_path'),
    coalesce(current_setting('my.tenant', true), ''), current_user, session_user,
    (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_cursors WHERE is_holdable),
    (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
    (SELECT count(*) FROM pg_prepared_statements WHERE from_sql),
    current_setting('auto_explain.log_nested_statements', true) IS NOT NULL
"""


class User:
    """Who has a connection of a pool, for a block: what it asks, and the driver's own connection."""

    def __init__(self, ask: Callable[[str], Any], raw: Any) -> None:
        self.ask, self.raw = ask, raw


@asynccontextmanager
async def loopsafe_db(url: str) -> AsyncIterator[Any]:
    from loopsafe_db import Database

    @asynccontextmanager
    async def lend() -> AsyncIterator[User]:
        async with database.connection() as connection:
            yield User(connection.fetch_one, lambda: connection.raw_connection)

    async with Database(url, max_size=1) as database:
        yield lend


@asynccontextmanager
async def asyncpg_pool(url: str) -> AsyncIterator[Any]:
    import asyncpg

    @asynccontextmanager
    async def lend() -> AsyncIterator[User]:
        async with pool.acquire() as connection:
            yield User(connection.fetchrow, lambda: connection)

    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        yield lend


@asynccontextmanager
async def psycopg_pool(url: str) -> AsyncIterator[Any]:
    from psycopg_pool import AsyncConnectionPool

    @asynccontextmanager
    async def lend() -> AsyncIterator[User]:
        async with pool.connection() as connection:

            async def ask(sql: str) -> Any:
                cursor = await connection.execute(sql.encode())
                return await cursor.fetchone() if cursor.description else None

            yield User(ask, lambda: connection)

    async with AsyncConnectionPool(url, min_size=1, max_size=1, open=False) as pool:
        yield lend


@asynccontextmanager
async def sqlalchemy(url: str) -> AsyncIterator[Any]:
    from sqlalchemy.ext.asyncio import create_async_engine

    @asynccontextmanager
    async def lend() -> AsyncIterator[User]:
        async with engine.begin() as connection:

            async def ask(sql: str) -> Any:
                result = await connection.exec_driver_sql(sql)
                return result.fetchone() if result.returns_rows else None

            proxy = await connection.get_raw_connection()
            raw = proxy.driver_connection
            yield User(ask, lambda: raw)

    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+asyncpg://"), pool_size=1, max_overflow=0
    )
    try:
        yield lend
    finally:
        await engine.dispose()


@asynccontextmanager
async def databases(url: str) -> AsyncIterator[Any]:
    import databases as package  # type: ignore[import-not-found]

    @asynccontextmanager
    async def lend() -> AsyncIterator[User]:
        async with database.connection() as connection:

            async def ask(sql: str) -> Any:
                row = await connection.fetch_one(sql)
                return None if row is None else tuple(row._mapping.values())  # noqa: SLF001

            yield User(ask, lambda: connection.raw_connection)

    async with package.Database(url, min_size=1, max_size=1) as database:
        yield lend


LIBRARIES = {
    "loopsafe_db": loopsafe_db,
    "asyncpg.Pool": asyncpg_pool,
    "psycopg_pool": psycopg_pool,
    "SQLAlchemy": sqlalchemy,
    "databases": databases,
}


async def what_is_met(library: str, url: str, sql: str) -> str:
    """Tell what the next user meets of what one has sent."""
    async with LIBRARIES[library](url) as lend:
        async with lend() as user:
            before = tuple(await user.ask(_SESSION))
        async with lend() as user:
            await user.ask(sql)
        async with lend() as user:
            after = tuple(await user.ask(_SESSION))
    if after[0] != before[0]:
        return "closed"
    return "reset" if after == before else "kept"


async def is_refused(library: str, url: str) -> str:
    """Tell whether a raw connection may be used that is another's by now."""
    async with LIBRARIES[library](url) as lend:
        async with lend() as user:
            raw = user.raw()
        async with lend():
            try:
                await raw.execute("SELECT 1")
            except Exception:  # noqa: BLE001 (each has its own)
                return "refused"
            return "works"


async def look(library: str, url: str) -> dict[str, str]:
    async with LIBRARIES[library](url) as lend, lend() as user:
        await user.ask(_FUNCTION)
    met = {kind: await what_is_met(library, url, sql) for kind, sql in KINDS.items()}
    return {**met, KEPT: await is_refused(library, url)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(look(*sys.argv[1:]))))
