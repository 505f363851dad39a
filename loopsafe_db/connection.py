"""Connection: one checked-out connection, owned by one asyncio task."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.util import greenlet_spawn

from loopsafe_db._runtime.keys import running_loop
from loopsafe_db._runtime.registry import current_key
from loopsafe_db.drivers.base import TransactionOptions
from loopsafe_db.engines.holders import caller
from loopsafe_db.errors import (
    ForeignLoopError,
    ForeignTaskError,
    QueryError,
    ReleasedError,
    StatementTimeout,
    TransactionError,
)
from loopsafe_db.queries import CompiledText, Query, compile_text
from loopsafe_db.records import Record, RecordKeys, TupleRecord
from loopsafe_db.streams import BATCH, ClauseCursor, RowStream
from loopsafe_db.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Iterable,
        Mapping,
        Sequence,
    )

    from loopsafe_db.drivers.base import DriverCursor, DriverTransaction
    from loopsafe_db.engines.entry import PoolEntry
    from loopsafe_db.engines.pool import ConnectionPool

T = TypeVar("T")


class Connection:
    """A connection for the length of one ``async with``; made by `Database.connection`.

    Only the asyncio task that took it may use it, or one that it was handed to by `share`.
    """

    def __init__(self, pool: ConnectionPool, entry: PoolEntry) -> None:
        self._pool, self._entry = pool, entry
        self._key = current_key()
        self._owner, self._taken_at = current_task(), entry.taken_at
        self._driver, self._raw = pool.driver, entry.raw
        # Whether a statement was interrupted, so that its state is not known.
        self._doubtful = False
        self._sharers: set[asyncio.Task[Any]] = set()
        self._turn: asyncio.Lock | None = None  # made when shared: then operations take turns
        self._transactions: list[DriverTransaction] = []
        self._outermost = TransactionOptions()
        self._released = False
        self._sqlalchemy: sa.Connection | None = None  # made when it is to run something

    def __repr__(self) -> str:
        state = "released" if self._released else "in use"
        return f"<Connection {self._driver.traits.name} of {self._key}, {state}>"

    @property
    def pool(self) -> ConnectionPool:
        """The pool that lent it."""
        return self._pool

    @property
    def raw_connection(self) -> Any:
        """The driver's own connection; yours while this one is checked out."""
        self._check()
        return self._raw

    async def fetch_all(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> list[Record]:
        """Give every row, in the server's order. See `Database.fetch_all`."""
        if isinstance(query, str):
            compiled, args = self._compile(query, values)
            return await self._run(
                self._driver.fetch_all(self._raw, compiled.sql, args, self._limit(timeout))
            )
        return (await self._run(self._clause(query, values, timeout)))[0]

    async def fetch_one(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Record | None:
        """Give the first row, or None. See `Database.fetch_one`."""
        if isinstance(query, str):
            compiled, args = self._compile(query, values)
            return await self._run(
                self._driver.fetch_one(self._raw, compiled.sql, args, self._limit(timeout))
            )
        rows, _ = await self._run(self._clause(query, values, timeout))
        return rows[0] if rows else None

    async def fetch_val(
        self,
        query: Query,
        values: Mapping[str, Any] | None = None,
        column: Any = 0,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Give one value of the first row, or None if there is no row. See `Database.fetch_val`."""
        row = await self.fetch_one(query, values, timeout=timeout)
        return None if row is None else column_of(row, column)

    async def execute(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """Run a statement; give a value it returns, or the rows affected. See `Database.execute`."""
        if isinstance(query, str):
            compiled, args = self._compile(query, values)
            return await self._run(
                self._driver.execute(self._raw, compiled.sql, args, self._limit(timeout))
            )
        rows, outcome = await self._run(self._clause(query, values, timeout))
        return rows[0][0] if rows else outcome

    async def execute_many(
        self, query: Query, values: Iterable[Mapping[str, Any]], *, timeout: float | None = None
    ) -> int | None:
        """Apply one statement to many mappings of values: all or none. See `Database.execute_many`."""
        self._check()
        values = list(values)  # a generator can be read once
        if not values:
            return 0
        if not isinstance(query, str):
            async with self.transaction():
                return (await self._run(self._clause(query, values, timeout)))[1]  # type: ignore[no-any-return]
        compiled = compile_text(query, self._driver.traits.dialect)
        rows = compiled.many(values)
        return await self._run(
            self._driver.execute_many(self._raw, compiled.sql, rows, self._limit(timeout))
        )

    async def iterate(
        self, query: Query, values: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Record, None]:
        """Give rows as they are needed, with flat memory. See `Database.iterate`."""
        async with RowStream(self, query, values) as stream:
            while rows := await stream.fetch(BATCH):
                for row in rows:
                    yield row

    def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        force_rollback: bool = False,
    ) -> Transaction:
        """Make a transaction on this connection; inside another one, a savepoint. See `Database.transaction`."""
        options = TransactionOptions(isolation, readonly, deferrable)
        return Transaction(lambda: nullcontext(self), options, force_rollback=force_rollback)

    @asynccontextmanager
    async def share(self) -> AsyncIterator[Connection]:
        """Use this connection, and its transaction, in another asyncio task of the same loop.

        Enter it *in* the other task, inside the owner's block. Operations of both tasks take turns.
        """
        task = current_task()
        if current_key() != self._key:
            raise ForeignLoopError(repr(self), self._key, current_key(), self._taken_at)
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
        if not self._transactions:
            self._outermost = options
        elif options not in (TransactionOptions(), self._outermost):
            raise TransactionError(
                "isolation, readonly and deferrable belong to the outermost transaction"
            )
        else:
            options = TransactionOptions()
        transaction = self._driver.transaction(self._raw, options)
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
        if self._key.pid == os.getpid():
            await transaction.rollback()

    def doubt(self) -> None:
        """Say that the state of the connection is not known; it is checked or ended at its release."""
        self._doubtful = True

    async def release(self) -> None:
        """Give the connection back to its pool; twice is fine."""
        if self._released or self._key.pid != os.getpid():
            return
        self._released = True
        if self._transactions:
            self._doubtful = True
            self._transactions.clear()
            self._unbind(self._owner)
        if self._doubtful:
            await self._pool.settle(self._entry)
        if self._sqlalchemy is None or not self._entry.is_open:
            self._pool.give_back(self._entry)
            return
        try:
            await greenlet_spawn(self._sqlalchemy.close)
        except BaseException:  # the end of a loop cancels each of its tasks
            self._entry.terminate()
            self._pool.give_back(self._entry)
            raise

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
        task = current_task()
        if task is self._owner and self._key.pid == os.getpid():
            if self._released:
                raise ReleasedError(repr(self), self._taken_at)
            return
        caller = current_key()
        if caller != self._key:
            raise ForeignLoopError(repr(self), self._key, caller, self._taken_at)
        if self._released:
            raise ReleasedError(repr(self), self._taken_at)
        if task not in self._sharers:
            raise ForeignTaskError(
                repr(self), self._owner.get_name(), task.get_name(), self._taken_at
            )

    def _compile(
        self, query: str, values: Mapping[str, Any] | None
    ) -> tuple[CompiledText, Sequence[Any]]:
        self._check()
        compiled = compile_text(query, self._driver.traits.dialect)
        return compiled, compiled.arguments(values)

    # -- what `RowStream` calls

    async def open_cursor(self, query: Query, values: Mapping[str, Any] | None) -> DriverCursor:
        """Begin to read rows, inside a transaction."""
        if isinstance(query, str):
            compiled, args = self._compile(query, values)
            return await self._run(self._driver.open_cursor(self._raw, compiled.sql, args))
        self._check_clause(query)
        options = {"stream_results": True, "max_row_buffer": BATCH}
        try:
            result = await greenlet_spawn(
                lambda: self._core().execute(query, values or {}, execution_options=options)
            )
        except sa.exc.DBAPIError as error:
            raise self._driver.original(error) from None
        return ClauseCursor(result)

    def drops_plans(self, error: BaseException) -> bool:
        """Tell whether what failed may be tried again, outside a transaction: a table was altered."""
        return self._entry.is_open and self._pool.drops_plans(self._entry, error)

    # -- what `SessionMaker` calls

    def sqlalchemy_in_transaction(self) -> sa.Connection:
        """Give SQLAlchemy's connection on this one, which knows that a transaction is open."""
        self._check()
        connection = self._core()
        if not connection.in_transaction():
            connection.begin()  # a mark only: it is in autocommit
        return connection

    def stand_alone(self) -> None:
        """See to it that what the task asks for elsewhere does not join the transaction."""
        self._unbind(self._owner)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return bool(self._transactions)

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
            self._doubtful = True
            raise

    async def _clause(
        self, query: Any, values: Any, timeout: float | None
    ) -> tuple[list[Record], Any]:
        """Run a clause the way SQLAlchemy does it: defaults, types, RETURNING."""
        self._check_clause(query)
        limit = self._limit(timeout)
        try:
            async with asyncio.timeout(limit):
                try:
                    return await greenlet_spawn(self._execute_clause, query, values)
                except sa.exc.DBAPIError as error:
                    if self._transactions or not self.drops_plans(error):
                        raise
                return await greenlet_spawn(self._execute_clause, query, values)
        except TimeoutError as error:
            if limit is None:
                raise
            raise StatementTimeout(limit) from error
        except sa.exc.DBAPIError as error:
            raise self._driver.original(error) from None

    def _check_clause(self, query: Any) -> None:
        self._check()
        if not isinstance(query, sa.sql.base.Executable):
            raise QueryError(f"a query is text or a SQLAlchemy clause, not {type(query).__name__}")

    def _core(self) -> sa.Connection:
        """Give SQLAlchemy's connection on this one."""
        if self._sqlalchemy is None:
            # Transactions are begun and ended by us, for text and clauses alike.
            proxy = self._pool.proxy(self._entry)
            core = sa.Connection(self._pool.engine.sync_engine, connection=proxy)
            if self._driver.traits.autocommit:
                core.execution_options(isolation_level="AUTOCOMMIT")
            self._sqlalchemy = core
        return self._sqlalchemy

    def _execute_clause(self, query: Any, values: Any) -> tuple[list[Record], Any]:
        core = self._core()
        if self._transactions or self._driver.traits.autocommit:
            return _results(core.execute(query, values or {}))
        try:
            results = _results(core.execute(query, values or {}))
            core.commit()
        except Exception:
            core.rollback()
            raise
        return results


def _results(result: Any) -> tuple[list[Record], Any]:
    """Give the rows, and what `execute` gives where there are none."""
    if not result.returns_rows:
        return [], _outcome(result)
    keys = RecordKeys(tuple(result.keys()))
    rows: list[Record] = [TupleRecord(keys, row) for row in result]
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


def current_task() -> asyncio.Task[Any]:
    """Give the running asyncio task.

    Raises:
        NoRunningLoopError: No loop runs in this thread.
        TransactionError: The loop runs a callback.
    """
    running_loop("a query")
    task = asyncio.current_task()
    if task is None:
        raise TransactionError(
            "a connection belongs to an asyncio task, and this code runs in none"
        )
    return task


def column_of(row: Record, column: Any) -> Any:
    """Give one value of a row.

    Raises:
        QueryError: It has no such column.
    """
    try:
        return row[column]
    except (IndexError, KeyError):
        raise QueryError(f"the row has no column {column!r}; it has {list(row.keys())}") from None


def joined(pool: ConnectionPool) -> Connection | None:
    """Give the connection of the transaction that the current task has open, if it has one."""
    stack = pool.bound.get(current_task())
    return stack[-1] if stack else None


async def acquire(pool: ConnectionPool) -> Connection:
    """Check a connection out of `pool` for the current task."""
    current_task()
    place = caller()
    entry = await pool.acquire()
    entry.taken_at = place
    return Connection(pool, entry)
