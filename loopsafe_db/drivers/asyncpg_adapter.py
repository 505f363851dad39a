"""SQLAlchemy's adapter of asyncpg, in fewer steps: what is prepared runs at once, and its BEGIN goes with it.

As in a pipeline of libpq: the messages of BEGIN are written ahead of those of the first statement, and both have one
answer, up to the one ``Sync``. Where BEGIN fails, the server skips the statement.
"""

from __future__ import annotations

import re
from collections import deque
from functools import lru_cache
from struct import pack
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg.transaction import TransactionState
from sqlalchemy.dialects.postgresql import asyncpg as adapter
from sqlalchemy.util import LRUCache

from loopsafe_db._runtime.transport import Preceding

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    class BaseCursor:
        """SQLAlchemy's adapters have no types."""

        _adapt_connection: Any
        _connection: Any
        _invalidate_schema_cache_asof: float
        _rows: deque[Any]

        def __init__(self, connection: Any) -> None: ...
        def _handle_exception(self, error: Exception) -> NoReturn: ...
        async def _prepare_and_execute(self, operation: str, parameters: Any) -> None: ...

    class BaseConnection:
        """SQLAlchemy's adapters have no types."""

        _connection: Any
        _execute_mutex: Any
        _invalidate_schema_cache_asof: float
        _transaction: Any
        deferrable: bool
        isolation_level: str | None
        readonly: bool

        def __init__(self, dbapi: Any, connection: Any) -> None: ...
        def cursor(self, server_side: bool = False) -> Any: ...  # noqa: FBT001, FBT002
        async def _start_transaction(self) -> None: ...

    class BaseTransaction:
        """asyncpg has no types."""

        _connection: Any
        _state: Any

        def __init__(self, *args: Any) -> None: ...
else:
    BaseCursor = adapter.AsyncAdapt_asyncpg_cursor
    BaseConnection = adapter.AsyncAdapt_asyncpg_connection
    BaseTransaction = asyncpg.transaction.Transaction

# SQLAlchemy 2.0 has the latter.
_DESCRIPTION, _ROWCOUNT = (
    ("_description", "_rowcount")
    if hasattr(adapter.AsyncAdapt_asyncpg_cursor, "_description")
    else ("description", "rowcount")
)
_COUNTED = re.compile(rb"(?:SELECT|UPDATE|DELETE|INSERT \d+) (\d+)")  # as SQLAlchemy has it
_NO_MORE = (None,) * 5  # of what the DBAPI's description of a column has beside name and type


class PreparedStatements(LRUCache[str, Any]):
    """SQLAlchemy's cache of what it has prepared on one connection, without what that has forgotten."""

    def __init__(self, raw: Any, size: int) -> None:
        super().__init__(size)
        self._raw, self._forgotten = raw, raw.guarded_forgotten

    def __contains__(self, statement: object) -> bool:
        return self.find(statement) is not None

    def find(self, statement: Any) -> Any:
        """Give what SQLAlchemy keeps of a statement that may be run as it is; else None."""
        raw = self._raw
        raw.guarded_catch_up()
        if self._forgotten != raw.guarded_forgotten:
            self._forgotten = raw.guarded_forgotten
            self.clear()
        shifting = raw.guarded_plans.shifting
        return None if shifting and hash(statement) in shifting else self.get(statement)


class EngineTransaction(BaseTransaction):
    """asyncpg's own, in fewer steps, whose BEGIN goes with a statement."""

    def begins(self) -> None:
        """Note that BEGIN is about to be sent."""
        self._state, self._connection._top_xact = TransactionState.STARTED, self  # noqa: SLF001

    def ends(self) -> None:
        """Note that it is over, or has not begun."""
        self._connection._top_xact = None  # noqa: SLF001

    async def commit(self) -> None:
        """Commit; `EngineDialect.do_commit` reads the answer."""
        self.ends()
        self._connection.guarded_answer = await self._connection.guarded_query("COMMIT;")

    async def rollback(self) -> None:
        """Roll back."""
        self.ends()
        await self._connection.guarded_query("ROLLBACK;")


class EngineCursor(BaseCursor):
    """SQLAlchemy's, which leaves out what a statement needs no more once it is prepared."""

    __slots__ = ()

    async def _prepare_and_execute(self, operation: str, parameters: Any) -> None:
        connection = self._adapt_connection
        known = connection.find_prepared(operation, self._invalidate_schema_cache_asof)
        if known is None:
            await super()._prepare_and_execute(operation, parameters)
            return
        statement, attributes, _ = known
        mutex = connection._execute_mutex  # noqa: SLF001
        await mutex.acquire()
        try:
            rows, status = await connection.run(statement._state, parameters or ())  # noqa: SLF001
        except Exception as error:  # noqa: BLE001 (it is made one of SQLAlchemy's)
            self._handle_exception(error)
        finally:
            mutex.release()
        self._rows = deque(rows)
        rows.clear()  # asyncpg would keep them until its next answer
        columns = [(column.name, column.type.oid, *_NO_MORE) for column in attributes]
        counted = _COUNTED.match(status or b"")
        setattr(self, _DESCRIPTION, columns or None)
        setattr(self, _ROWCOUNT, int(counted[1]) if counted else -1)


class EngineConnection(BaseConnection):
    """SQLAlchemy's, with cursors and transactions of ours."""

    __slots__ = ("_started",)  # SQLAlchemy 2.0 looks at it
    _prepared_statement_cache: PreparedStatements | None

    def __init__(self, dbapi: Any, raw: Any, statements: PreparedStatements | None) -> None:
        super().__init__(dbapi, raw)
        self._prepared_statement_cache = statements

    def cursor(self, server_side: bool = False) -> Any:  # noqa: FBT001, FBT002 (as SQLAlchemy has it)
        """Make a cursor."""
        return super().cursor(server_side) if server_side else EngineCursor(self)

    def find_prepared(self, statement: str, asof: float) -> Any:
        """Give what was prepared after `asof`; None where the way of SQLAlchemy, or of asyncpg, has more to do."""
        known = self._prepared_statement_cache
        if (
            known is None
            or asof > self._invalidate_schema_cache_asof
            or self._connection._query_loggers  # noqa: SLF001
        ):
            return None
        found = known.find(statement)
        return None if found is None or found[2] <= asof or found[0]._state.closed else found  # noqa: SLF001

    async def run(self, state: Any, parameters: Sequence[Any]) -> tuple[Any, bytes | None]:
        """Run what asyncpg has prepared; give the rows, and what the server says of it."""
        raw, ahead = self._connection, None
        raw._check_open()  # noqa: SLF001
        if self._transaction is None and self.isolation_level != "autocommit":
            ahead = await self._begin()
        try:
            rows, status, _ = await raw.guarded_protocol().bind_execute(
                *(state, parameters, "", 0, True, None)
            )
        except BaseException as error:
            if ahead is not None:
                self._note_failure(error, is_sent=not ahead.withdraw())
            if isinstance(error, asyncpg.OutdatedSchemaCacheError):
                await raw.reload_schema_state()
                state.mark_closed()
            raise
        return rows, status

    async def _begin(self) -> Any:
        """Begin a transaction, with what is sent next: then give the transport that does so. Else at once."""
        raw = self._connection
        transport = raw.guarded_stream()
        can_wait = raw._top_xact is None and not raw.is_in_transaction()  # noqa: SLF001
        if not (can_wait and isinstance(transport, Preceding)):
            await self._start_transaction()
            return None
        options = self.isolation_level, self.readonly, self.deferrable
        self._transaction, self._started = EngineTransaction(raw, *options), True
        self._transaction.begins()
        transport.precede(_begin(*options))
        return transport

    def _note_failure(self, error: BaseException, *, is_sent: bool) -> None:
        """Forget a transaction that was not begun; what was interrupted may have been."""
        has_failed = isinstance(error, asyncpg.PostgresError)
        if not is_sent or (has_failed and not self._connection.is_in_transaction()):
            self._transaction.ends()
            self._transaction, self._started = None, False


@lru_cache
def _begin(isolation: str | None, readonly: bool, deferrable: bool) -> bytes:  # noqa: FBT001
    """Give the messages of a BEGIN, without a ``Sync``: see ``protocol-message-formats`` in PostgreSQL's manual."""
    level = "" if isolation is None else f" ISOLATION LEVEL {isolation.replace('_', ' ').upper()}"
    text = f"BEGIN{level}{' READ ONLY' if readonly else ''}{' DEFERRABLE' if deferrable else ''}"
    parse = b"\0" + text.encode() + b"\0" + pack("!h", 0)  # no name; no types of parameters
    bind = b"\0\0" + pack("!hhh", 0, 0, 0)  # no names; no formats, no parameters, no formats
    execute = b"\0" + pack("!i", 0)  # no name; all rows
    messages = ((b"P", parse), (b"B", bind), (b"E", execute))
    return b"".join(kind + pack("!i", len(body) + 4) + body for kind, body in messages)
