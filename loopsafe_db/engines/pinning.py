"""SQLAlchemy's side of ``force_rollback``: engines and sessions work on the one connection, in turn.

Each checkout is a record of its own on that connection. The dialect's begin, commit and rollback become those of a
savepoint there, and each statement takes its turn.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqlalchemy import event
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import await_only

from loopsafe_db.drivers.base import TransactionOptions
from loopsafe_db.engines.pool import SharedQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

    from loopsafe_db.engines.entry import PoolEntry
    from loopsafe_db.engines.pool import ConnectionPool

T = TypeVar("T")


class Turn(Protocol):
    """What an operation holds while it runs. The task that holds it may take it again."""

    @property
    def is_mine(self) -> bool:
        """Whether the running task has it."""

    async def __aenter__(self) -> PoolEntry: ...
    async def __aexit__(self, *_: Any) -> Any: ...


class Pinned(Protocol):
    """What is asked of the connection that everybody works on."""

    @property
    def turn(self) -> Turn:
        """What an operation holds while it runs; taking it opens the connection."""

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, in a transaction."""

    async def begin(self, options: TransactionOptions) -> Any:
        """Begin a savepoint."""

    async def commit(self, opened: Any) -> None:
        """Release it."""

    async def rollback(self, opened: Any) -> None:
        """Roll back to it."""

    def refuse(self, text: str) -> None:
        """Refuse a text that cannot be undone."""

    def refuse_isolation(self, level: str) -> None:
        """Refuse a level that is stricter than that of the transaction."""

    def touch(self, touched: int) -> None:
        """Note what is about to be changed of its session."""

    @property
    def driver_connection(self) -> Any:
        """The driver's own connection, for its users."""

    def note_failure(self, error: BaseException) -> None:
        """Note in the innermost savepoint what has failed there."""

    def give_up(self) -> None:
        """End the connection."""


class PinnedQueue(SharedQueue):
    """A pool whose checkouts all have the one connection."""

    def _do_get(self) -> Any:
        return PinnedRecord(self, self.find_pool())

    def _do_return_conn(self, record: Any) -> None:
        if isinstance(record, PinnedRecord):
            return
        super()._do_return_conn(record)  # the one connection, which could not be opened


class PinnedRecord(_ConnectionRecord):
    """One checkout of the one connection.

    Attributes:
        lender: The pool whose connection it is.
        raw: The driver's own connection.
        opened: The savepoint of its transaction, if it has begun one.
    """

    raw: Any = None
    opened: Any = None
    dbapi_connection: Any

    def __init__(self, queue: PinnedQueue, lender: ConnectionPool) -> None:
        super().__init__(queue, connect=False)
        self.lender = lender
        self._pinned: Pinned = lender.pinned

    def get_connection(self) -> Any:
        """Give SQLAlchemy's connection; this awaits, in a greenlet."""

        async def find() -> None:
            async with self._pinned.turn as entry:
                self.dbapi_connection, self.raw = entry.dbapi_connection, entry.raw

        await_only(find())
        return self.dbapi_connection

    def touch(self, touched: int) -> None:
        """Note what is about to be changed of the session."""
        self._pinned.touch(touched)

    @property
    def driver_connection(self) -> Any:  # type: ignore[override]
        """The driver's own connection, for SQLAlchemy's users."""
        return None if self.dbapi_connection is None else self._pinned.driver_connection

    def begin(self) -> None:
        """Begin a transaction: a savepoint."""
        self.opened = await_only(self._pinned.begin(TransactionOptions()))
        self.opened.block.enter()

    def commit(self) -> None:
        """Commit what has begun, if anything has; what cannot be is rolled back."""
        if (opened := self._leave()) is not None:
            try:
                await_only(self._pinned.commit(opened))
            except BaseException:
                await_only(self._pinned.rollback(opened))
                raise

    def rollback(self) -> None:
        """Roll back what has begun, if anything has."""
        if (opened := self._leave()) is not None:
            await_only(self._pinned.rollback(opened))

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:  # noqa: FBT001, FBT002
        """End the connection: SQLAlchemy does not know its state; nothing where its turn had not come yet."""
        if self.dbapi_connection is not None:
            self.dbapi_connection = None
            self._pinned.give_up()

    def _leave(self) -> Any:
        opened, self.opened = self.opened, None
        if opened is not None:
            opened.block.leave()
        return opened


def pin(engine: AsyncEngine, pinned: Callable[[], Pinned], *, commits_itself: bool) -> None:
    """Have an engine whose pool is a `PinnedQueue` keep its transactions and statements in order.

    Args:
        engine: That.
        pinned: Gives the one connection.
        commits_itself: Whether that commits what is done outside a transaction by itself.
    """
    dialect: Any = engine.sync_engine.dialect
    set_level = dialect.set_isolation_level if commits_itself else _nothing
    dialect.set_isolation_level = _keeping_to_autocommit(pinned, set_level)
    dialect.do_begin = _on_record(PinnedRecord.begin, dialect.do_begin)
    dialect.do_commit = _on_record(PinnedRecord.commit, dialect.do_commit)
    dialect.do_rollback = _on_record(PinnedRecord.rollback, dialect.do_rollback)
    dialect.execution_ctx_cls = _with_turn_cursors(dialect.execution_ctx_cls, pinned)
    event.listen(engine.sync_engine, "handle_error", _keep_the_connection)
    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        setattr(dialect, name, _in_turn(pinned, getattr(dialect, name)))


def _keep_the_connection(failure: ExceptionContext) -> None:
    """Have a statement that was interrupted undone, not its connection ended: it is quiet when its turn is over."""
    if not isinstance(failure.original_exception, Exception):
        failure.is_disconnect = False


def _on_record(
    do: Callable[[PinnedRecord], None], otherwise: Callable[[Any], None]
) -> Callable[[Any], None]:
    def call(connection: Any) -> None:
        if not isinstance(connection, PoolProxiedConnection):  # a driver's, for a savepoint of ours
            otherwise(connection)
            return
        record = connection._connection_record  # noqa: SLF001
        if isinstance(record, PinnedRecord):  # else the connection is being opened
            do(record)

    return call


def _in_turn(pinned: Callable[[], Pinned], execute: Callable[..., None]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        one = pinned()
        if one.is_open:
            one.refuse(args[1])
        if not one.is_open or one.turn.is_mine:  # it is being opened, or a `Connection` is at work
            execute(*args)
            return
        _taking_turn(one, execute)(*args)

    return call


def _with_turn_cursors(context: type[Any], pinned: Callable[[], Pinned]) -> type[Any]:
    """Make execution contexts whose server-side cursors take turns, also where SQLAlchemy closes one that failed."""

    class Context(context):  # type: ignore[misc]
        def create_server_side_cursor(self) -> Any:
            made, one = super().create_server_side_cursor(), pinned()
            # What a `Connection` streams is asked in the turns that it takes itself.
            return made if one.is_open and one.turn.is_mine else TurnCursor(made, one)

    return Context


def _taking_turn(pinned: Pinned, do: Callable[..., T]) -> Callable[..., T]:
    """Have a call, in SQLAlchemy's greenlet, wait for its turn."""

    def call(*args: Any, **options: Any) -> T:
        turn = pinned.turn
        await_only(turn.__aenter__())
        try:
            return do(*args, **options)
        except BaseException as error:
            pinned.note_failure(error)
            raise
        finally:
            await_only(turn.__aexit__(*sys.exc_info()))

    return call


class TurnCursor:
    """A server-side cursor of an engine or a session: its rows come later, when others have their turn."""

    def __init__(self, cursor: Any, pinned: Pinned) -> None:
        self._cursor, self._pinned = cursor, pinned

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._cursor, name)
        return _taking_turn(self._pinned, found) if name in _ASKING else found


_ASKING = {"close", "fetchall", "fetchmany", "fetchone"}


def _nothing(*_: Any) -> None:
    """Leave a connection that is in no autocommit: it would commit all that was done on it."""


def _keeping_to_autocommit(
    pinned: Callable[[], Pinned], set_level: Callable[[Any, Any], None]
) -> Callable[[Any, Any], None]:
    def call(connection: Any, level: Any) -> None:
        if level == "AUTOCOMMIT":
            set_level(connection, level)
        else:  # it is that of the transaction around everything
            pinned().refuse_isolation(level)

    return call
