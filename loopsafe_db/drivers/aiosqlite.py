"""aiosqlite: SQLite. A connection has a thread of its own, a daemon, so that it never keeps a process alive."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import weakref
from contextlib import suppress
from datetime import date, datetime
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote, urlencode

import aiosqlite
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.aiosqlite import (
    SQLiteDialect_aiosqlite,
    SQLiteExecutionContext_aiosqlite,
)
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.dialects.sqlite.dml import OnConflictDoUpdate
from sqlalchemy.util import await_only

from loopsafe_db._runtime.endings import outlast
from loopsafe_db._runtime.whole_steps import whole
from loopsafe_db.drivers import migrations
from loopsafe_db.drivers.base import (
    Answer,
    ConnectionState,
    ConnectOptions,
    DriverTraits,
    Owner,
    ProcessOwner,
    TransactionOptions,
    take_rows,
)
from loopsafe_db.drivers.failures import by_sqlite_code
from loopsafe_db.drivers.handed_out import part, plain_connection, refuse, twin
from loopsafe_db.drivers.session_state import Touched
from loopsafe_db.drivers.url import is_memory, known_query, refuse_postgresql_options
from loopsafe_db.errors import (
    ConnectError,
    ConnectTimeout,
    ForkedFileError,
    InvalidURLError,
    LockTimeout,
    MigrationError,
    NotUndoableError,
    StatementTimeout,
    TransactionAborted,
    TransactionError,
)
from loopsafe_db.options import SECONDS_OR_0, WHOLE
from loopsafe_db.records import Record, RecordKeys, TupleRecord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from loopsafe_db._runtime.forks import SocketId
    from loopsafe_db.errors import DriverError
    from loopsafe_db.options import DatabaseOptions

_PRAGMAS = {
    "foreign_keys": ("on", "off"),
    "journal_mode": ("wal", "delete", "truncate", "persist", "memory", "off"),
    "synchronous": ("off", "normal", "full", "extra"),
}
_SQLITE3 = ("cached_statements", "detect_types")  # as sqlite3.connect() has them
_NAMES = ("timeout", "mode", "cache", "immutable", "nolock", "uri", *_SQLITE3, *_PRAGMAS)
_DATES: dict[type, Any] = {date: date.isoformat, datetime: partial(datetime.isoformat, sep=" ")}
_ANSWERS = (sqlite3.Error, OverflowError, UnicodeError)  # the latter of a value that cannot be
# Those of a session that a user may set, and SQLite tells.
_SESSION_PRAGMAS = (
    *("analysis_limit", "automatic_index", "busy_timeout", "cache_size", "cache_spill"),
    *("cell_size_check", "checkpoint_fullfsync", "defer_foreign_keys", "foreign_keys", "fullfsync"),
    *("ignore_check_constraints", "journal_size_limit", "legacy_alter_table", "locking_mode"),
    *("max_page_count", "mmap_size", "query_only", "read_uncommitted", "recursive_triggers"),
    *("reverse_unordered_selects", "secure_delete", "synchronous", "temp_store", "threads"),
    *("trusted_schema", "wal_autocheckpoint"),
)
_WRITES = "BEGIN IMMEDIATE"
_SLICE = 0.1  # seconds that SQLite itself waits for a lock; nothing can interrupt it meanwhile
_OWN_LOCK = "database is locked by a transaction of this very task, on another connection"
_ROLLED_BACK = "SQLite has rolled the transaction back by itself"
_GRACE = 0.2  # seconds for a statement that was cancelled to end by itself, where that matters


_FileId = tuple[int, int]  # device and inode
_open: weakref.WeakValueDictionary[int, _SqliteConnection] = (
    weakref.WeakValueDictionary()
)  # by its id; those of parent processes, too


class FileError(ConnectError):
    """SQLite cannot open its file."""

    hint = "check the path, and who may read and write there"
    retryable = False


class OwnLock(LockTimeout):
    """A task waits for a lock that it has itself, by a transaction on another connection."""

    hint = (
        "end that transaction first, or go on in it; one that only reads can say so: readonly=True, or of a session's "
        "engine isolation_level='DEFERRED'"
    )
    retryable = False


def _meaning(error: BaseException) -> type[DriverError] | None:
    return OwnLock if error.args == (_OWN_LOCK,) else by_sqlite_code(error)


class _Answer:
    """What a connection's thread takes for a future, and for its loop: closed, that is told nothing any more."""

    __slots__ = ("_future", "_loop")

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future, self._loop = future, future.get_loop()

    def get_loop(self) -> _Answer:
        return self

    def call_soon_threadsafe(self, callback: Callable[..., Any], _: object, value: Any) -> None:
        future, loop = self._future, self._loop
        del self._future, self._loop  # the thread has this until it is asked again
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(callback, future, value)


class _Questions:
    """The queue that a connection's thread reads, seen from the loop."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    @property
    def is_full(self) -> bool:
        return not self._queue.empty()

    def put_nowait(self, item: tuple[asyncio.Future[Any] | None, Callable[[], Any]]) -> None:
        future, function = item
        self._queue.put_nowait((None if future is None else _Answer(future), function))


class _SqliteCursor(sqlite3.Cursor):
    """sqlite3's own, which writes dates as sqlite3 does: that warns of it from Python 3.12 on."""

    def execute(self, sql: str, args: Any = (), /) -> Any:
        return super().execute(sql, _without_dates(args))

    def executemany(self, sql: str, rows: Iterable[Any], /) -> Any:
        return super().executemany(sql, map(_without_dates, rows))

    def close(self) -> None:
        super().close()
        connection: Any = self.connection
        connection.forget(self)


def _without_dates(args: Any) -> Any:
    """Give arguments, dates among them as text. What the program has registered for its dates goes before."""
    if isinstance(args, dict):
        return dict(zip(args, _without_dates(list(args.values())), strict=True))
    if not args or _DATES.keys().isdisjoint(map(type, args)):
        return args
    return [
        _DATES[type(value)](value) if type(value) in _DATES and _is_sqlite3s(type(value)) else value
        for value in args
    ]


def _is_sqlite3s(kind: type) -> bool:
    """Tell whether nobody else has said how values of a type are written."""
    adapter = sqlite3.adapters.get((kind, sqlite3.PrepareProtocol))
    return adapter is None or getattr(adapter, "__module__", "") == "sqlite3.dbapi2"


class _SqliteConnection(sqlite3.Connection):
    """sqlite3's own, which can let go of results that were not read to their end: each keeps a lock.

    And which refuses what belongs to a transaction that is no more: SQLite ends one where a statement that writes is
    interrupted, or the disk is full. What follows would be committed by itself.
    """

    has_begun = False  # whether a transaction was begun, and not ended
    file: _FileId | None = None
    pid: int  # of the process that opened it
    writer: Callable[[], asyncio.Task[Any] | None] | None = None  # who has the lock to write by it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()
        self.pid = os.getpid()
        _open[id(self)] = self

    def close(self) -> None:
        # SQLite closes when the last cursor is gone: its locks go now, and the last one takes the -wal along.
        with suppress(sqlite3.Error):
            self.close_cursors()
        super().close()
        _open.pop(id(self), None)

    def cursor(self, *args: Any) -> Any:
        if self.has_begun and not self.in_transaction:
            raise TransactionAborted(_ROLLED_BACK)
        made = super().cursor(*args or (_SqliteCursor,))
        self._cursors.add(made)
        return made

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)  # sqlite3's asks no method for the cursor

    def executemany(self, *args: Any) -> Any:
        return self.cursor().executemany(*args)

    def forget(self, cursor: sqlite3.Cursor) -> None:
        """Note that a cursor was closed."""
        self._cursors.discard(cursor)

    def is_read(self) -> bool:
        """Tell whether rows are left that somebody has begun to read: their lock stays over a ROLLBACK."""
        # Asked after each query: there is seldom a cursor.
        return len(self._cursors) > 0 and any(one.description for one in list(self._cursors))

    def close_cursors(self) -> None:
        for cursor in list(self._cursors):
            cursor.close()


class _Call:
    """A call for the connection's thread, which does not begin it once it was given up."""

    def __init__(self, raw: GuardedConnection, function: Callable[..., Any]) -> None:
        self._raw, self._function = raw, function
        self.given_up = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.given_up:
            return None
        self._raw.is_busy = True
        try:
            return self._function(*args, **kwargs)
        finally:
            self._raw.is_busy = False


class GuardedConnection(aiosqlite.Connection):
    """A connection that refuses another loop or process: its thread does not exist in a forked child."""

    guarded_owner: Owner
    patience: float  # seconds to wait for a lock
    is_in_memory: bool  # whether what it holds ends with it
    pragmas: Mapping[
        str, Any
    ]  # what they were before anybody used it, where it cannot be opened anew
    begin: str  # how transactions begin that may write
    is_pinned: bool  # whether all that is done on it is undone in the end
    engine_begin: str | None  # how those of SQLAlchemy's engine do; None in its AUTOCOMMIT
    level = "SERIALIZABLE"  # of SQLite's isolation: what a connection begins with
    is_busy = False  # whether its thread does something
    migrates: bool = False  # whether the engine's next transaction is one of Alembic's
    keys_suspended: bool = False  # whether foreign keys are off until it ends
    savepoints = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tx: Any = _Questions(self._tx)

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.guarded_owner.check(self)
        until = time.monotonic() + self.patience
        call = _Call(self, fn)
        while True:
            try:
                return await super()._execute(call, *args, **kwargs)  # type: ignore[no-untyped-call]
            except sqlite3.OperationalError as error:
                # Nothing was done. What read before others wrote can wait for ever (SQLITE_BUSY_SNAPSHOT).
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                if self._waits_for_itself():
                    error.args = (_OWN_LOCK,)
                    raise
            except asyncio.CancelledError:
                # In a forked child it is the parent's statement, and goes on.
                if self.guarded_owner.is_here and self._connection is not None:
                    call.given_up = fn != self._connection.close
                    await self.halt()
                raise
            except BaseException:
                call.given_up = True  # nobody waits for it
                raise

    @property
    def _conn(self) -> sqlite3.Connection:
        # Closed, as with the loop of its owner: a stranger hears that it is one.
        if self._connection is None:
            self.guarded_owner.check(self)
        return super()._conn

    def _waits_for_itself(self) -> bool:
        """Tell whether the running task has locked the file by another connection: it cannot end that meanwhile."""
        task, mine = asyncio.current_task(), self.sqlite
        return any(
            one.writer is not None
            and one.writer() is task
            and one is not mine
            and (one.file, one.pid) == (mine.file, mine.pid)
            and one.has_begun
            and one.in_transaction
            for one in _open_now()
        )

    async def begin_transaction(self, sql: str) -> None:
        """Begin one; what may write has the lock for it from then on."""
        await _run(self, sql)
        task = asyncio.current_task() if sql == _WRITES else None
        self.sqlite.writer = None if task is None else weakref.ref(task)
        self.sqlite.has_begun = True

    def executescript(self, *args: Any, **kwargs: Any) -> Any:
        """Run a script. sqlite3 commits first, so under `force_rollback` it is refused."""
        if self.is_pinned:
            raise NotUndoableError("executescript()")
        return super().executescript(*args, **kwargs)

    async def commit(self) -> None:
        """Commit; not under `force_rollback`."""
        if self.is_pinned:
            raise NotUndoableError("commit()")
        await super().commit()

    async def halt(self) -> None:
        """Interrupt what runs; under `force_rollback` only after a while, for it would undo everything if it writes."""
        if self.is_pinned:
            quiet = asyncio.ensure_future(super()._execute(lambda: None))  # type: ignore[no-untyped-call]
            await outlast(quiet, _GRACE)
            if not quiet.cancel():
                return
        # Between two calls there is nothing to stop but a half-read cursor, and then all that follows.
        if self.is_busy and self._connection is not None:
            self._connection.interrupt()

    async def suspend_keys(self) -> None:
        """Have foreign keys neither act nor hold, if they do, until `resume_keys`."""
        (row,) = await self.execute_fetchall("PRAGMA foreign_keys")
        if row[0]:
            self.keys_suspended = True
            await _run(self, "PRAGMA foreign_keys = OFF")

    async def resume_keys(self) -> None:
        """Have them hold again, once no transaction is open."""
        await _run(self, "PRAGMA foreign_keys = ON")
        self.keys_suspended = False

    @property
    def is_asked(self) -> bool:
        """Whether its thread has something left to do."""
        return self._tx.is_full  # type: ignore[no-any-return]

    @property
    def sqlite(self) -> _SqliteConnection:
        """The connection of its thread."""
        return self._conn  # type: ignore[return-value]

    def __del__(self) -> None:
        """Do nothing: the pool that opened it ends it, and a forked child must not."""


class HandedOut(GuardedConnection):
    """A connection as its user has it: the same, with the same attributes, and another object."""


class TakenBack(GuardedConnection):
    """What was handed out, when it is back: it refuses everything, also what was made by it."""

    def __getattribute__(self, name: str) -> Any:
        return refuse(self, name)


class EngineContext(SQLiteExecutionContext_aiosqlite):
    """What SQLAlchemy knows of a statement that it runs."""

    def get_lastrowid(self) -> Any:
        """Give the row id of what was inserted; None where that may be another insert's, which SQLite remembers."""
        upsert = getattr(self.invoked_statement, "_post_values_clause", None)
        if self.cursor.rowcount == 0 or isinstance(upsert, OnConflictDoUpdate):
            return None
        return super().get_lastrowid()


class EngineDialect(SQLiteDialect_aiosqlite):
    """SQLAlchemy's dialect: it begins its transactions itself, on connections where sqlite3 begins none."""

    supports_statement_cache = True
    execution_ctx_cls: type[Any] = EngineContext

    @classmethod
    def engine_created(cls, engine: Any) -> None:
        """Look out for Alembic."""
        migrations.watch(engine, _expect_migration)

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin, unless isolation level AUTOCOMMIT was asked for."""
        raw: GuardedConnection = plain_connection(dbapi_connection)
        migrates, raw.migrates = raw.migrates, False
        if raw.engine_begin and not raw.in_transaction:
            if migrates:
                await_only(raw.suspend_keys())
            await_only(raw.begin_transaction(raw.engine_begin))

    def do_commit(self, dbapi_connection: Any) -> None:
        """Commit what SQLite has not rolled back; a migration only if each foreign key still refers to something."""
        raw: GuardedConnection = plain_connection(dbapi_connection)
        if raw.sqlite.has_begun and not raw.in_transaction:
            self.do_rollback(dbapi_connection)
            raise TransactionAborted(_ROLLED_BACK)
        if raw.keys_suspended:
            try:
                await_only(raw._execute(migrations.check_foreign_keys, raw.sqlite))  # noqa: SLF001
            except MigrationError:
                self.do_rollback(dbapi_connection)
                raise
        super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]
        raw.sqlite.has_begun = False
        if raw.keys_suspended:
            await_only(raw.resume_keys())

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Roll back, if anything has begun: else it would be a turn of the thread for nothing."""
        raw: GuardedConnection = plain_connection(dbapi_connection)
        raw.sqlite.has_begun = False
        if raw.in_transaction:
            super().do_rollback(dbapi_connection)  # type: ignore[no-untyped-call]
        if raw.keys_suspended:
            await_only(raw.resume_keys())

    def do_terminate(self, dbapi_connection: Any) -> None:
        """End a connection without waiting for what it does."""
        DRIVER.terminate(plain_connection(dbapi_connection))

    def begins_by_itself(self, dbapi_connection: Any) -> int:
        """Have sqlite3 begin transactions for who has a connection of the DBAPI; it has no other user then."""
        raw: GuardedConnection = plain_connection(dbapi_connection)
        if raw.engine_begin is not None:
            cast("Any", raw.sqlite).isolation_level = ""
        return Touched.LAST

    def get_isolation_level_values(self, dbapi_connection: Any) -> Any:
        """Give SQLAlchemy's, and DEFERRED: for what only reads, and so takes no lock as it begins."""
        known: Any = super().get_isolation_level_values(dbapi_connection)  # type: ignore[no-untyped-call]
        return [*known, "DEFERRED"]

    def set_isolation_level(self, dbapi_connection: Any, level: Any) -> None:
        """Note the level; sqlite3's own ``isolation_level`` stays None, or texts would begin, and never commit."""
        raw: GuardedConnection = plain_connection(dbapi_connection)
        raw.engine_begin = {"AUTOCOMMIT": None, "DEFERRED": "BEGIN"}.get(level, raw.begin)
        if level not in ("AUTOCOMMIT", "DEFERRED", raw.level):
            raw.level = level
            SQLiteDialect.set_isolation_level(self, dbapi_connection, level)

    def detect_autocommit_setting(self, dbapi_connection: Any) -> bool:
        """Tell whether isolation level AUTOCOMMIT was asked for."""
        return plain_connection(dbapi_connection).engine_begin is None


registry.register("sqlite.loopsafe_aiosqlite", __name__, "EngineDialect")


class _Opener:
    """Opens in the connection's thread; closes again what a cancelled caller does not wait for."""

    def __init__(self, arguments: dict[str, Any], pragmas: Mapping[str, str]) -> None:
        self._arguments, self._pragmas = arguments, pragmas
        self._lock = Lock()
        self._given_up = False
        self._opened: _SqliteConnection | None = None

    def __call__(self) -> _SqliteConnection:
        opened = whole(self._open)
        try:
            for name, value in self._pragmas.items():
                self._set(opened, f"PRAGMA {name} = {value}")
        except BaseException:
            opened.close()
            raise
        with self._lock:
            self._opened = opened
            if self._given_up:
                opened.close()
        return opened

    def _open(self) -> _SqliteConnection:
        """Open it; a forked child sees which file it has, or nothing of it."""
        opened: _SqliteConnection = sqlite3.connect(**self._arguments)
        opened.file = _file_of(self._arguments["database"])
        return opened

    def _set(self, opened: sqlite3.Connection, pragma: str) -> None:
        """Of several processes that make a new file WAL, one can: SQLite does not wait for it by itself."""
        until = time.monotonic() + self._arguments["timeout"]
        while True:
            try:
                opened.execute(pragma)
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or self._given_up or time.monotonic() > until:
                    raise
            time.sleep(0.005)

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
        reads = self._options.readonly or self._options.deferred
        await self._raw.begin_transaction("BEGIN" if reads else self._raw.begin)

    async def commit(self) -> None:
        if not self._raw.in_transaction:
            raise TransactionAborted(_ROLLED_BACK)
        await self._end(f"RELEASE {self._savepoint}" if self._savepoint else "COMMIT")

    async def rollback(self) -> None:
        if not self._savepoint:
            await self._end("ROLLBACK")
        elif self._raw.in_transaction:
            await _run(self._raw, f"ROLLBACK TO {self._savepoint}")
            await self._end(f"RELEASE {self._savepoint}")

    async def renew(self) -> None:
        await self.commit()
        await self.start()

    async def _end(self, sql: str) -> None:
        self._raw.sqlite.has_begun = bool(self._savepoint)
        if self._raw.in_transaction:  # SQLite ends one by itself on some errors
            await _run(self._raw, sql)
        if self._options.readonly and not self._savepoint:
            await _run(self._raw, "PRAGMA query_only = OFF")


class SqliteCursor:
    """A cursor whose rows are fetched in the connection's thread."""

    def __init__(self, raw: GuardedConnection, cursor: sqlite3.Cursor) -> None:
        self._raw, self._cursor, self._keys = raw, cursor, RecordKeys.of(cursor.description)

    async def fetch(self, count: int) -> Sequence[Record]:
        rows = await self._raw._execute(self._cursor.fetchmany, count)  # noqa: SLF001
        return TupleRecord.many(self._keys, rows)

    async def close(self) -> None:
        await self._raw._execute(self._cursor.close)  # noqa: SLF001


class AiosqliteDriver:
    """The fast path: one hop to the connection's thread for each call."""

    traits: DriverTraits = DriverTraits(
        "aiosqlite",
        "sqlite+loopsafe_aiosqlite",
        loop_bound=False,
        attaches=False,
        reset_on_return=False,
        settles=True,
        closes_before_fork=True,
        failure=_meaning,
    )

    def arguments(self, options: DatabaseOptions) -> dict[str, Any]:
        refuse_postgresql_options(options)
        if host := options.url.host:
            raise InvalidURLError(
                f"sqlite:// has no host, and {host!r} stands in its place: write three slashes before a path, "
                f"sqlite:///{host}, and four before one that begins at the root"
            )
        query = known_query(options, _NAMES)
        pragmas = {"journal_mode": "wal", "foreign_keys": "on"}
        for name, words in _PRAGMAS.items():
            if (word := query.pop(name, None)) is not None:
                if word not in words:
                    raise InvalidURLError(f"{name} must be one of {', '.join(words)}, not {word!r}")
                pragmas[name] = word
        patience = options.number("timeout", SECONDS_OR_0, options.timeouts.acquire)
        keywords = {name: options.number(name, WHOLE, None) for name in _SQLITE3 if name in query}
        for name in ("timeout", "uri", *_SQLITE3):  # uri=true goes without saying
            query.pop(name, None)
        reads_only = query.get("mode") == "ro" or "immutable" in query
        if reads_only:
            del pragmas["journal_mode"]
        return {
            "database": _database(_absolute(options), query),
            "patience": patience,
            "keywords": keywords,
            "pragmas": pragmas,
            "pinned": options.force_rollback,
            "begin": "BEGIN" if reads_only else _WRITES,
        }

    async def connect(self, options: ConnectOptions) -> GuardedConnection:
        given = options.arguments
        _check_forked(given["database"], options.target)
        arguments = {
            "database": given["database"],
            "uri": given["database"].startswith("file:"),
            "timeout": given["patience"],
            "isolation_level": None,  # sqlite3 begins no transaction by itself; ours begin by BEGIN
            "check_same_thread": False,
            "factory": _SqliteConnection,
            **given["keywords"],
        }
        # From then on the waiting is ours.
        opener = _Opener(arguments, {**given["pragmas"], "busy_timeout": f"{_SLICE * 1000:.0f}"})
        raw = GuardedConnection(opener, 64)
        # Under `force_rollback` SQLAlchemy makes and closes cursors at any time; the thread takes one call at a time.
        raw.guarded_owner = ProcessOwner() if given["pinned"] else Owner()
        raw.patience, raw.is_pinned = given["patience"], given["pinned"]
        raw.is_in_memory = is_memory(given["database"])
        raw.begin = raw.engine_begin = given["begin"]
        thread: Any = getattr(raw, "_thread", raw)  # it was a Thread itself before 0.22
        thread.daemon = True
        try:
            async with asyncio.timeout(options.timeout):
                await raw
        except TimeoutError as error:
            opener.give_up()
            raise ConnectTimeout(
                options.target, f"no answer within {options.timeout:g} s"
            ) from error
        except sqlite3.Error as error:
            raise FileError(options.target, _reason(error, given["database"])) from error
        except asyncio.CancelledError:
            opener.give_up()
            raise
        return raw

    async def fetch_all(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> list[Record]:
        return take_rows(await _bounded(raw, partial(_fetch, raw, sql, args, None), timeout))

    async def fetch_one(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Record | None:
        rows = await _bounded(raw, partial(_fetch, raw, sql, args, 1), timeout)
        return rows.pop() if rows else None

    async def execute(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Any:
        return await _bounded(raw, partial(_execute, raw, sql, args), timeout)

    async def ask(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Answer:
        return await _bounded(raw, partial(_ask, raw, sql, args), timeout)  # type: ignore[no-any-return]

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

    async def open_cursor(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any]
    ) -> SqliteCursor:
        return SqliteCursor(raw, await raw._execute(raw._conn.execute, sql, args))  # noqa: SLF001

    def transaction(self, raw: GuardedConnection, options: TransactionOptions) -> SqliteTransaction:
        return SqliteTransaction(raw, options)

    def original(self, error: BaseException) -> BaseException:
        return getattr(error, "orig", None) or error

    def state(self, raw: GuardedConnection) -> ConnectionState:
        if raw.is_busy or raw.is_asked or raw._connection is None:  # noqa: SLF001
            return ConnectionState.BUSY
        sqlite = raw.sqlite
        if sqlite.in_transaction or sqlite.has_begun:
            return ConnectionState.IN_TRANSACTION
        return ConnectionState.BUSY if sqlite.is_read() else ConnectionState.IDLE

    def is_answer(self, raw: GuardedConnection, error: BaseException) -> bool:
        return isinstance(self.original(error), _ANSWERS)

    def drops_plans(self, raw: GuardedConnection, error: BaseException) -> bool:
        return False

    def move(self, raw: GuardedConnection) -> None:
        raw.guarded_owner.move()

    def detach(self, raw: GuardedConnection) -> None:
        """Do nothing: no loop has it."""

    async def settle(self, raw: GuardedConnection) -> None:
        # The thread works in order: when this is done, so is the interrupted statement.
        await raw.halt()
        await _run(raw, "PRAGMA query_only = OFF")

    async def reset(self, raw: GuardedConnection) -> None:
        raw.sqlite.has_begun = False
        await raw._execute(raw.sqlite.close_cursors)  # noqa: SLF001
        if raw.in_transaction:
            await _run(raw, "ROLLBACK")
        if raw.keys_suspended:
            await raw.resume_keys()

    async def remember(self, raw: GuardedConnection) -> None:
        if raw.is_in_memory:
            raw.pragmas = await raw._execute(_pragmas, raw.sqlite)  # noqa: SLF001

    async def reset_session(
        self, raw: GuardedConnection, touched: int, initialise: Callable[[], Awaitable[None]]
    ) -> None:
        if raw.is_in_memory:  # all of it would be lost
            await raw._execute(_reset, raw.sqlite, raw.pragmas)  # noqa: SLF001
        else:
            await raw.close()

    def hand_out(self, raw: GuardedConnection) -> HandedOut:
        return twin(raw, HandedOut)

    def take_back(self, raw: GuardedConnection, handed_out: HandedOut, taken_at: str) -> None:
        part(handed_out, TakenBack, taken_at)

    def is_closed(self, raw: GuardedConnection) -> bool:
        return raw._connection is None or not raw._running  # noqa: SLF001

    def is_lost(self, raw: GuardedConnection, since: float) -> bool:
        return self.is_closed(raw)

    async def close(self, raw: GuardedConnection) -> None:
        await raw.close()

    def terminate(self, raw: GuardedConnection) -> None:
        if not raw.guarded_owner.is_here or raw._connection is None:  # noqa: SLF001
            return
        connection: Any = raw._connection  # noqa: SLF001
        raw._connection, raw._running = None, False  # noqa: SLF001
        connection.interrupt()
        thread: Any = getattr(raw, "_thread", raw)
        raw._tx.put_nowait((None, partial(_close_and_stop, connection, _stop_marker())))  # noqa: SLF001
        thread.join(1.0)

    def sockets(self, raw: GuardedConnection) -> Iterable[SocketId]:
        return ()


def _expect_migration(raw: GuardedConnection) -> None:
    raw.migrates = True


def _absolute(options: DatabaseOptions) -> str:
    """Give the database's path, or URI, as seen from where the handle was made; the process may go elsewhere."""
    path = options.url.database or ":memory:"
    if path == ":memory:":
        return path
    if not path.startswith("file:"):
        return os.path.join(options.folder, path)
    name, mark, query = path.removeprefix("file:").partition("?")
    is_memory = name == ":memory:" or "mode=memory" in f"{query}&{urlencode(options.query)}".split(
        "&"
    )
    if not name or is_memory or os.path.isabs(name):
        return path
    return f"file:{quote(os.path.join(options.folder, ''))}{name}{mark}{query}"


def _database(path: str, query: Mapping[str, str]) -> str:
    """Give SQLite's file name, or its URI where the query says how the file is opened."""
    if not query:
        return path
    if not path.startswith("file:"):
        path = f"file:{quote(path)}"
    return f"{path}{'&' if '?' in path else '?'}{urlencode(query)}"


def _reason(error: sqlite3.Error, database: str) -> str:
    """Say why SQLite cannot open a file, which it keeps to itself."""
    path = _path_of(database)
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        return f"{error}: {path} is a folder; name a file in it"
    if folder and not os.path.isdir(folder):
        return f"{error}: there is no folder {folder}; make it first, or mend the path"
    if not os.path.exists(path):
        return f"{error}: there is no file {path}, and it may not be made"
    return str(error)


def _path_of(database: str) -> str:
    name = database.partition("?")[0]
    return unquote(name.removeprefix("file:")) if name.startswith("file:") else database


def _file_of(database: str) -> _FileId | None:
    """Give a file's identity, whatever its path; None where there is none."""
    with suppress(OSError):
        status = os.stat(_path_of(database))
        return status.st_dev, status.st_ino
    return None


def _check_forked(database: str, target: str) -> None:
    """Refuse a file that a connection of the parent process had open at the fork.

    SQLite keeps one record for each file of a process, of the locks that its connections have. A child inherits the
    record, not the locks: its own connections lock nothing, and the parent's last one takes the ``-wal`` file away with
    what the child has committed.

    Raises:
        ForkedFileError: There is such a connection.
    """
    pid, file = os.getpid(), _file_of(database)
    if file is not None and any(one.file == file and one.pid != pid for one in _open_now()):
        raise ForkedFileError(target, "the file was in use when this process was forked")


def _open_now() -> list[_SqliteConnection]:
    """Give the open ones: as other threads open and drop some, these cannot be gone through one by one."""
    return [one for ref in _open.valuerefs() if (one := ref()) is not None]


def _stop_marker() -> object:
    """Give the object that ends aiosqlite's thread."""
    return aiosqlite.core._STOP_RUNNING_SENTINEL  # noqa: SLF001


def _close_and_stop(connection: _SqliteConnection, marker: object) -> object:
    with suppress(sqlite3.Error):
        connection.close_cursors()
        connection.rollback()
        # An interruption lasts until the next statement, and keeps SQLite from writing back what the -wal has.
        sqlite3.Cursor(connection).execute("SELECT 1").close()
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
        raise StatementTimeout(timeout) from error


# These run in the connection's thread.


def _pragmas(connection: sqlite3.Connection) -> dict[str, Any]:
    """Give the pragmas of a session, and what they are."""
    found = {name: connection.execute(f"PRAGMA {name}").fetchone() for name in _SESSION_PRAGMAS}
    return {name: row[0] for name, row in found.items() if row is not None}


def _reset(connection: sqlite3.Connection, pragmas: Mapping[str, Any]) -> None:
    """Make a session what it was, without losing what it holds."""
    connection.isolation_level = None
    connection.execute("PRAGMA writable_schema = OFF")
    for name, value in _pragmas(connection).items():
        if value != pragmas[name]:
            connection.execute(f"PRAGMA {name} = {pragmas[name]}")
    for row in connection.execute("SELECT type, name FROM temp.sqlite_master").fetchall():
        if row[0] in ("table", "view", "trigger"):
            name = row[1].replace('"', '""')
            connection.execute(f'DROP {row[0]} IF EXISTS temp."{name}"')
    for row in connection.execute("PRAGMA database_list").fetchall():
        if row[1] not in ("main", "temp"):
            name = row[1].replace('"', '""')
            connection.execute(f'DETACH "{name}"')


def _fetch(
    raw: GuardedConnection, sql: str, args: Sequence[Any], limit: int | None
) -> list[Record]:
    cursor = raw._conn.execute(sql, args)  # noqa: SLF001
    keys = RecordKeys.of(cursor.description)
    rows = cursor.fetchall() if limit is None else cursor.fetchmany(limit)
    cursor.close()
    return TupleRecord.many(keys, rows)


def _execute(raw: GuardedConnection, sql: str, args: Sequence[Any]) -> Any:
    cursor = raw._conn.execute(sql, args)  # noqa: SLF001
    try:
        if cursor.description is not None:
            # All rows are taken: SQLite completes a RETURNING statement only then.
            rows = cursor.fetchall()
            return rows[0][0] if rows else None
        return cursor.rowcount if cursor.rowcount >= 0 else None
    finally:
        cursor.close()


def _ask(raw: GuardedConnection, sql: str, args: Sequence[Any]) -> Answer:
    cursor = raw._conn.execute(sql, args)  # noqa: SLF001
    try:
        rows = () if cursor.description is None else cursor.fetchall()
        return Answer(rows, cursor.rowcount if cursor.rowcount >= 0 else None, cursor.lastrowid)
    finally:
        cursor.close()


def _execute_many(raw: GuardedConnection, sql: str, rows: Sequence[Sequence[Any]]) -> int:
    cursor = raw._conn.cursor()  # noqa: SLF001
    count, rest = _count(cursor.execute(sql, rows[0])), rows[1:]
    if cursor.description is not None:  # executemany() counts no rows where there is a RETURNING
        count += sum(_count(cursor.execute(sql, row)) for row in rest)
    elif rest:
        count += max(cursor.executemany(sql, rest).rowcount, 0)
    cursor.close()
    return count


def _count(cursor: sqlite3.Cursor) -> int:
    cursor.fetchall()  # only then they are counted
    return max(cursor.rowcount, 0)


DRIVER = AiosqliteDriver()
