"""The same few calls on a pool of each library, with the same limits: for ``docs/explanation/reliability.md``."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECT, STATEMENT, ACQUIRE = 2, 3, 4  # seconds, where a library knows such a limit
MOST = 2  # connections of each pool


class Peer(Protocol):
    """A pool of a library; it connects with the first call."""

    async def ask(self, query: str) -> object:
        """Give the first value of a query, as one does it with this library."""

    async def send(self, value: str) -> object:
        """Send a long parameter."""

    async def commit(self, query: str, *, fails: bool = False) -> None:
        """Do something in a transaction; the block of one that fails raises a LookupError."""

    def in_use(self) -> int:
        """Count the places that are taken."""

    async def close(self) -> None:
        """Close it."""


class Loopsafe:
    """Ours, on asyncpg or psycopg."""

    driver = "asyncpg"

    def __init__(self, url: str) -> None:
        from loopsafe_db import Database, Timeouts

        url = url.replace("postgresql:", f"postgresql+{self.driver}:", 1)
        self._db = Database(url, max_size=MOST, timeouts=Timeouts(CONNECT, ACQUIRE, STATEMENT))

    async def ask(self, query: str) -> object:
        return await self._db.fetch_val(query)

    async def send(self, value: str) -> object:
        return await self._db.fetch_val("SELECT length(:value)", {"value": value})

    async def commit(self, query: str, *, fails: bool = False) -> None:
        async with self._db.transaction():
            await self._db.execute(query)
            _end(fails=fails)

    def in_use(self) -> int:
        return self._db.stats().in_use

    async def close(self) -> None:
        await self._db.disconnect()


class LoopsafeOnPsycopg(Loopsafe):
    """Ours, on psycopg."""

    driver = "psycopg"


class AsyncpgPool:
    """asyncpg's own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: Any = None

    async def _acquire(self) -> Any:
        import asyncpg

        if self._pool is None:
            self._pool = await asyncpg.create_pool(
                self._url, min_size=0, max_size=MOST, timeout=CONNECT, command_timeout=STATEMENT
            )
        return self._pool.acquire(timeout=ACQUIRE)

    async def ask(self, query: str) -> object:
        async with await self._acquire() as connection:
            return await connection.fetchval(query)

    async def send(self, value: str) -> object:
        async with await self._acquire() as connection:
            return await connection.fetchval("SELECT length($1)", value)

    async def commit(self, query: str, *, fails: bool = False) -> None:
        async with await self._acquire() as connection, connection.transaction():
            await connection.execute(query)
            _end(fails=fails)

    def in_use(self) -> int:
        pool: Any = self._pool
        return 0 if pool is None else int(pool.get_size() - pool.get_idle_size())

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()


class SQLAlchemyEngine:
    """SQLAlchemy's engine on asyncpg."""

    def __init__(self, url: str) -> None:
        from sqlalchemy import text
        from sqlalchemy.ext.asyncio import create_async_engine

        self._text = text
        self._engine = create_async_engine(
            url.replace("postgresql:", "postgresql+asyncpg:", 1).replace("sslmode=disable", ""),
            pool_size=MOST,
            max_overflow=0,
            pool_timeout=ACQUIRE,
            connect_args={"timeout": CONNECT, "command_timeout": STATEMENT, "ssl": False},
        )

    async def ask(self, query: str) -> object:
        async with self._engine.connect() as connection:
            return (await connection.execute(self._text(query))).scalar()

    async def send(self, value: str) -> object:
        async with self._engine.connect() as connection:
            query = self._text("SELECT length(CAST(:value AS text))")
            return (await connection.execute(query, {"value": value})).scalar()

    async def commit(self, query: str, *, fails: bool = False) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(self._text(query))
            _end(fails=fails)

    def in_use(self) -> int:
        pool: Any = self._engine.pool
        return int(pool.checkedout())

    async def close(self) -> None:
        await self._engine.dispose()


class PsycopgPool:
    """psycopg's own; of its limits that of a statement is the server's."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: Any = None

    async def _connection(self) -> Any:
        from psycopg_pool import AsyncConnectionPool

        if self._pool is None:
            limits = {"connect_timeout": CONNECT, "options": f"-c statement_timeout={STATEMENT}s"}
            self._pool = pool = AsyncConnectionPool(
                self._url, kwargs=limits, min_size=0, max_size=MOST, timeout=ACQUIRE, open=False
            )
            await pool.open()
        return self._pool.connection()

    async def ask(self, query: str) -> object:
        async with await self._connection() as connection:
            return (await (await connection.execute(query)).fetchone())[0]

    async def send(self, value: str) -> object:
        async with await self._connection() as connection:
            return await connection.execute("SELECT length(%s)", (value,))

    async def commit(self, query: str, *, fails: bool = False) -> None:
        async with await self._connection() as connection:
            await connection.execute(query)
            _end(fails=fails)

    def in_use(self) -> int:
        if self._pool is None:
            return 0
        found = self._pool.get_stats()
        return int(found.get("pool_size", 0) - found.get("pool_available", 0))

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()


class EncodeDatabases:
    """The package `databases`, on asyncpg's pool."""

    def __init__(self, url: str) -> None:
        import databases  # type: ignore[import-not-found]

        self._db = databases.Database(
            url.replace("?sslmode=disable", ""),
            min_size=0,
            max_size=MOST,
            timeout=CONNECT,
            command_timeout=STATEMENT,
            ssl=False,
        )

    async def _open(self) -> Any:
        if not self._db.is_connected:
            await self._db.connect()
        return self._db

    async def ask(self, query: str) -> object:
        return await (await self._open()).fetch_val(query)

    async def send(self, value: str) -> object:
        return await (await self._open()).fetch_val("SELECT length(:value)", {"value": value})

    async def commit(self, query: str, *, fails: bool = False) -> None:
        database = await self._open()
        async with database.transaction():
            await database.execute(query)
            _end(fails=fails)

    def in_use(self) -> int:
        pool = getattr(self._db._backend, "_pool", None)  # noqa: SLF001
        return 0 if pool is None else int(pool.get_size() - pool.get_idle_size())

    async def close(self) -> None:
        with suppress(AssertionError):  # it never came to connect
            await self._db.disconnect()


def _end(*, fails: bool) -> None:
    if fails:
        raise LookupError


PEERS: dict[str, Callable[[str], Peer]] = {
    "ours, asyncpg": Loopsafe,
    "ours, psycopg": LoopsafeOnPsycopg,
    "asyncpg.Pool": AsyncpgPool,
    "SQLAlchemy": SQLAlchemyEngine,
    "psycopg_pool": PsycopgPool,
    "databases": EncodeDatabases,
}
OURS = tuple(PEERS)[:2]
