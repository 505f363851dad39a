"""A driver as small as can be: Python's own sqlite3, each call in a thread of asyncio's.

It knows of loopsafe_db what an outsider may know: the protocol and the errors.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from loopsafe_db.drivers.base import (
    ConnectionState,
    ConnectOptions,
    DriverTraits,
    Owner,
    TransactionOptions,
)
from loopsafe_db.errors import ConnectError, StatementTimeout, TransactionAborted
from loopsafe_db.records import Record, RecordKeys, TupleRecord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from loopsafe_db.options import DatabaseOptions


class ThreadedCursor(sqlite3.Cursor):
    """A cursor that works in a thread where SQLAlchemy's greenlet could wait for it."""

    def execute(self, *args: Any) -> Any:
        if not in_greenlet():
            return super().execute(*args)
        raw: Any = self.connection
        return await_only(in_thread(raw, partial(super().execute, *args), None))

    async def _async_soft_close(self) -> None:
        """Do nothing: SQLAlchemy's async results ask for it."""


class PlainConnection(sqlite3.Connection):
    """A connection in autocommit; SQLAlchemy may begin transactions on it."""

    dialect: Any = None  # the pool puts the engine's here

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.owner, self.lock = Owner(), threading.Lock()
        self.is_closed, self.engine_begins, self.savepoints = False, True, 0
        self.has_begun = False  # whether a transaction of ours was begun, and not ended

    def cursor(self, *_: Any, **__: Any) -> Any:
        self.owner.check(self)
        return super().cursor(ThreadedCursor)

    def close(self) -> None:
        self.is_closed = True
        super().close()

    def check_transaction(self) -> None:
        if self.has_begun and not self.in_transaction:
            raise TransactionAborted("SQLite has rolled back what was interrupted")

    def say(self, sql: str) -> None:
        super().cursor().execute(sql).close()


class PlainDialect(SQLiteDialect_pysqlite):
    """SQLAlchemy's dialect of sqlite3, made async."""

    driver = "plain"
    is_async = True
    has_terminate = True
    supports_statement_cache = True

    def do_begin(self, dbapi_connection: Any) -> None:
        if dbapi_connection.engine_begins:
            dbapi_connection.say("BEGIN")

    def do_terminate(self, dbapi_connection: Any) -> None:
        DRIVER.terminate(dbapi_connection)

    def set_isolation_level(self, dbapi_connection: Any, level: Any) -> None:
        dbapi_connection.engine_begins = level != "AUTOCOMMIT"


registry.register("sqlite.plain", __name__, "PlainDialect")


class PlainTransaction:
    def __init__(self, raw: PlainConnection) -> None:
        self._raw, self._savepoint = raw, ""

    async def start(self) -> None:
        if self._raw.in_transaction:
            self._raw.savepoints += 1
            self._savepoint = f"s{self._raw.savepoints}"
        self._raw.say(f"SAVEPOINT {self._savepoint}" if self._savepoint else "BEGIN")
        self._raw.has_begun = True

    async def commit(self) -> None:
        self._raw.check_transaction()
        self._raw.say(f"RELEASE {self._savepoint}" if self._savepoint else "COMMIT")
        self._raw.has_begun = bool(self._savepoint)

    async def rollback(self) -> None:
        self._raw.has_begun = bool(self._savepoint) and self._raw.in_transaction
        if self._savepoint and self._raw.in_transaction:
            self._raw.say(f"ROLLBACK TO {self._savepoint}")
            self._raw.say(f"RELEASE {self._savepoint}")
        elif self._raw.in_transaction:
            self._raw.say("ROLLBACK")

    async def renew(self) -> None:
        await self.commit()
        await self.start()


class PlainCursor:
    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor, self._keys = cursor, keys_of(cursor)

    async def fetch(self, count: int) -> Sequence[Record]:
        return [TupleRecord(self._keys, row) for row in self._cursor.fetchmany(count)]

    async def close(self) -> None:
        self._cursor.close()


class PlainDriver:
    traits = DriverTraits(
        "plain",
        "sqlite+plain",
        loop_bound=False,
        attaches=False,
        reset_on_return=True,
        adapted=True,
    )

    def arguments(self, options: DatabaseOptions) -> dict[str, Any]:
        return {"database": options.url.database or ":memory:"}

    async def connect(self, options: ConnectOptions) -> PlainConnection:
        try:
            return sqlite3.connect(
                options.arguments["database"],
                timeout=30,
                isolation_level=None,
                check_same_thread=False,
                factory=PlainConnection,
            )
        except sqlite3.Error as error:
            raise ConnectError(options.target, str(error)) from error

    async def fetch_all(
        self, raw: PlainConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> list[Record]:
        def run() -> list[Record]:
            cursor = raw.execute(sql, args)
            keys = keys_of(cursor)
            return [TupleRecord(keys, row) for row in cursor.fetchall()]

        return await in_thread(raw, run, timeout)  # type: ignore[no-any-return]

    async def fetch_one(
        self, raw: PlainConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Record | None:
        rows = await self.fetch_all(raw, sql, args, timeout)
        return rows[0] if rows else None

    async def execute(
        self, raw: PlainConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Any:
        def run() -> Any:
            cursor = raw.execute(sql, args)
            rows = cursor.fetchall()
            if cursor.description is not None:
                return rows[0][0] if rows else None
            return max(cursor.rowcount, 0)

        return await in_thread(raw, run, timeout)

    async def execute_many(
        self, raw: PlainConnection, sql: str, rows: Sequence[Sequence[Any]], timeout: float | None
    ) -> int | None:
        transaction = PlainTransaction(raw)
        await transaction.start()
        try:
            count = await in_thread(raw, lambda: raw.executemany(sql, rows).rowcount, timeout)
        except BaseException:
            raw.interrupt()
            with raw.lock:
                await transaction.rollback()
            raise
        await transaction.commit()
        return int(count)

    async def open_cursor(self, raw: PlainConnection, sql: str, args: Sequence[Any]) -> PlainCursor:
        return PlainCursor(raw.execute(sql, args))

    def transaction(self, raw: PlainConnection, options: TransactionOptions) -> PlainTransaction:
        return PlainTransaction(raw)

    def original(self, error: BaseException) -> BaseException:
        return getattr(error, "orig", None) or error

    def state(self, raw: PlainConnection) -> ConnectionState:
        if raw.lock.locked():
            return ConnectionState.BUSY
        return ConnectionState.IN_TRANSACTION if raw.in_transaction else ConnectionState.IDLE

    def is_answer(self, raw: PlainConnection, error: BaseException) -> bool:
        return isinstance(self.original(error), sqlite3.Error)

    def drops_plans(self, raw: PlainConnection, error: BaseException) -> bool:
        return False

    def move(self, raw: PlainConnection) -> None:
        raw.owner.move()

    def detach(self, raw: PlainConnection) -> None:
        pass

    async def settle(self, raw: PlainConnection) -> None:
        raw.interrupt()
        with raw.lock:
            pass

    async def reset(self, raw: PlainConnection) -> None:
        if raw.in_transaction:
            raw.say("ROLLBACK")

    async def remember(self, raw: PlainConnection) -> None:
        pass

    async def reset_session(
        self, raw: PlainConnection, touched: int, initialise: Callable[[], Awaitable[None]]
    ) -> None:
        raw.close()

    def hand_out(self, raw: PlainConnection) -> Any:
        return raw  # closed when it comes back

    def take_back(self, raw: PlainConnection, handed_out: Any, taken_at: str) -> None:
        pass

    def is_closed(self, raw: PlainConnection) -> bool:
        return raw.is_closed

    def is_lost(self, raw: PlainConnection, since: float) -> bool:
        return raw.is_closed

    async def close(self, raw: PlainConnection) -> None:
        raw.close()

    def terminate(self, raw: PlainConnection) -> None:
        if raw.owner.is_here and not raw.is_closed:
            raw.interrupt()
            if raw.lock.acquire(timeout=1):
                if raw.in_transaction:
                    raw.say("ROLLBACK")  # a statement that nobody finished would keep it open
                raw.close()

    def sockets(self, raw: PlainConnection) -> Iterable[Any]:
        return ()


async def in_thread(raw: PlainConnection, work: Callable[[], Any], timeout: float | None) -> Any:
    raw.owner.check(raw)

    def run() -> Any:
        with raw.lock:
            raw.check_transaction()
            return work()

    raw.lock.acquire()
    raw.lock.release()  # nobody is at it
    try:
        async with asyncio.timeout(timeout):
            return await asyncio.to_thread(run)
    except TimeoutError as error:
        raw.interrupt()
        raise StatementTimeout(timeout or 0) from error
    except asyncio.CancelledError:
        raw.interrupt()
        raise


def keys_of(cursor: sqlite3.Cursor) -> RecordKeys:
    return RecordKeys(tuple(column[0] for column in cursor.description or ()))


DRIVER = PlainDriver()
