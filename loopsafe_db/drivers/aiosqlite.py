"""aiosqlite: SQLite. A connection has a thread of its own, a daemon, so that it never keeps a process alive."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import aiosqlite

from loopsafe_db._runtime.registry import current_key
from loopsafe_db.drivers.base import ConnectOptions, DriverTraits, TransactionOptions
from loopsafe_db.errors import (
    ConnectError,
    ConnectTimeout,
    ForeignLoopError,
    StatementTimeout,
    TransactionError,
)
from loopsafe_db.records import Record, RecordKeys, TupleRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from loopsafe_db._runtime.forks import SocketId
    from loopsafe_db._runtime.keys import LoopKey

_BATCH = 500  # rows that one hop to the thread brings back


class GuardedConnection(aiosqlite.Connection):
    """A connection that refuses another loop or process: its thread does not exist in a forked child."""

    guarded_owner: LoopKey
    savepoints = 0

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        caller = current_key()
        if caller != self.guarded_owner:
            raise ForeignLoopError(
                f"<aiosqlite connection {id(self):#x}>", self.guarded_owner, caller
            )
        return await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]

    def __del__(self) -> None:
        """Do nothing: the pool that opened it ends it, and a forked child must not."""


class _Opener:
    """Opens in the connection's thread; closes again what a cancelled caller does not wait for."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._lock = Lock()
        self._given_up = False
        self._opened: sqlite3.Connection | None = None

    def __call__(self) -> sqlite3.Connection:
        with self._lock:
            self._opened = sqlite3.connect(**self._arguments)
            if self._given_up:
                self._opened.close()
            return self._opened

    def give_up(self) -> None:
        with self._lock:
            self._given_up = True
            if self._opened is not None:
                self._opened.close()


class SqliteTransaction:
    """BEGIN and COMMIT, or a savepoint inside them."""

    def __init__(self, raw: GuardedConnection, options: TransactionOptions) -> None:
        self._raw, self._options = raw, options
        self._savepoint = ""

    async def start(self) -> None:
        if self._raw.in_transaction:
            self._raw.savepoints += 1
            self._savepoint = f"loopsafe_{self._raw.savepoints}"
            await _run(self._raw, f"SAVEPOINT {self._savepoint}")
            return
        if self._options.isolation not in (None, "serializable"):
            raise TransactionError(
                f"SQLite has no isolation level {self._options.isolation!r}, only 'serializable'"
            )
        if self._options.readonly:
            await _run(self._raw, "PRAGMA query_only = ON")
        await _run(self._raw, "BEGIN")

    async def commit(self) -> None:
        await self._end(f"RELEASE {self._savepoint}" if self._savepoint else "COMMIT")

    async def rollback(self) -> None:
        if self._savepoint:
            await _run(self._raw, f"ROLLBACK TO {self._savepoint}")
            await self._end(f"RELEASE {self._savepoint}")
        else:
            await self._end("ROLLBACK")

    async def _end(self, sql: str) -> None:
        if self._raw.in_transaction:  # SQLite ends one by itself on some errors
            await _run(self._raw, sql)
        if self._options.readonly and not self._savepoint:
            await _run(self._raw, "PRAGMA query_only = OFF")


class AiosqliteDriver:
    """The fast path: one hop to the connection's thread for each call."""

    traits = DriverTraits("aiosqlite", "sqlite+aiosqlite", loop_bound=False, reset_on_return=False)

    async def connect(self, options: ConnectOptions) -> GuardedConnection:
        # isolation_level None: sqlite3 begins no transaction by itself; ours begin by BEGIN.
        arguments = {**options.arguments, "isolation_level": None, "check_same_thread": False}
        opener = _Opener(arguments)
        raw = GuardedConnection(opener, 64)
        raw.guarded_owner = current_key()
        thread: Any = getattr(raw, "_thread", raw)  # it was a Thread itself before 0.22
        thread.daemon = True
        try:
            async with asyncio.timeout(options.timeout):
                await raw
        except TimeoutError as error:
            raise ConnectTimeout(
                options.target, f"no answer within {options.timeout:g} s"
            ) from error
        except sqlite3.Error as error:
            raise ConnectError(options.target, str(error)) from error
        except asyncio.CancelledError:
            opener.give_up()
            raise
        return raw

    async def fetch_all(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> list[Record]:
        return await _bounded(raw, partial(_fetch, raw, sql, args, None), timeout)  # type: ignore[no-any-return]

    async def fetch_one(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Record | None:
        rows = await _bounded(raw, partial(_fetch, raw, sql, args, 1), timeout)
        return rows[0] if rows else None

    async def execute(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Any:
        return await _bounded(raw, partial(_execute, raw, sql, args), timeout)

    async def execute_many(
        self, raw: GuardedConnection, sql: str, rows: Sequence[Sequence[Any]], timeout: float | None
    ) -> int | None:
        transaction = SqliteTransaction(raw, TransactionOptions())
        await transaction.start()
        try:
            count: int = await _bounded(raw, partial(_execute_many, raw, sql, rows), timeout)
        except BaseException:
            await transaction.rollback()
            raise
        await transaction.commit()
        return count

    async def iterate(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any]
    ) -> AsyncIterator[Record]:
        cursor = await raw._execute(raw._conn.execute, sql, args)  # noqa: SLF001
        keys = _keys(cursor)
        try:
            while rows := await raw._execute(cursor.fetchmany, _BATCH):  # noqa: SLF001
                for row in rows:
                    yield TupleRecord(keys, row)
        finally:
            await raw._execute(cursor.close)  # noqa: SLF001

    def transaction(self, raw: GuardedConnection, options: TransactionOptions) -> SqliteTransaction:
        return SqliteTransaction(raw, options)

    def original(self, error: BaseException) -> BaseException:
        return getattr(error, "orig", None) or error

    async def settle(self, raw: GuardedConnection) -> None:
        # The thread works in order: when this is done, so is the interrupted statement.
        await raw.interrupt()
        await _run(raw, "SELECT 1")

    def is_closed(self, raw: GuardedConnection) -> bool:
        return raw._connection is None or not raw._running  # noqa: SLF001

    async def close(self, raw: GuardedConnection) -> None:
        await raw.close()

    def terminate(self, raw: GuardedConnection) -> None:
        if raw.guarded_owner.pid != os.getpid() or raw._connection is None:  # noqa: SLF001
            return
        connection, raw._connection, raw._running = raw._connection, None, False  # noqa: SLF001
        connection.interrupt()
        thread: Any = getattr(raw, "_thread", raw)
        raw._tx.put_nowait((None, partial(_close_and_stop, connection, _stop_marker())))  # noqa: SLF001
        thread.join(1.0)

    def sockets(self, raw: GuardedConnection) -> Iterable[SocketId]:
        return ()


def _stop_marker() -> object:
    """Give the object that ends aiosqlite's thread."""
    return aiosqlite.core._STOP_RUNNING_SENTINEL  # noqa: SLF001


def _close_and_stop(connection: sqlite3.Connection, marker: object) -> object:
    connection.close()
    return marker


async def _run(raw: GuardedConnection, sql: str) -> None:
    await raw._execute(raw._conn.execute, sql)  # noqa: SLF001


async def _bounded(raw: GuardedConnection, call: Callable[[], Any], timeout: float | None) -> Any:
    if timeout is None:
        return await raw._execute(call)  # noqa: SLF001
    try:
        async with asyncio.timeout(timeout):
            return await raw._execute(call)  # noqa: SLF001
    except TimeoutError as error:
        await raw.interrupt()
        raise StatementTimeout(timeout) from error


def _keys(cursor: sqlite3.Cursor) -> RecordKeys:
    return RecordKeys(tuple(column[0] for column in cursor.description or ()))


# These run in the connection's thread.


def _fetch(
    raw: GuardedConnection, sql: str, args: Sequence[Any], limit: int | None
) -> list[Record]:
    cursor = raw._conn.execute(sql, args)  # noqa: SLF001
    keys = _keys(cursor)
    rows = cursor.fetchall() if limit is None else cursor.fetchmany(limit)
    cursor.close()
    return [TupleRecord(keys, row) for row in rows]


def _execute(raw: GuardedConnection, sql: str, args: Sequence[Any]) -> Any:
    cursor = raw._conn.execute(sql, args)  # noqa: SLF001
    try:
        if cursor.description is not None:
            # All rows are taken: SQLite completes a RETURNING statement only then.
            rows = cursor.fetchall()
            return rows[0][0] if rows else 0
        return cursor.rowcount if cursor.rowcount >= 0 else None
    finally:
        cursor.close()


def _execute_many(raw: GuardedConnection, sql: str, rows: Sequence[Sequence[Any]]) -> int:
    cursor = raw._conn.executemany(sql, rows)  # noqa: SLF001
    count = cursor.rowcount
    cursor.close()
    return count


DRIVER = AiosqliteDriver()
