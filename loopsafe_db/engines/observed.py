"""A pool's driver and its engine as those see them who use both: each statement is told to an `Observer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import event
from sqlalchemy.pool import PoolProxiedConnection

from loopsafe_db.drivers.base import ConnectionState
from loopsafe_db.engines.entry import PoolEntry
from loopsafe_db.engines.listeners import listeners_of, put_first
from loopsafe_db.engines.statement_timeout import TIMED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

    from loopsafe_db.drivers.base import (
        Answer,
        Driver,
        DriverCursor,
        DriverTransaction,
        TransactionOptions,
    )
    from loopsafe_db.engines.observing import Kind, Observation, Observer
    from loopsafe_db.engines.pool import ConnectionPool, SharedQueue
    from loopsafe_db.records import Record

T = TypeVar("T")
_CHANGES = ("INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE")
_IDLE, _IN_TRANSACTION = ConnectionState.IDLE, ConnectionState.IN_TRANSACTION


class ObservedDriver:
    """The part of a driver that users' statements go to. Stands in for that where somebody listens."""

    def __init__(self, driver: Driver, observer: Observer) -> None:
        self._driver, self._observer = driver, observer

    async def fetch_all(
        self, raw: Any, sql: str, args: Sequence[Any], timeout: float | None
    ) -> list[Record]:
        """Give every row."""
        with self._observer.watch("text", raw, sql, args) as told:
            rows = await self._driver.fetch_all(raw, sql, args, timeout)
            told.rows = len(rows)
        return rows

    async def fetch_one(
        self, raw: Any, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Record | None:
        """Give the first row."""
        with self._observer.watch("text", raw, sql, args) as told:
            row = await self._driver.fetch_one(raw, sql, args, timeout)
            told.rows = 0 if row is None else 1
        return row

    async def execute(self, raw: Any, sql: str, args: Sequence[Any], timeout: float | None) -> Any:
        """Give a value, or the rows affected."""
        with self._observer.watch("text", raw, sql, args) as told:
            outcome = await self._driver.execute(raw, sql, args, timeout)
            told.rows = _affected(sql, outcome)
        return outcome

    async def execute_many(
        self, raw: Any, sql: str, rows: Sequence[Sequence[Any]], timeout: float | None
    ) -> int | None:
        """Apply a statement to each row of arguments."""
        with self._observer.watch("many", raw, sql, rows, batch=len(rows)) as told:
            affected = await self._driver.execute_many(raw, sql, rows, timeout)
            told.rows = affected
        return affected

    async def ask(self, raw: Any, sql: str, args: Sequence[Any], timeout: float | None) -> Answer:
        """Run what SQLAlchemy has compiled of a clause."""
        driver: Any = self._driver
        with self._observer.watch("clause", raw, sql, args) as told:
            answer: Answer = await driver.ask(raw, sql, args, timeout)
            told.rows = len(answer.rows) or answer.affected
        return answer

    async def copy_in(
        self, raw: Any, table: str, schema: str | None, columns: Sequence[str] | None, rows: Any
    ) -> int:
        """Copy rows to a table."""
        driver: Any = self._driver
        with self._observer.watch("copy", raw, f"COPY {table} FROM STDIN") as told:
            copied: int = await driver.copy_in(raw, table, schema, columns, rows)
            told.rows = copied
        return copied

    async def copy_out(self, raw: Any, query: str, options: str) -> DriverCursor:
        """Begin to copy out the rows of a query."""
        driver: Any = self._driver
        told = self._observer.watch("copy", raw, f"COPY ({query}) TO STDOUT {options}")
        with told.opening():
            cursor = await driver.copy_out(raw, query, options)
        return ObservedCursor(cursor, told, counts=False)

    def listen(self, raw: Any, channel: str) -> AsyncIterator[tuple[int, str] | None]:
        """Give what is notified on a channel: no statement that ever is over."""
        driver: Any = self._driver
        return driver.listen(raw, channel)  # type: ignore[no-any-return]

    async def open_cursor(self, raw: Any, sql: str, args: Sequence[Any]) -> DriverCursor:
        """Begin to read rows."""
        told = self._observer.watch("stream", raw, sql, args)
        with told.opening():
            cursor = await self._driver.open_cursor(raw, sql, args)
        return ObservedCursor(cursor, told)

    def transaction(self, raw: Any, options: TransactionOptions) -> DriverTransaction:
        """Make a transaction that has not begun."""
        inner = self._driver.transaction(raw, options)
        return ObservedTransaction(inner, raw, self._driver, self._observer)


class ObservedCursor:
    """The rows of a stream; told of when all have come, or nobody wants more."""

    def __init__(self, cursor: DriverCursor, told: Observation, *, counts: bool = True) -> None:
        """Begin to observe the fetches.

        Args:
            cursor: The driver's.
            told: What has observed its beginning.
            counts: Whether what is fetched are rows, not pieces of text.
        """
        self._cursor, self._told, self._counts = cursor, told, counts
        self._told.rows = 0 if counts else None

    async def fetch(self, count: int) -> Sequence[Record]:
        """Give the next rows."""
        with self._told.fetching():
            rows = await self._cursor.fetch(count)
        if self._counts:
            self._told.rows = (self._told.rows or 0) + len(rows)
        if len(rows) < count:
            self._told.tell()
        return rows

    async def close(self) -> None:
        """Let go of what the server holds."""
        with self._told.fetching():
            await self._cursor.close()
        self._told.tell()


class ObservedTransaction:
    """A transaction, or a savepoint where one is open already."""

    def __init__(
        self, inner: DriverTransaction, raw: Any, driver: Driver, observer: Observer
    ) -> None:
        self._inner, self._raw, self._driver, self._observer = inner, raw, driver, observer
        self._is_nested = False
        self._begun_at: str | None = None

    async def start(self) -> None:
        """Begin."""
        self._is_nested = self._driver.state(self._raw) is not _IDLE
        with self._watch("SAVEPOINT" if self._is_nested else "BEGIN") as told:
            await self._inner.start()
        self._begun_at = told.place

    async def commit(self) -> None:
        """Make it permanent."""
        with self._watch("RELEASE SAVEPOINT" if self._is_nested else "COMMIT"):
            await self._inner.commit()

    async def rollback(self) -> None:
        """Undo it."""
        if self._driver.state(self._raw) is _IDLE:  # then nothing is sent
            await self._inner.rollback()
            return
        sql = "ROLLBACK TO SAVEPOINT" if self._is_nested else "ROLLBACK"
        # It is done in a task of its own, which no line of the user's has called.
        with self._observer.watch("transaction", self._raw, sql, place=self._begun_at):
            await self._inner.rollback()

    def renew(self) -> Awaitable[None]:
        """Release a savepoint and set it again."""
        return self._inner.renew()

    def _watch(self, sql: str) -> Observation:
        return self._observer.watch("transaction", self._raw, sql)


def observe_engine(engine: AsyncEngine, queue: SharedQueue) -> None:
    """Have what SQLAlchemy sends told to the observer of the present process's pool, while that has one."""
    sync = engine.sync_engine
    dialect: Any = sync.dialect
    before = listeners_of(engine)
    heard = _EngineEvents(queue.find_pool)
    # First: what others have around a statement is to be in what the listeners have around it.
    event.listen(sync, "before_cursor_execute", heard.before)
    put_first(engine, "before_cursor_execute")
    event.listen(sync, "after_cursor_execute", heard.after)
    event.listen(sync, "handle_error", heard.failed)
    queue.own_listeners |= listeners_of(engine) - before
    if queue.clauses is not None:
        queue.clauses.leave_out(3)
    for name, sql in (("do_begin", "BEGIN"), ("do_commit", "COMMIT"), ("do_rollback", "ROLLBACK")):
        setattr(dialect, name, heard.around(getattr(dialect, name), sql))


class _EngineEvents:
    """What SQLAlchemy's events are told to; in its greenlet."""

    def __init__(self, find_pool: Callable[[], ConnectionPool]) -> None:
        self._find_pool = find_pool

    def before(self, *heard: Any) -> None:
        """Note that a statement is about to be sent."""
        connection, _, sql, parameters, context, is_batch = heard
        observer, record = self._find_pool().observer, _record_of(connection.connection)
        if observer is None or record is None or context is None:
            return
        context.loopsafe_idle = self._is_idle(record.raw)
        args, batch = (parameters, len(parameters)) if is_batch else (parameters, 0)
        told = observer.watch(_kind_of(context), record.raw, sql, args, batch=batch)
        context.loopsafe_told = told.__enter__(), record

    def after(self, *heard: Any) -> None:
        """Tell of it; of a stream, when its rows have come."""
        _, cursor, _, _, context, _ = heard
        told, record = _taken(context)
        if told is None:
            return
        driver = self._find_pool().driver  # one without autocommit has sent none
        if (
            context.loopsafe_idle
            and driver.traits.autocommit
            and driver.state(record.raw) is _IN_TRANSACTION
        ):
            self._tell_of_begin(record)
        if _kind_of(context) == "stream":
            told.pause()
            context.loopsafe_stream = told
            return
        told.rows = _rows_of(cursor)
        told.__exit__(None, None, None)

    def failed(self, failure: ExceptionContext) -> None:
        """Tell of it, and why it failed."""
        told, _ = _taken(failure.execution_context)
        if told is not None:
            error = failure.sqlalchemy_exception or failure.original_exception
            told.__exit__(None, self._find_pool().driver.original(error), None)

    def around(self, do: Callable[[Any], T], sql: str) -> Callable[[Any], T]:
        """Tell of what begins or ends a transaction, where it is sent."""

        def call(proxy: Any) -> T:
            observer, record = self._find_pool().observer, _record_of(proxy)
            if observer is None or not isinstance(record, PoolEntry):
                return do(proxy)
            raw, was_idle = record.raw, self._is_idle(record.raw)
            if (sql == "BEGIN") != was_idle:  # one has begun already, or nothing has
                return do(proxy)
            # Its end may be done in a task of SQLAlchemy's, which no line of the user's has called.
            place = record.begun_at if sql == "ROLLBACK" else None
            with observer.watch("transaction", raw, sql, place=place) as told:
                result = do(proxy)
                if sql == "BEGIN":
                    record.begun_at = told.place
                    if self._is_idle(raw):  # it is sent with the first statement
                        told.forget()
            return result

        return call

    def _tell_of_begin(self, record: Any) -> None:
        """Tell of the BEGIN that was sent with the statement just now."""
        observer = self._find_pool().observer
        if observer is not None:
            told = observer.watch("transaction", record.raw, "BEGIN")
            record.begun_at = told.place
            told.tell()

    def _is_idle(self, raw: Any) -> bool:
        return raw is not None and self._find_pool().driver.state(raw) is _IDLE


def _rows_of(cursor: Any) -> int | None:
    """Give the rows that came back, or were changed; sqlite3 does not tell the former, but SQLAlchemy has them here."""
    if cursor.rowcount >= 0:
        return int(cursor.rowcount)
    rows = getattr(cursor, "_rows", None) if cursor.description else None
    return None if rows is None else len(rows)


def _kind_of(context: Any) -> Kind:
    options = context.execution_options
    if not TIMED.keys() <= options.keys():
        return "session"
    return "stream" if options.get("stream_results") else "clause"


def observed_rows(cursor: DriverCursor, context: Any) -> DriverCursor:
    """Give a cursor that tells of the rows of a stream, if somebody listened when it was opened."""
    told = vars(context).pop("loopsafe_stream", None)
    return cursor if told is None else ObservedCursor(cursor, told)


def _record_of(proxy: Any) -> Any:
    """Give the place of a connection; None while it is being opened, or where it is a driver's own."""
    if not isinstance(proxy, PoolProxiedConnection):
        return None
    record: Any = proxy._connection_record  # noqa: SLF001
    is_opened = getattr(record, "raw", None) is not None
    return (
        record
        if is_opened and not (isinstance(record, PoolEntry) and record.is_being_opened)
        else None
    )


def _taken(context: Any) -> tuple[Observation | None, Any]:
    """Give what was begun for an execution, once."""
    found: tuple[Observation | None, Any] = (None, None)
    if context is not None:
        found = vars(context).pop("loopsafe_told", found)
    return found


def _affected(sql: str, outcome: Any) -> int | None:
    """Give the rows that a text has changed, where what `execute` gives is that."""
    words = sql.lstrip()[:8].upper()
    is_count = isinstance(outcome, int) and words.startswith(_CHANGES)
    return outcome if is_count and "RETURNING" not in sql.upper() else None
