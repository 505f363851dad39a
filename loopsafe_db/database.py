"""Database: the handle. A URL, options and a scope; no socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loopsafe_db import connection as connections
from loopsafe_db.drivers.base import TransactionOptions
from loopsafe_db.engines.factory import connect_options
from loopsafe_db.engines.options import DatabaseOptions, PoolLimits, Timeouts
from loopsafe_db.engines.pool import ConnectionPool, PoolStats
from loopsafe_db.engines.scopes import PerLoop, Scope
from loopsafe_db.engines.url import parse_url
from loopsafe_db.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    from sqlalchemy import URL

    from loopsafe_db.connection import Connection
    from loopsafe_db.queries import Query
    from loopsafe_db.records import Record


class Database:
    """A handle on a database; should live as long as your program does.

    Keep it in a module global, make it at import, before a fork, in any thread; it pickles. Each call finds
    the pool of the process and event loop that it is made in. Nothing has to be opened or closed: the first
    use connects, and a pool ends with its loop.

    A call joins the transaction that its asyncio task has open; otherwise it uses a connection of its own.
    A query is text with ``:name`` parameters, or any SQLAlchemy Core clause. `timeout` is in seconds, None
    takes ``timeouts.statement``.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        pool: PoolLimits | None = None,
        timeouts: Timeouts | None = None,
        application_name: str | None = None,
    ) -> None:
        """Note where the database is; opens nothing.

        Args:
            url: As SQLAlchemy writes it; ``postgresql://`` is asyncpg, ``sqlite://`` aiosqlite.
            pool: How many connections each loop may open.
            timeouts: Seconds for connecting, acquiring and statements.
            application_name: How the server lists the sessions.

        Raises:
            ConfigurationError: The URL cannot be read, or has no driver.
        """
        self._apply(
            DatabaseOptions(
                parse_url(url), pool or PoolLimits(), timeouts or Timeouts(), application_name
            )
        )

    def _apply(self, options: DatabaseOptions) -> None:
        connect_options(options)  # refuses what cannot work, here and now
        self._options = options
        self._scope: Scope = PerLoop(options)

    def __repr__(self) -> str:
        return f"<Database {self._options.url!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._options)

    @property
    def url(self) -> URL:
        """SQLAlchemy's URL; ``repr()`` of it masks the password."""
        return self._options.url

    @property
    def is_connected(self) -> bool:
        """Whether the pool of this loop has opened a connection and was not disconnected since."""
        pool = self._scope.peek()
        return pool is not None and pool.stats().idle + pool.stats().in_use > 0

    async def connect(self) -> None:
        """Open a connection now, to fail early. Never needed."""
        async with self._borrow():
            pass

    async def disconnect(self) -> None:
        """Close the pool of this loop; other loops keep theirs, and a later call opens another."""
        await self._scope.aclose()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def fetch_all(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> list[Record]:
        """Give every row of a query."""
        async with self._borrow() as connection:
            return await connection.fetch_all(query, values, timeout=timeout)

    async def fetch_one(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Record | None:
        """Give the first row of a query, or None."""
        async with self._borrow() as connection:
            return await connection.fetch_one(query, values, timeout=timeout)

    async def fetch_val(
        self,
        query: Query,
        values: Mapping[str, Any] | None = None,
        column: int | str = 0,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Give one column, by position or name, of the first row; None if there is no row."""
        async with self._borrow() as connection:
            return await connection.fetch_val(query, values, column, timeout=timeout)

    async def execute(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """Run a statement.

        Returns:
            The first value of the first row if rows come back (``RETURNING``), the primary key of a Core
            insert, else the rows affected, or None if the driver cannot tell.
        """
        async with self._borrow() as connection:
            return await connection.execute(query, values, timeout=timeout)

    async def execute_many(
        self, query: Query, values: Sequence[Mapping[str, Any]], *, timeout: float | None = None
    ) -> int | None:
        """Apply one statement to many mappings of values: all of them or none.

        Returns:
            Rows affected, or None if the driver cannot tell (asyncpg cannot).
        """
        async with self._borrow() as connection:
            return await connection.execute_many(query, values, timeout=timeout)

    async def iterate(
        self, query: Query, values: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Record]:
        """Give rows as they are needed, by a server-side cursor; holds a connection until it ends."""
        async with self._borrow() as connection:
            async for row in connection.iterate(query, values):
                yield row

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """Check a connection out for the length of an ``async with``.

        Inside a transaction of this task it is that transaction's connection.
        """
        return self._borrow()

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
    ) -> AbstractAsyncContextManager[Connection]:
        """Run a block in a transaction, or in a savepoint if this task has one open.

        Bound to the asyncio task: every call on this handle in the same task joins it. Tasks started inside
        get connections of their own, unless they take this one by ``connection.share()``.
        """
        return _InTransaction(self._borrow(), TransactionOptions(isolation, readonly, deferrable))

    def stats(self) -> PoolStats:
        """Sum up this handle's live pools in this process."""
        return _sum(pool.stats() for pool in self._scope.pools())

    def _borrow(self) -> _Borrowed:
        return _Borrowed(self._scope)


class _Borrowed:
    """A connection for one block. No generator: one left half-way at exit would be run by the loop."""

    __slots__ = ("_own", "_scope")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._own: Connection | None = None

    async def __aenter__(self) -> Connection:
        pool = self._scope.pool()
        if pool.bound and (joined := _bound(pool)) is not None:
            return joined
        self._own = await connections.acquire(pool)
        return self._own

    async def __aexit__(self, *_: object) -> None:
        if self._own is not None:
            await self._own.release()


class _InTransaction:
    """A borrowed connection with a transaction on it."""

    __slots__ = ("_borrowed", "_options", "_transaction")

    def __init__(self, borrowed: _Borrowed, options: TransactionOptions) -> None:
        self._borrowed, self._options = borrowed, options

    async def __aenter__(self) -> Connection:
        connection = await self._borrowed.__aenter__()
        try:
            self._transaction = await Transaction(connection, self._options).__aenter__()
        except BaseException:
            await self._borrowed.__aexit__()
            raise
        return connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._transaction.__aexit__(kind, error, trace)
        finally:
            await self._borrowed.__aexit__()


def _bound(pool: ConnectionPool) -> Connection | None:
    stack = pool.bound.get(connections._current_task())  # noqa: SLF001
    return stack[-1] if stack else None


def _restore(kind: type[Database], options: DatabaseOptions) -> Database:
    database = kind.__new__(kind)
    database._apply(options)  # noqa: SLF001
    return database


def _sum(stats: Iterable[PoolStats]) -> PoolStats:
    total = PoolStats()
    for item in stats:
        total.add(item)
    return total
