"""Connection: one checked-out connection, owned by one asyncio task."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.util import greenlet_spawn

from loopsafe_db._runtime.registry import current_key
from loopsafe_db.drivers.base import TransactionOptions
from loopsafe_db.errors import (
    ForeignLoopError,
    ForeignTaskError,
    QueryError,
    ReleasedError,
    TransactionError,
)
from loopsafe_db.queries import CompiledText, Query, compile_text
from loopsafe_db.records import Record, RecordKeys, TupleRecord
from loopsafe_db.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence

    from loopsafe_db.drivers.base import DriverTransaction
    from loopsafe_db.engines.pool import ConnectionPool, Lease

T = TypeVar("T")
_PACKAGE = os.path.dirname(__file__) + os.sep
_SKIPPED = (_PACKAGE, os.path.dirname(asyncio.__file__) + os.sep, "contextlib.py")


class Connection:
    """A connection for the length of one ``async with``; made by `Database.connection`.

    Only the asyncio task that took it may use it, or one that it was handed to by `share`.
    """

    def __init__(self, pool: ConnectionPool, lease: Lease, owner: asyncio.Task[Any]) -> None:
        self._pool, self._lease, self._owner = pool, lease, owner
        self._driver = pool.driver
        self._sharers: set[asyncio.Task[Any]] = set()
        self._turn: asyncio.Lock | None = None  # made when shared: then operations take turns
        self._transactions: list[DriverTransaction] = []
        self._released = False
        self._sqlalchemy: sa.Connection | None = None

    def __repr__(self) -> str:
        state = "released" if self._released else "in use"
        return f"<Connection {self._driver.traits.name} of {self._pool.key}, {state}>"

    @property
    def pool(self) -> ConnectionPool:
        """The pool that lent it."""
        return self._pool

    @property
    def raw_connection(self) -> Any:
        """The driver's own connection; yours while this one is checked out."""
        self._check()
        return self._lease.raw

    async def fetch_all(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> list[Record]:
        """Give every row, in the server's order. See `Database.fetch_all`."""
        if isinstance(query, str):
            compiled, args = self._compile(query, values)
            return await self._run(
                self._driver.fetch_all(self._lease.raw, compiled.sql, args, self._limit(timeout))
            )
        return (await self._run(self._clause(query, values, timeout)))[0]

    async def fetch_one(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Record | None:
        """Give the first row, or None. See `Database.fetch_one`."""
        if isinstance(query, str):
            compiled, args = self._compile(query, values)
            return await self._run(
                self._driver.fetch_one(self._lease.raw, compiled.sql, args, self._limit(timeout))
            )
        rows, _ = await self._run(self._clause(query, values, timeout))
        return rows[0] if rows else None

    async def fetch_val(
        self,
        query: Query,
        values: Mapping[str, Any] | None = None,
        column: int | str = 0,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Give one value of the first row, or None if there is no row. See `Database.fetch_val`."""
        row = await self.fetch_one(query, values, timeout=timeout)
        if row is None:
            return None
        try:
            return row[column]
        except (IndexError, KeyError):
            raise QueryError(
                f"the row has no column {column!r}; it has {list(row.keys())}"
            ) from None

    async def execute(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """Run a statement; give a value it returns, or the rows affected. See `Database.execute`."""
        if isinstance(query, str):
            compiled, args = self._compile(query, values)
            return await self._run(
                self._driver.execute(self._lease.raw, compiled.sql, args, self._limit(timeout))
            )
        rows, outcome = await self._run(self._clause(query, values, timeout))
        return rows[0][0] if rows else outcome

    async def execute_many(
        self, query: Query, values: Sequence[Mapping[str, Any]], *, timeout: float | None = None
    ) -> int | None:
        """Apply one statement to many mappings of values: all or none. See `Database.execute_many`."""
        self._check()
        if not values:
            return 0
        if not isinstance(query, str):
            async with self.transaction():
                return (await self._run(self._clause(query, list(values), timeout)))[1]  # type: ignore[no-any-return]
        compiled = compile_text(query, self._driver.traits.dialect)
        rows = [compiled.arguments(value) for value in values]
        return await self._run(
            self._driver.execute_many(self._lease.raw, compiled.sql, rows, self._limit(timeout))
        )

    async def iterate(
        self, query: Query, values: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Record]:
        """Give rows as they are needed, with flat memory. See `Database.iterate`."""
        if not isinstance(query, str):
            for row in await self.fetch_all(query, values):
                yield row
            return
        compiled, args = self._compile(query, values)
        if self._transactions:
            async for row in self._driver.iterate(self._lease.raw, compiled.sql, args):
                yield row
            return
        async with self.transaction():  # a server-side cursor lives in a transaction
            async for row in self._driver.iterate(self._lease.raw, compiled.sql, args):
                yield row

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
    ) -> Transaction:
        """Make a transaction on this connection; inside another one, a savepoint. See `Database.transaction`."""
        return Transaction(self, TransactionOptions(isolation, readonly, deferrable))

    @asynccontextmanager
    async def share(self) -> AsyncIterator[Connection]:
        """Use this connection, and its transaction, in another asyncio task of the same loop.

        Enter it *in* the other task, inside the owner's block. Operations of both tasks take turns.
        """
        task = _current_task()
        if current_key() != self._pool.key:
            raise ForeignLoopError(repr(self), self._pool.key, current_key(), self._lease.taken_at)
        self._turn = self._turn or asyncio.Lock()
        self._sharers.add(task)
        self._bind(task)
        try:
            yield self
        finally:
            self._sharers.discard(task)
            self._unbind(task)

    # -- what `Transaction` calls

    async def begin(self, options: TransactionOptions) -> None:
        """Begin a transaction, or a savepoint in the one that is open; binds it to the task."""
        if self._transactions and options != TransactionOptions():
            raise TransactionError(
                "isolation, readonly and deferrable belong to the outermost transaction"
            )
        transaction = self._driver.transaction(self._lease.raw, options)
        await self._run(transaction.start())
        if not self._transactions:
            self._bind(self._owner)
        self._transactions.append(transaction)

    async def commit(self) -> None:
        """Commit the innermost transaction."""
        await self._run(self._pop().commit())

    async def rollback(self) -> None:
        """Roll the innermost transaction back; in a forked child, do nothing."""
        transaction = self._pop()
        if self._pool.key.pid == os.getpid():
            await transaction.rollback()

    def doubt(self) -> None:
        """Say that the state of the connection is not known; it is checked or ended at its release."""
        self._lease.doubtful = True

    async def release(self) -> None:
        """Give the connection back to its pool; twice is fine."""
        if self._released or self._pool.key.pid != os.getpid():
            return
        self._released = True
        if self._transactions:
            self._lease.doubtful = True
            self._transactions.clear()
            self._unbind(self._owner)
        await self._pool.release(self._lease)

    # -- below

    def _pop(self) -> DriverTransaction:
        transaction = self._transactions.pop()
        if not self._transactions:
            self._unbind(self._owner)
        return transaction

    def _bind(self, task: asyncio.Task[Any]) -> None:
        self._pool.bound.setdefault(task, []).append(self)

    def _unbind(self, task: asyncio.Task[Any]) -> None:
        stack = self._pool.bound.get(task, [])
        if self in stack:
            stack.remove(self)
        if not stack:
            self._pool.bound.pop(task, None)

    def _check(self) -> None:
        """Refuse any user but the owner, before anything reaches the driver."""
        task = _current_task()
        if task is self._owner and self._pool.key.pid == os.getpid():
            if self._released:
                raise ReleasedError(repr(self), self._lease.taken_at)
            return
        caller = current_key()
        if caller != self._pool.key:
            raise ForeignLoopError(repr(self), self._pool.key, caller, self._lease.taken_at)
        if self._released:
            raise ReleasedError(repr(self), self._lease.taken_at)
        if task not in self._sharers:
            raise ForeignTaskError(
                repr(self), self._owner.get_name(), task.get_name(), self._lease.taken_at
            )

    def _compile(
        self, query: str, values: Mapping[str, Any] | None
    ) -> tuple[CompiledText, Sequence[Any]]:
        self._check()
        compiled = compile_text(query, self._driver.traits.dialect)
        return compiled, compiled.arguments(values)

    def _limit(self, timeout: float | None) -> float | None:
        return self._pool.options.timeouts.statement if timeout is None else timeout

    async def _run(self, operation: Awaitable[T]) -> T:
        """Await one operation of the driver, in turn where shared; an interruption leaves doubt."""
        try:
            if self._turn is None:
                return await operation
            async with self._turn:
                return await operation
        except (asyncio.CancelledError, TimeoutError):
            self._lease.doubtful = True
            raise

    async def _clause(
        self, query: Any, values: Any, timeout: float | None
    ) -> tuple[list[Record], Any]:
        """Run a clause the way SQLAlchemy does it: defaults, types, RETURNING."""
        self._check()
        if not isinstance(query, sa.sql.base.Executable):
            raise QueryError(f"a query is text or a SQLAlchemy clause, not {type(query).__name__}")
        self._lease.used_by_sqlalchemy = True
        try:
            async with asyncio.timeout(self._limit(timeout)):
                return await greenlet_spawn(self._execute_clause, query, values)
        except sa.exc.DBAPIError as error:
            raise self._driver.original(error) from None

    def _execute_clause(self, query: Any, values: Any) -> tuple[list[Record], Any]:
        if self._sqlalchemy is None:
            engine = self._pool.engine.sync_engine
            # Autocommit: transactions are begun and ended by us, for text and clauses alike.
            self._sqlalchemy = sa.Connection(
                engine, connection=self._lease.fairy
            ).execution_options(isolation_level="AUTOCOMMIT")
        result = self._sqlalchemy.execute(query, values or {})
        if not result.returns_rows:
            return [], _outcome(result)
        keys = RecordKeys(tuple(result.keys()))
        rows: list[Record] = [TupleRecord(keys, tuple(row)) for row in result]
        return rows, None if rows else _outcome(result)  # an implicit RETURNING shows no rows


def _outcome(result: Any) -> Any:
    """Give the primary key of a one-row insert, else the rows affected."""
    context = result.context
    if context.isinsert and not context.executemany and context.compiled is not None:
        try:
            key = result.inserted_primary_key
        except sa.exc.InvalidRequestError:  # the insert has a RETURNING of its own, and gave no row
            return None
        if key and key[0] is not None:
            return key[0]
    return result.rowcount if result.rowcount >= 0 else None


def _current_task() -> asyncio.Task[Any]:
    current_key()  # names the error where no loop runs
    task = asyncio.current_task()
    if task is None:
        raise TransactionError(
            "a connection belongs to an asyncio task, and this code runs in none"
        )
    return task


async def acquire(pool: ConnectionPool) -> Connection:
    """Check a connection out of `pool` for the current task."""
    task = _current_task()
    return Connection(pool, await pool.acquire(task.get_name(), _place()), task)


def _place() -> str:
    """Name the file and line outside this library that asks for a connection."""
    frame = sys._getframe(1)  # noqa: SLF001
    while (frame.f_back is not None and frame.f_code.co_filename.startswith(_SKIPPED[:2])) or (
        frame.f_back is not None and frame.f_code.co_filename.endswith(_SKIPPED[2])
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
