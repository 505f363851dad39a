"""Any other async dialect of SQLAlchemy: its adapted DBAPI connection, driven in SQLAlchemy's greenlet.

Such a connection belongs to its loop, and is not in autocommit: what is done outside a transaction is committed
here, at once.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import itertools
import re
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql.elements import (
    ReleaseSavepointClause,
    RollbackToSavepointClause,
    SavepointClause,
)
from sqlalchemy.util import greenlet_spawn

from loopsafe_db.control import ends_transaction
from loopsafe_db.drivers.adapted import (
    ConnectionLoop,
    GuardedConnection,
    HandedOut,
    TakenBack,
)
from loopsafe_db.drivers.base import (
    ConnectionState,
    ConnectOptions,
    DriverTraits,
    TransactionOptions,
)
from loopsafe_db.drivers.failures import by_mysql_code, by_refusal, is_temporary
from loopsafe_db.drivers.handed_out import part, twin
from loopsafe_db.drivers.url import (
    dialect_url,
    is_memory_for_dialect,
    refuse_keywords,
    refuse_postgresql_options,
)
from loopsafe_db.errors import (
    AuthenticationError,
    ConnectError,
    ConnectTimeout,
    InvalidURLError,
    LoopsafeError,
    StatementTimeout,
    TooManyConnections,
    TransactionAborted,
    TransactionError,
)
from loopsafe_db.lexer import statements_of
from loopsafe_db.records import Record, RecordKeys, TupleRecord
from loopsafe_db.url import hidden

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from sqlalchemy import URL

    from loopsafe_db._runtime.forks import SocketId
    from loopsafe_db.options import DatabaseOptions

T = TypeVar("T")
# Seconds to read the rest of a stream that nobody wants; then it costs the connection.
DRAIN_TIMEOUT = 1.0
_serials = itertools.count(1)  # for the names of savepoints
# In MySQL, SET TRANSACTION would outlive a transaction without statements.
_READ_ONLY = {
    "mysql": "START TRANSACTION READ ONLY",
    "mariadb": "START TRANSACTION READ ONLY",
    "oracle": "SET TRANSACTION READ ONLY",
    "postgresql": "SET TRANSACTION READ ONLY",
}
# Python's sqlite3 begins by itself only before an INSERT and its like: a savepoint would be outside of all, and commit.
_BEGIN = {"sqlite": "BEGIN"}
# Those whose connections can be proxied, by SQLAlchemy's ``async_creator_fn``
_CAN_BE_IN_BACKGROUND = ("aiomysql", "asyncmy")
# What begins a transaction by a text, in capitals; behind a BEGIN of Oracle or SQL Server stands a block.
_BEGINS = re.compile(
    r"(?:BEGIN(?: (?:WORK|TRAN|TRANSACTION|DEFERRED|IMMEDIATE|EXCLUSIVE)\b.*)?|START TRANSACTION\b.*)\Z"
)
_MAY_BEGIN = re.compile(r"\bBEGIN\b|\bSTART\s", re.IGNORECASE)
# What may have a COMMIT inside that nobody sees.
_MAY_END = re.compile(r"\s*(?:CALL|EXECUTE|BEGIN\s+NOT)\b", re.IGNORECASE)
_SHOWN = 200  # characters of a text in an error
# MySQL's codes: no such user, password or database, or not from this host
_DEADLOCK = 1213
_REFUSED = {1044, 1045, 1049, 1130, 1698}
_FULL = {1040, 1203}  # in all; of each user
_OF_USER = 1226  # one of several limits of this user


class SyncDialectError(Exception):
    """The dialect has no asyncio."""


class GenericTransaction:
    """What the DBAPI has open already, up to commit or rollback; or a savepoint inside it."""

    def __init__(self, raw: GuardedConnection, options: TransactionOptions) -> None:
        self._raw, self._options = raw, options
        self._savepoint = ""

    async def start(self) -> None:
        self._raw.guarded_owner.check(self._raw)
        if self._raw.in_transaction:
            self._savepoint = f"loopsafe_{next(_serials)}"
            await greenlet_spawn(self._say, SavepointClause)
        else:
            await greenlet_spawn(self._begin)

    async def commit(self) -> None:
        if self._savepoint:
            await greenlet_spawn(self._say, ReleaseSavepointClause)
        else:
            await greenlet_spawn(self._end, self._raw.commit)

    async def rollback(self) -> None:
        was_busy = self._raw.is_busy
        await self._raw.settle()
        if was_busy and self._raw.ended:
            return
        if self._savepoint:
            await greenlet_spawn(self._say, RollbackToSavepointClause)
            await greenlet_spawn(self._say, ReleaseSavepointClause)
        else:
            await greenlet_spawn(self._end, self._raw.rollback)

    async def renew(self) -> None:
        await self.commit()
        await self.start()

    def _begin(self) -> None:
        raw, dialect = self._raw, self._raw.dialect
        read_only = _READ_ONLY.get(dialect.name)
        if self._options.readonly and read_only is None:
            raise TransactionError(f"{dialect.name} has no read-only transactions, or none known")
        if self._options.isolation is not None:
            self._isolate(self._options.isolation.replace("_", " ").upper())
        dialect.do_begin(raw)  # type: ignore[arg-type]
        if begin := _BEGIN.get(dialect.name) or ("BEGIN" if raw.commits_each else None):
            raw.execute(begin)
        raw.forget_status()
        if self._options.readonly:
            raw.execute(read_only)
        raw.in_transaction = True

    def _isolate(self, level: Any) -> None:
        raw, dialect = self._raw, self._raw.dialect
        known = [*dialect.get_isolation_level_values(raw)]
        if level not in known:
            raise TransactionError(f"{dialect.name} has no isolation level {level!r}, only {known}")
        raw.isolation_before = dialect.get_isolation_level(raw)
        dialect.set_isolation_level(raw, level)
        raw.rollback()  # looking at the old level has begun something

    def _end(self, operation: Callable[[], None]) -> None:
        self._raw.in_transaction = False
        operation()
        self._raw.leave()

    def _say(self, clause: Any) -> None:
        sql = str(clause(self._savepoint).compile(dialect=self._raw.dialect))
        if sql.strip():  # Oracle has nothing to release
            self._raw.execute(sql)


class GenericCursor:
    """Rows by a server-side cursor of SQLAlchemy's, where the dialect has one."""

    def __init__(self, raw: GuardedConnection, cursor: Any) -> None:
        self._raw, self._cursor = raw, cursor
        self._keys = RecordKeys.of(cursor.description)

    async def fetch(self, count: int) -> Sequence[Record]:
        self._raw.guarded_owner.check(self._raw)
        rows = await greenlet_spawn(self._cursor.fetchmany, count)
        return TupleRecord.many(self._keys, map(tuple, rows))

    async def close(self) -> None:
        self._raw.guarded_owner.check(self._raw)
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                await greenlet_spawn(self._cursor.close)
        except TimeoutError:
            self._raw.interrupted = True
            self._raw.end()


class GenericDriver:
    """A driver for one async dialect of SQLAlchemy."""

    def __init__(self, drivername: str, *, in_background: bool = False) -> None:
        """Load the dialect.

        Args:
            drivername: As in the URL, ``mysql+aiomysql``.
            in_background: Whether each connection is in a loop and thread of its own, and so serves any loop.

        Raises:
            NoSuchModuleError: SQLAlchemy has no such dialect.
            SyncDialectError: It is not async.
            ModuleNotFoundError: A package that it needs is not installed.
        """
        url = make_url(f"{drivername}://")
        kind: Any = url.get_dialect().get_async_dialect_cls(url)
        if not kind.is_async:
            raise SyncDialectError(drivername)
        self._dialect = kind(dbapi=kind.import_dbapi())
        if kind.driver == "aiomysql":
            _let_aiomysql_send_bytes()
        self._in_background = in_background
        can_move = kind.driver in _CAN_BE_IN_BACKGROUND and not in_background
        self.traits: DriverTraits = DriverTraits(
            kind.driver,
            drivername,
            loop_bound=not in_background,
            attaches=False,
            reset_on_return=True,  # `GuardedConnection` sends it only where something was sent
            autocommit=False,
            adapted=True,
            settles=in_background,
            unbound=partial(_in_background, drivername) if can_move else None,
            lent=GuardedConnection.lent,
            has_ended=_has_ended,
            ends_transaction=_is_deadlock,
            failure=by_mysql_code,
        )

    def arguments(self, options: DatabaseOptions) -> dict[str, Any]:
        refuse_postgresql_options(options)
        refuse_keywords(options, ("connect_timeout",))
        url = dialect_url(options)
        self._connect_arguments(url)
        given = {"url": url, "password": hidden(url.password)}
        return {**given, "connect_args": options.connect_args}

    async def connect(self, options: ConnectOptions) -> GuardedConnection:
        opening = self._open(**options.arguments)
        try:
            async with asyncio.timeout(options.timeout):
                raw = GuardedConnection(await opening)
        except TypeError as error:
            raise InvalidURLError(f"{self.traits.name} does not take this URL: {error}") from error
        except TimeoutError as error:
            raise ConnectTimeout(
                options.target, f"no answer within {options.timeout:g} s"
            ) from error
        except (OSError, self._dialect.loaded_dbapi.Error) as error:
            original = self.original(error)
            kind, reason = _refusal(original), str(error) or repr(error)
            refuses = kind is TooManyConnections or _refuses_all(original)
            raise kind(options.target, reason, is_temporary=refuses) from error
        raw.is_in_memory = is_memory_for_dialect(options.arguments["url"])
        return raw

    def _open(
        self, url: URL, password: str | None, connect_args: Mapping[str, Any]
    ) -> Awaitable[Any]:
        # No coroutine: the variables of one that fails are shown, and these have the password.
        args, keywords = self._connect_arguments(url.set(password=password))
        keywords = {**keywords, **connect_args}
        if self._in_background:
            module = importlib.import_module(self._dialect.driver)
            connect = keywords.get("async_creator_fn", module.connect)
            keywords["async_creator_fn"] = partial(_open_in_background, connect)
        return greenlet_spawn(self._dialect.connect, *args, **keywords)

    async def fetch_all(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> list[Record]:
        return await self._run(raw, partial(_watched, _fetch_all, raw, sql, args), timeout)

    async def fetch_one(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Record | None:
        return await self._run(raw, partial(_watched, _fetch_one, raw, sql, args), timeout)

    async def execute(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Any:
        return await self._run(raw, partial(_watched, _execute, raw, sql, args), timeout)

    async def execute_many(
        self, raw: GuardedConnection, sql: str, rows: Sequence[Sequence[Any]], timeout: float | None
    ) -> int | None:
        transaction = GenericTransaction(raw, TransactionOptions())
        await transaction.start()
        try:
            count = await self._run(raw, partial(_execute_many, raw, sql, rows), timeout)
        except BaseException:
            if raw.guarded_owner.is_here:
                await transaction.rollback()
            raise
        await transaction.commit()
        return count

    async def open_cursor(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any]
    ) -> GenericCursor:
        return await self._run(raw, partial(_open_cursor, raw, sql, args), None)

    def transaction(
        self, raw: GuardedConnection, options: TransactionOptions
    ) -> GenericTransaction:
        return GenericTransaction(raw, options)

    def original(self, error: BaseException) -> BaseException:
        found: BaseException = getattr(error, "orig", None) or error
        if type(found).__module__.startswith("sqlalchemy."):  # for a driver without DBAPI
            return found.__cause__ or found
        return found

    def state(self, raw: GuardedConnection) -> ConnectionState:
        if raw.is_busy:
            return ConnectionState.BUSY
        in_transaction = raw.in_transaction or raw.dirty
        return ConnectionState.IN_TRANSACTION if in_transaction else ConnectionState.IDLE

    def is_answer(self, raw: GuardedConnection, error: BaseException) -> bool:
        if raw.interrupted:
            return False
        return error is raw.answer or isinstance(error, self._dialect.loaded_dbapi.Error)

    def drops_plans(self, raw: GuardedConnection, error: BaseException) -> bool:
        return False

    def move(self, raw: GuardedConnection) -> None:
        raw.guarded_owner.move()

    def detach(self, raw: GuardedConnection) -> None:
        """Do nothing: it stays where it is."""

    async def settle(self, raw: GuardedConnection) -> None:
        await raw.settle()

    async def reset(self, raw: GuardedConnection) -> None:
        await greenlet_spawn(raw.undo)

    async def remember(self, raw: GuardedConnection) -> None:
        """Do nothing: what was touched is closed."""

    async def reset_session(
        self, raw: GuardedConnection, touched: int, initialise: Callable[[], Awaitable[None]]
    ) -> None:
        if not raw.is_in_memory:  # else all that it holds would be lost
            await self.close(raw)  # of what it can do, no driver that we know offers a reset

    def hand_out(self, raw: GuardedConnection) -> HandedOut:
        raw.is_handed_out = True
        return twin(raw, HandedOut)

    def take_back(self, raw: GuardedConnection, handed_out: HandedOut, taken_at: str) -> None:
        raw.is_handed_out = False
        part(handed_out, TakenBack, taken_at)

    def is_closed(self, raw: GuardedConnection) -> bool:
        return raw.is_closed

    def is_lost(self, raw: GuardedConnection, since: float) -> bool:
        return raw.is_closed

    async def close(self, raw: GuardedConnection) -> None:
        if not raw.is_at_home:
            raw.end()
            return
        await greenlet_spawn(raw.close)
        await asyncio.sleep(0)  # then the loop has let go of it, too

    def terminate(self, raw: GuardedConnection) -> None:
        if raw.guarded_owner.is_here:
            raw.end()

    def sockets(self, raw: GuardedConnection) -> Iterable[SocketId]:
        return raw.sockets

    def _connect_arguments(self, url: URL) -> Any:
        try:
            return self._dialect.create_connect_args(url)
        except (ArgumentError, ValueError, TypeError) as error:
            raise InvalidURLError(f"{self.traits.name} does not take this URL: {error}") from None

    async def _run(self, raw: GuardedConnection, work: Callable[[], T], timeout: float | None) -> T:
        raw.guarded_owner.check(raw)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await greenlet_spawn(_do, raw, work)
        except TimeoutError as error:
            if timeout is None or not limit.expired():
                raise
            raise StatementTimeout(timeout) from error
        except self._dialect.loaded_dbapi.Error as error:
            if (original := self.original(error)) is error:
                raise
            raw.answer = original
            raise original from None


@functools.cache
def _in_background(drivername: str) -> GenericDriver:
    return GenericDriver(drivername, in_background=True)


def _open_in_background(
    connect: Callable[..., Awaitable[Any]], *args: Any, **keywords: Any
) -> Awaitable[Any]:
    # No coroutine, as above.
    return ConnectionLoop(lambda: connect(*args, **keywords)).open()


def _has_ended(raw: GuardedConnection) -> bool:
    return raw.has_ended


def _is_deadlock(error: BaseException) -> bool:
    """Tell by MySQL's code: the next statement begins a transaction of its own."""
    return error.args[:1] == (_DEADLOCK,)


def _refuses_all(error: BaseException) -> bool:
    """Tell whether a server refuses all that come."""
    cause = error.__cause__ or error.__context__
    return is_temporary(error) or (cause is not None and is_temporary(cause))


def _refusal(error: BaseException) -> type[ConnectError]:
    """Tell what an error means while a connection is opened."""
    code = error.args[0] if error.args else None
    if code in _FULL or (code == _OF_USER and "max_user_connections" in str(error)):
        return TooManyConnections
    return AuthenticationError if _is_refusal(error) else by_refusal(error)


def _is_refusal(error: Any) -> bool:
    """Tell by MySQL's code or anybody's SQLSTATE whether user, password or database were refused."""
    code = error.args[0] if error.args else None
    state = str(getattr(error, "sqlstate", None) or code)
    return code in _REFUSED or state == "3D000" or (len(state) == 5 and state.startswith("28"))


# These run in SQLAlchemy's greenlet.


def _do(raw: GuardedConnection, work: Callable[[], T]) -> T:
    """Do something, and commit it unless a transaction is open."""
    raw.answer, raw.interrupted = None, True  # until its end is known, whatever strikes
    try:
        result = work()
        if not raw.in_transaction:
            raw.commit()
    except (raw.dialect.loaded_dbapi.Error, LoopsafeError):
        raw.interrupted = False
        if not raw.in_transaction:
            raw.undo()
        raise
    raw.interrupted = False
    raw.had_begun = raw.in_transaction and raw.server_has_begun
    return result


def _watched(
    work: Callable[[GuardedConnection, str, Any], T], raw: GuardedConnection, sql: str, args: Any
) -> T:
    """Run a text; look whether the server still has what it had open in a transaction of ours.

    Raises:
        TransactionAborted: The text has ended it.
    """
    had_begun = raw.in_transaction and _MAY_END.match(sql) is not None and raw.server_has_begun
    if not had_begun:
        return work(raw, sql, args)
    raw.forget_status()
    result = work(raw, sql, args)
    if not raw.server_has_begun:
        raw.has_lost = True
        raise TransactionAborted(
            "a statement has ended the transaction that it was sent in, as the call of a procedure that commits"
        )
    return result


def refuse_begin(sql: str, dialect: Any) -> None:
    """Refuse a BEGIN by text: the commit behind it would end what it begins, or it would commit what is open.

    Raises:
        TransactionError: There is one, and no end of it in the same text.
    """
    if _MAY_BEGIN.search(sql) is None:
        return
    begun = False
    for statement in statements_of(sql, dialect.name):
        begins = _BEGINS.match(statement) is not None
        begun = begins or (begun and not ends_transaction(statement, dialect.name))
    if begun:
        raise TransactionError(
            f"a transaction of {dialect.name}+{dialect.driver} cannot be begun by a text: {sql.strip()[:_SHOWN]}"
        )


def _sent(raw: GuardedConnection, sql: str, args: Any, **options: Any) -> Any:
    if not args:
        refuse_begin(sql, raw.dialect)
    cursor = raw.cursor(**options)
    if args:
        cursor.execute(sql, args)
    else:
        cursor.execute(sql)  # then nobody interprets a %
    return cursor


def _fetch_all(raw: GuardedConnection, sql: str, args: Any) -> list[Record]:
    cursor = _sent(raw, sql, args)
    keys = RecordKeys.of(cursor.description)
    rows = () if cursor.description is None else cursor.fetchall()
    cursor.close()
    return TupleRecord.many(keys, map(tuple, rows))


def _fetch_one(raw: GuardedConnection, sql: str, args: Any) -> Record | None:
    cursor = _sent(raw, sql, args)
    keys = RecordKeys.of(cursor.description)
    row = None if cursor.description is None else cursor.fetchone()
    cursor.close()
    return None if row is None else TupleRecord(keys, tuple(row))


def _execute(raw: GuardedConnection, sql: str, args: Any) -> Any:
    cursor = _sent(raw, sql, args)
    has_rows = cursor.description is not None
    row = cursor.fetchone() if has_rows else None
    count = cursor.rowcount
    cursor.close()
    if has_rows:
        return None if row is None else row[0]
    return count if count >= 0 else None


def _execute_many(raw: GuardedConnection, sql: str, rows: Sequence[Any]) -> int | None:
    if not rows[0]:  # nothing to fill in
        counts = [_execute(raw, sql, ()) for _ in rows]
        return sum(counts) if all(type(count) is int for count in counts) else None
    cursor = raw.cursor()
    cursor.executemany(sql, rows)
    count: int = cursor.rowcount
    cursor.close()
    return count if count >= 0 else None


def _open_cursor(raw: GuardedConnection, sql: str, args: Any) -> GenericCursor:
    options = {"server_side": True} if raw.dialect.supports_server_side_cursors else {}
    return GenericCursor(raw, _sent(raw, sql, args, **options))


def _let_aiomysql_send_bytes() -> None:
    """Give aiomysql (0.3.2) what PyMySQL has under another name from 1.2.2 on: else bytes are a TypeError."""
    connection: Any = importlib.import_module("aiomysql.connection")
    if not callable(getattr(connection, "escape_bytes_prefixed", callable)):
        connection.escape_bytes_prefixed = importlib.import_module(
            "pymysql.converters"
        ).escape_bytes
