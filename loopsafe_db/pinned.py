"""PinnedConnection: one connection for everybody, whose work is undone in the end. For tests."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from loopsafe_db._runtime.endings import ENDING_TIMEOUT, or_give_up, to_the_end
from loopsafe_db._runtime.pids import getpid
from loopsafe_db.commit_semantics import (
    ReadOnlyTransaction,
    can_defer,
    check_deferred,
    refuse_stricter,
)
from loopsafe_db.connection import Connection, current_task
from loopsafe_db.drivers.base import TransactionOptions
from loopsafe_db.engines.failing import tell
from loopsafe_db.engines.holders import caller
from loopsafe_db.errors import TransactionError
from loopsafe_db.lexer import statements_of
from loopsafe_db.queries import compile_text
from loopsafe_db.streams import BATCH, ReadCursor
from loopsafe_db.undoable import may_change_schema, refuse_not_undoable

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        Awaitable,
        Callable,
        Iterable,
        Mapping,
        Sequence,
    )
    from typing import Self

    from loopsafe_db.connection import OpenTransaction
    from loopsafe_db.drivers.base import DriverCursor, DriverTransaction
    from loopsafe_db.engines.entry import PoolEntry
    from loopsafe_db.engines.pool import ConnectionPool
    from loopsafe_db.queries import CompiledText, Query
    from loopsafe_db.records import Record

T = TypeVar("T")
_ABORTED = "25P02"  # PostgreSQL's code where a statement failed before in the transaction
STRANGER_PATIENCE = 1.0  # seconds in which nothing is done in the transaction of an unrelated task


class Mark:
    """A place in what was done, to go back to. Whoever leaves a block that has another around it may say so anywhere.

    Attributes:
        savepoint: Of the driver, once the connection has come by.
        is_over: Whether what was done since is to be undone.
    """

    __slots__ = ("is_over", "savepoint")
    is_over: bool
    savepoint: DriverTransaction | None

    def __init__(self) -> None:
        self.savepoint = None
        self.is_over = False


class PinnedConnection(Connection):
    """The one connection of a handle that was told ``force_rollback``. Should live as long as its pool.

    Every task of every loop and thread works on it, in turn: between two operations it is in the pool, which has
    no other, and any loop may take it. A transaction that is never committed surrounds it all, so that the
    transactions of the program are savepoints. An operation outside of those is one, too: what fails is undone
    alone, as if it had committed by itself.

    Where the connection ends, all is lost, and every operation says so until `Database.disconnect`.

    Attributes:
        outlives_disconnect: Whether it is undone by somebody else than `Database.disconnect`.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        super().__init__(pool)
        self._turn = self._lease = _Lease(self)
        self._around: DriverTransaction | None = None
        self._guard: DriverTransaction | None = None
        self._marks: list[Mark] = []
        self._dialect = self._driver.traits.dialect.partition("+")[0]
        self._defers: bool | None = None  # whether constraints may be checked late; None is unknown
        self._lost = False
        self._worked_at = (
            0.0  # when something was done last in a transaction, on the monotonic clock
        )
        self.outlives_disconnect = False

    async def __aenter__(self) -> Self:
        if self._around is None:
            async with self._turn:
                return self
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    @property
    def is_held(self) -> bool:
        """Whether somebody is inside of its block: it is never given back."""
        return True

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open: always."""
        return True

    @property
    def raw_connection(self) -> Any:
        """The driver's own connection, usable in the running loop until others use it; once it has been entered."""
        self._driver.move(self._raw)
        self._defers = None  # who knows what is done on it
        return super().raw_connection

    def _commits(self, _: OpenTransaction) -> bool:
        """Tell it of none: what ends is a savepoint."""
        return False

    async def _do(self, operation: Callable[[Any], Awaitable[T]], *, begins: bool = False) -> T:
        """Run one operation so that its failure undoes nothing else."""
        if self._transactions:
            if super()._is_welcome(nests=False):
                try:
                    return await operation(self._raw)
                except BaseException as error:
                    self.note_failure(error)
                    raise
            return await self._do_as_a_stranger(operation)
        guard = await self._guarded()
        try:
            result = await operation(self._raw)
            await self._check_deferred()
        except BaseException:
            self._guard = None
            await self._undo(guard)
            raise
        return result

    async def _do_as_a_stranger(self, operation: Callable[[Any], Awaitable[T]]) -> T:
        """Run one operation in the open transaction of another task, which must not fail with it."""
        savepoint = self._driver.transaction(self._raw, TransactionOptions())
        await self._settled(savepoint.start())
        try:
            result = await operation(self._raw)
        except BaseException:
            await self._undo(savepoint)
            raise
        await self._settled(savepoint.commit())
        return result

    async def execute_many(
        self,
        query: Query,
        values: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        timeout: float | None = None,
    ) -> int | None:
        """Apply one statement to many mappings of values: all or none. See `Database.execute_many`."""
        if isinstance(query, str):
            self.refuse(query)
        return await super().execute_many(query, values, timeout=timeout)

    async def open_copy(self, query: str, options: str) -> DriverCursor:
        """Copy all out, at once: others have their turns, and their savepoints, on this connection."""
        self.refuse(query)
        copying, pieces = await super().open_copy(query, options), list[Any]()
        while more := await copying.fetch(BATCH):
            pieces += more
        await copying.close()
        return ReadCursor(pieces)

    def refuse(self, text: str) -> None:
        """Refuse a text that would end the transaction around everything.

        Raises:
            NotUndoableError: It would.
        """
        statements = statements_of(text, self._dialect)
        open_now = bool(self._transactions)
        refuse_not_undoable(statements, text, self._dialect, in_transaction=open_now)
        if may_change_schema(statements):
            self._defers = None

    def refuse_isolation(self, level: str) -> None:
        """Refuse an isolation level that the transaction around everything does not have.

        Raises:
            TransactionError: It does not.
        """
        refuse_stricter(level, self._pool.engine.dialect.default_isolation_level)

    async def ask(self, query: str) -> list[Record]:
        """Ask what needs no savepoint, for it changes nothing and cannot fail."""
        sql = compile_text(query, self._driver.traits.dialect).sql
        async with self._turn:
            return await self._driver.fetch_all(self._raw, sql, (), None)

    @property
    def is_here(self) -> bool:
        """Whether this is the process that has it: any loop may use it."""
        return self._key.pid == getpid()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, in the transaction around everything."""
        return self._around is not None

    @property
    def turn(self) -> _Lease:
        """What an operation holds while it runs."""
        return self._lease

    async def commit(self, opened: OpenTransaction) -> None:
        """Release a savepoint. One with others inside just stays: sessions may end in any order.

        Raises:
            TransactionError: It has been undone with the one around it.
        """
        async with self._turn:
            if self._transactions[-1:] != [opened] and opened in self._transactions:
                await self._make_way(opened)
                self._transactions.remove(opened)
                if isinstance(opened.transaction, ReadOnlyTransaction):
                    await opened.transaction.leave()
                return
            if self._transactions == [opened]:
                await self._check_before_commit()
            await super().commit(opened)

    def _compile(
        self, query: str, values: Mapping[str, Any] | None
    ) -> tuple[CompiledText, Sequence[Any]]:
        self.refuse(query)
        return super()._compile(query, values)

    async def rollback(self, opened: OpenTransaction) -> None:
        """Roll back to a savepoint, when its turn comes; without the connection all would be lost."""
        await self._roll_back(opened, self._pool.options.timeouts.acquire)

    def mark(self) -> Mark:
        """Remember what was done until now: when the mark is over, the next operation undoes what came later."""
        mark = Mark()
        self._marks.append(mark)
        return mark

    def left_open(self) -> list[str]:
        """Tell who has begun what has not ended, and where."""
        return [opened.holder for opened in self._transactions]

    async def undo(self) -> None:
        """Undo all that was done; the connection has nothing left then, and may be closed."""
        if self._around is not None and not self._lost:
            with suppress(TransactionError):  # it is lost
                async with self._turn as entry:
                    await self._undo(self._around)
                    await self._forget_transactions()
                    await self._pool.returning.reset_session(entry)
        self._transactions.clear()
        self._marks.clear()
        for one in list(self.streams):
            one.cut(TransactionError("the rows were undone with everything else"))
        if self._entry is not None:
            self._entry.fairy_ref = None  # else SQLAlchemy's proxy ends the connection when it goes
        self._defers = None
        self._around = self._guard = self._raw = self._sqlalchemy = None
        self._lost = False

    # -- what SQLAlchemy's records call

    def touch(self, touched: int) -> None:
        """Note what is about to be changed of the session."""
        if self._entry is not None:
            self._entry.touch(touched)

    @property
    def driver_connection(self) -> Any:
        """The driver's own connection, for SQLAlchemy's users."""
        return None if self._entry is None else self._entry.driver_connection

    # -- what `_Lease` calls

    async def take(self) -> PoolEntry:
        """Get the connection, which nobody else has then, into the running loop."""
        entry = await self._pool.acquire(asyncio.get_running_loop())
        try:
            if self._around is None:
                around = await self._begin_around(entry)
                self._entry, self._raw, self._around = entry, entry.raw, around
            self._lost |= entry.raw is not self._raw
            if self._lost:
                raise TransactionError(
                    "the connection that force_rollback kept has been lost, with all that was done on it"
                )
            await self._respect_marks()
        except BaseException:
            if self._around is None:
                entry.terminate()  # what has begun on it is nobody's
            self._pool.give_back(entry)
            raise
        return entry

    async def put(self, entry: PoolEntry, error: BaseException | None) -> None:
        """Let others have it, as soon as what `error` has interrupted is over."""
        if super()._is_welcome(nests=False):
            self._worked_at = time.monotonic()
        try:
            if isinstance(error, (asyncio.CancelledError, TimeoutError)) and entry.is_open:
                await self._pool.returning.recover(entry, reset=False)
        finally:
            self._pool.give_back(entry)

    # -- below

    async def _respect_marks(self) -> None:
        """Go back to marks that are over, and set those that are new; not in the middle of a transaction."""
        # A block that began since the last operation has no savepoint yet, and is not in the way of the one before it.
        begun = [(mark, mark.savepoint) for mark in self._marks if mark.savepoint is not None]
        while begun and begun[-1][0].is_over:
            over, savepoint = begun.pop()
            self._marks.remove(over)
            await self._make_way(*self._transactions)  # cursors go with it
            self._guard = None
            await self._undo(savepoint)
            await self._forget_transactions()
        for mark in [one for one in self._marks if one.is_over and one.savepoint is None]:
            self._marks.remove(mark)
        for mark in self._marks:
            if mark.savepoint is None and not self._transactions:
                self._guard = None  # it is released before the mark is, or never
                savepoint = self._driver.transaction(self._raw, TransactionOptions())
                await self._settled(savepoint.start())
                mark.savepoint = savepoint

    def _check(self) -> None:
        """Refuse nobody."""

    def _check_still_held(self, entry: PoolEntry | None) -> None:
        """Refuse nobody: it is never given back."""

    @property
    def _patience(self) -> float:
        return STRANGER_PATIENCE

    def _is_welcome(self, *, nests: bool) -> bool:
        if super()._is_welcome(nests=nests):
            return True
        # An unrelated task's statement is in whatever is open; where that has failed, PostgreSQL refuses it.
        innermost = self._innermost
        failed = self._dialect == "postgresql" and innermost is not None and innermost.failure
        return not (nests or failed or any(one.surrounds() for one in list(self._transactions)))

    def _is_urgent(self, give_up: float) -> bool:
        # In the transaction of a task that waits for who waits here, nothing is done.
        return bool(give_up) and time.monotonic() > max(
            give_up, self._worked_at + STRANGER_PATIENCE
        )

    async def _pause(self) -> None:
        began = time.monotonic()
        await super()._pause()
        if (now := time.monotonic()) - began > STRANGER_PATIENCE / 2:
            self._worked_at = now  # the process stood still: nobody could have done anything

    async def _begin(self, options: TransactionOptions) -> OpenTransaction:
        opened = await super()._begin(options)
        opened.begun_at = caller()
        return opened

    def _make_transaction(self, options: TransactionOptions) -> DriverTransaction:
        """Make a savepoint; what else is asked of the outermost one is honoured or refused."""
        if options.isolation is not None:
            self.refuse_isolation(options.isolation)
        savepoint = super()._make_transaction(TransactionOptions())
        if not options.readonly:
            return savepoint
        return ReadOnlyTransaction(self._driver, self._raw, self._dialect, savepoint)

    async def _check_deferred(self) -> None:
        """Check the constraints that a commit would check now."""
        if self._defers is None:
            self._defers = await can_defer(self._driver, self._raw, self._dialect)
        if self._defers:
            await check_deferred(self._driver, self._raw, self._dialect)

    async def _check_before_commit(self) -> None:
        try:
            await self._check_deferred()
        except Exception as error:
            if getattr(error, "sqlstate", "") != _ABORTED:  # else the commit says so itself
                self._tell_noted(self._entry, error)
                raise

    async def _begin_around(self, entry: PoolEntry) -> DriverTransaction:
        """Begin the transaction around everything."""
        try:
            around = self._driver.transaction(entry.raw, TransactionOptions())
            await self._settled(around.start())
        except Exception as error:
            self._tell_noted(entry, error)
            raise
        return around

    def _tell_noted(self, entry: PoolEntry | None, error: Exception) -> None:
        """Note the error of what this has sent by itself, and raise what it means to all drivers alike."""
        if entry is not None:
            self._pool.returning.note_error(entry, error)
        tell(self._pool, entry, error, None, undone=True)

    async def _forget_transactions(self) -> None:
        transactions, self._transactions = self._transactions, []
        for opened in transactions:
            if isinstance(opened.transaction, ReadOnlyTransaction):
                await opened.transaction.leave()

    async def _guarded(self) -> DriverTransaction:
        """Set the savepoint of an operation; that of the one before is released only now, in the same message."""
        guard = self._guard
        if guard is None:
            guard = self._guard = self._driver.transaction(self._raw, TransactionOptions())
            await self._settled(guard.start())
        else:
            await self._settled(guard.renew())
        return guard

    async def _settled(self, operation: Awaitable[T]) -> T:
        """Await what changes the savepoints, to its end."""
        return await to_the_end(operation, ENDING_TIMEOUT, self.give_up)

    async def _undo(self, transaction: DriverTransaction) -> None:
        await or_give_up(transaction.rollback, ENDING_TIMEOUT, self.give_up)


class _Lease:
    """The turn of one operation: the pool's only connection, lent. A task may take it again while it has it."""

    def __init__(self, connection: PinnedConnection) -> None:
        self._connection = connection
        self._holder: asyncio.Task[Any] | None = None
        self._depth = 0
        self._entry: PoolEntry

    def locked(self) -> bool:
        """Tell whether somebody has it."""
        return self._holder is not None

    @property
    def is_mine(self) -> bool:
        """Whether the running task has it."""
        return self._holder is current_task()

    async def __aenter__(self) -> PoolEntry:
        if not self.is_mine:
            self._entry = await self._connection.take()
            self._holder = current_task()
        self._depth += 1
        return self._entry

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._holder = None
            await self._connection.put(self._entry, error)
