"""Connection: one checked-out connection, owned by one asyncio task."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.util import greenlet_spawn

from loopsafe_db._runtime.endings import ENDING_TIMEOUT, or_give_up, to_the_end
from loopsafe_db._runtime.generators import Inner, inner_block
from loopsafe_db._runtime.keys import running_loop
from loopsafe_db._runtime.pids import getpid
from loopsafe_db._runtime.registry import current_key
from loopsafe_db.ancestry import Block, is_inside_any
from loopsafe_db.control import BLOCK, refuse_end
from loopsafe_db.copies import rows_to_copy
from loopsafe_db.drivers.base import TransactionOptions
from loopsafe_db.drivers.session_state import Touched, touched_by_sql
from loopsafe_db.engines.clauses import batches, keyed, with_values
from loopsafe_db.engines.failing import named, tell
from loopsafe_db.engines.holders import caller, describe
from loopsafe_db.engines.observed import observed_rows
from loopsafe_db.engines.statement_timeout import TIMED, commit_unknown, within
from loopsafe_db.errors import (
    BusyConnectionError,
    ConnectionLost,
    ForeignLoopError,
    ForeignTaskError,
    ForeignTransactionError,
    InvalidSettingError,
    QueryError,
    ReleasedError,
    StatementTimeout,
    TransactionAborted,
    TransactionError,
    TransactionOptionsError,
    UnsupportedError,
)
from loopsafe_db.failures import drivers_own
from loopsafe_db.options import call_limit
from loopsafe_db.queries import compile_text, explain
from loopsafe_db.records import Record, RecordKeys, TupleRecord
from loopsafe_db.streams import BATCH, ClauseCursor, Rows, RowStream
from loopsafe_db.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Mapping,
        Sequence,
    )
    from typing import Self

    from loopsafe_db._runtime.keys import LoopKey
    from loopsafe_db.drivers.base import DriverCursor, DriverTransaction, Isolation
    from loopsafe_db.engines.entry import PoolEntry
    from loopsafe_db.engines.pool import ConnectionPool
    from loopsafe_db.queries import CompiledText, Query

_log = logging.getLogger("loopsafe_db")
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
STRANGER_DELAY = (
    0.01  # seconds between two looks at a transaction of a task of perhaps another loop
)

_ENDED = (
    "this transaction was ended by something else than its block, as a COMMIT on the raw connection, and nobody knows "
    "what of it is stored"
)
_GIVEN_UP = (
    "the connection was ended, for a rollback on it did not come to its end: no answer came, or a cancellation was "
    "swallowed in the block, and had struck while a transaction began or ended. Let CancelledError pass"
)
BATCH_OF_VALUES = 1000  # that `execute_many` takes of an async iterator at a time
_KEYS = 2**63  # of advisory locks, from minus that
_FORMATS = ("text", "csv", "binary")
_PLAIN = TransactionOptions()  # made once: each block would pay for it

# Without it, SQLAlchemy keeps the rows affected by an UPDATE or DELETE only.
_COUNTED = {**TIMED, "preserve_rowcount": True}


class Turn(Protocol):
    """What an operation holds while it runs."""

    def locked(self) -> bool:
        """Tell whether somebody has it."""

    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *_: Any) -> Any: ...


class OpenTransaction:
    """A driver's transaction or savepoint that has begun, and who began it."""

    def __init__(self, transaction: DriverTransaction) -> None:
        self.transaction = transaction
        self.block: Block = Block()
        self.begun_at = ""  # where that is wanted
        self._task, self._since = asyncio.current_task(), time.monotonic()
        self.failure: BaseException | None = None  # the first in it
        self.is_lost = False  # whether the server has ended it, with all that are open

    @property
    def holder(self) -> str:
        """Who has begun it, since when and where."""
        return describe(self._task, self._since, self.begun_at)

    def surrounds(self) -> bool:
        """Tell whether the running task is inside of it, so that what it does belongs to it.

        What a task has begun that is over, as that of ``asyncio.wait_for(transaction.start(), …)``, is anybody's.
        """
        task = self._task
        return asyncio.current_task() is task or self.block.surrounds or task is None or task.done()

    @property
    def is_inherited(self) -> bool:
        """Whether the running task was started inside of it, by a task that is still at it."""
        return self.block.surrounds and self._task is not None and not self._task.done()


class Connection:
    """A connection for the length of an ``async with``; what `Database.connection` gives.

    It belongs to the asyncio task that enters it first. Tasks that are started inside may use it, too, if it is
    handed to them: then operations take turns. Entered again meanwhile, it is the same; entered later, another.

    Attributes:
        is_lone: Whether one stream has it, and nobody else.
    """

    is_lone = False

    def __init__(self, pool: ConnectionPool, timeout: float | None = None) -> None:
        self._pool, self._driver, self._acquire_timeout = pool, pool.driver, timeout
        self._key, self._taken_at = pool.key, ""  # until it is entered
        self._depth = 0  # how often it has been entered
        self._entry: PoolEntry | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._raw: Any = None
        self._owner: asyncio.Task[Any] | None = None
        self._block = Block()
        self._turn: Turn = asyncio.Lock()
        self._sharers: set[asyncio.Task[Any]] = set()
        self._guests: list[asyncio.Task[Any]] = []  # others that are inside of its block
        self._transactions: list[OpenTransaction] = []
        self._outermost = _PLAIN
        self._sqlalchemy: sa.Connection | None = None  # made when it is to run something
        self.streams: list[RowStream] = []  # those that have something open here
        self._rows_of_copy: Block | None = None  # while rows are copied here: in it, they are made

    def __repr__(self) -> str:
        state = "not checked out" if self._entry is None else "in use"
        return f"<Connection {self._driver.traits.name} of {self._key}, {state}>"

    async def __aenter__(self) -> Self:
        if self._depth:
            self._check()
            self._depth += 1
            if self.is_guest:
                self._guests.append(current_task())
            return self
        self._depth = 1
        try:
            await self._check_out(caller())
        except BaseException:
            self._depth = 0
            await self._release()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            await self._release()
        elif self._guests and (task := current_task()) in self._guests:
            self._guests.remove(task)
        elif self._depth == len(self._guests):
            self._pass_on(self._guests[0])

    def _pass_on(self, heir: asyncio.Task[Any]) -> None:
        """Let a task have it that is still inside, where its owner has left."""
        if self._owner is not None:
            self._unbind(self._owner)
        self._owner = heir
        self._guests = [task for task in self._guests if task is not heir]
        self._bind(heir)

    @property
    def is_held(self) -> bool:
        """Whether somebody is inside of its block."""
        return self._depth > 0

    @property
    def pool(self) -> ConnectionPool:
        """The pool that lends it."""
        return self._pool

    @property
    def raw_connection(self) -> Any:
        """The driver's own connection; refused when this one has been released."""
        self._check()
        self._refuse_rows_of_copy()
        if any(one.within is None for one in self.streams):
            raise TransactionError(
                "rows are being read on this connection, in a transaction that ends with them: what is done on "
                "the raw connection would be in it; read all of them, or close the stream by aclose(), before"
            )
        assert self._entry is not None
        return self._entry.hand_out()

    async def fetch_all(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> list[Record]:
        """Give every row, in the server's order. See `Database.fetch_all`."""
        if isinstance(query, str):
            compiled, args = self._compile(query, values)
            limit = self._limit(timeout)
            return await self._run_text(
                compiled,
                lambda raw: self._pool.user_driver.fetch_all(raw, compiled.sql, args, limit),
            )
        return (await self._run_clause(query, values, timeout))[0]

    async def fetch_one(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Record | None:
        """Give the first row, or None. See `Database.fetch_one`."""
        if isinstance(query, str):
            compiled, args = self._compile(query, values)
            limit = self._limit(timeout)
            return await self._run_text(
                compiled,
                lambda raw: self._pool.user_driver.fetch_one(raw, compiled.sql, args, limit),
            )
        rows, _ = await self._run_clause(query, values, timeout)
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
            limit = self._limit(timeout)
            return await self._run_text(
                compiled, lambda raw: self._pool.user_driver.execute(raw, compiled.sql, args, limit)
            )
        rows, outcome = await self._run_clause(query, values, timeout)
        return rows[0][0] if rows else outcome

    async def execute_many(
        self,
        query: Query,
        values: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        timeout: float | None = None,
    ) -> int | None:
        """Apply one statement to many mappings of values: all or none. See `Database.execute_many`."""
        self._check()
        if isinstance(values, AsyncIterable):
            async with self.transaction():
                return await self._execute_batches(query, values, timeout)
        values = list(values)  # a generator can be read once
        if not values:
            return 0
        if not isinstance(query, str):
            async with self.transaction():
                return (await self._run_clause(query, values, timeout))[1]  # type: ignore[no-any-return]
        compiled = compile_text(query, self._driver.traits.dialect)
        rows = compiled.many(values)
        self._note_text(compiled)
        limit = self._limit(timeout)
        return await self._run_text(
            compiled,
            lambda raw: self._pool.user_driver.execute_many(raw, compiled.sql, rows, limit),
            begins=True,
        )

    async def _execute_batches(
        self, query: Query, values: AsyncIterable[Mapping[str, Any]], timeout: float | None
    ) -> int | None:
        """Apply a statement to values as they come, in a transaction that is open."""
        counts: list[int | None] = []
        batch: list[Mapping[str, Any]] = []
        async for value in values:
            batch.append(value)
            if len(batch) == BATCH_OF_VALUES:
                counts.append(await self.execute_many(query, batch, timeout=timeout))
                batch = []
        counts.append(await self.execute_many(query, batch, timeout=timeout))
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    async def copy_records_to(
        self,
        table: str,
        rows: Iterable[Sequence[Any] | Record] | AsyncIterable[Sequence[Any] | Record],
        *,
        columns: Sequence[str] | None = None,
        schema: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Copy rows to a table by PostgreSQL's COPY. See `Database.copy_records_to`."""
        self._check()
        driver = self._copying("copy_records_to")
        given = rows_to_copy(rows, columns)
        limit = self._limit(timeout)

        async def copy(raw: Any) -> int:
            block = self._rows_of_copy = Block()
            block.enter()
            try:
                return await within(limit, driver.copy_in(raw, table, schema, columns, given))
            finally:
                block.leave()
                self._rows_of_copy = None

        return await self._run_text(f"COPY {table} FROM STDIN", copy)

    def copy_from_query(
        self, query: str, *, format: str = "text", header: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """Give the rows of a query as PostgreSQL's COPY writes them. See `Database.copy_from_query`."""
        return copy_stream(lambda: self, query, format, header=header)

    @inner_block
    async def advisory_lock(
        self, key: int | str, *, shared: bool = False, timeout: float | None = None
    ) -> AsyncIterator[None]:
        """Hold a lock of PostgreSQL's that is the application's own. See `Database.advisory_lock`."""
        check_lock_key(key)
        self._session_driver("advisory_lock")
        kind = "_shared" if shared else ""
        which = ":key" if isinstance(key, int) else "hashtextextended(:key, 0)"
        if await self._lock(f"pg_advisory%s_lock{kind}({which})", key, timeout):
            yield
            return
        unlock = f"SELECT pg_advisory_unlock{kind}({which})"
        try:
            yield
        except BaseException:
            await self._unlock(unlock, key)
            raise
        if isinstance(lost := await self._unlock(unlock, key), ConnectionLost):
            raise lost

    async def _lock(self, function: str, key: int | str, timeout: float | None) -> bool:
        """Take an advisory lock; tell whether a transaction has it, with which it ends."""
        of_session, args = self._compile(f"SELECT {function % ''}", {"key": key})
        of_transaction = compile_text(f"SELECT {function % '_xact'}", self._driver.traits.dialect)
        limit, is_transactions = self._limit(timeout), False

        async def lock(raw: Any) -> None:
            nonlocal is_transactions
            # All is one transaction under `force_rollback`, which would keep it.
            is_transactions = bool(self._transactions) and self._pool.pinned is None
            sql = (of_transaction if is_transactions else of_session).sql
            await self._pool.user_driver.execute(raw, sql, args, limit)

        await self._run_text(of_session, lock)
        return is_transactions

    async def _unlock(self, unlock: str, key: int | str) -> Exception | None:
        """Give a lock back, whoever is cancelled; give the error. The reset of the session gives it back then."""
        failure: Exception | None = None

        async def work() -> None:
            nonlocal failure
            try:
                await self.execute(unlock, {"key": key})
            except Exception as error:  # noqa: BLE001 (who is in the block may have an error of its own)
                failure = error
                self._touch(Touched.RAW)
                _log.info("an advisory lock stays until its connection is given back: %s", error)

        if self._key.pid == getpid():
            await or_give_up(work, ENDING_TIMEOUT, self.give_up)
        return failure

    def _copying(self, what: str) -> Any:
        """Give a driver that knows PostgreSQL's COPY and LISTEN.

        Raises:
            UnsupportedError: It does not.
        """
        return copying_driver(self._pool, what)

    def _session_driver(self, what: str) -> Any:
        """Give such a driver where the connection keeps its session of the server's.

        Raises:
            UnsupportedError: The driver does not know of it; or there is a PgBouncer in transaction mode, named or not.
        """
        driver = copying_driver(self._pool, what, session=True)
        self._check()
        mode = self._pool.driver.pool_mode(self._raw)  # type: ignore[attr-defined]
        if mode in ("transaction", "statement"):
            raise UnsupportedError(what, f"a PgBouncer in {mode} mode")
        return driver

    def iterate(
        self, query: Query, values: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Record, None]:
        """Give rows as they are needed, with flat memory. See `Database.iterate`.

        Outside a transaction, the first thing that is done otherwise on this connection has the rest of the rows read
        into memory.
        """
        return stream(lambda: self, query, values)

    def transaction(
        self,
        *,
        isolation: Isolation | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        force_rollback: bool = False,
    ) -> Transaction:
        """Make a transaction on this connection; inside another one, a savepoint. See `Database.transaction`."""
        options = TransactionOptions(isolation, readonly, deferrable)
        return Transaction(lambda: self, options, force_rollback=force_rollback)

    @inner_block
    async def share(self) -> AsyncIterator[Connection]:
        """Have what this asyncio task asks of the handle join the connection, and its transaction, of another task.

        Enter it *in* the other task, inside the owner's block. Operations of both tasks take turns.
        """
        task = current_task()
        if current_key() != self._key:
            raise ForeignLoopError(repr(self), self._key, current_key(), self._taken_at)
        self._sharers.add(task)
        self._bind(task)
        try:
            yield self
        finally:
            self._sharers.discard(task)
            self._unbind(task)

    # -- what `Transaction` calls

    async def begin(self, options: TransactionOptions) -> OpenTransaction:
        """Begin a transaction, or a savepoint in the one that is open; wait while that is a stranger's.

        Raises:
            TransactionError: `options` belong to an outermost transaction, or the stranger's took too long.
        """
        self._check()
        try:
            return await self._in_turn(lambda: self._begin(options), nests=True)
        except Exception as error:
            self.tell(error, "SAVEPOINT" if self._transactions else "BEGIN")
            raise

    async def commit(self, opened: OpenTransaction) -> None:
        """Commit the innermost transaction.

        Raises:
            TransactionAborted: The server does not commit it: it is to be rolled back.
            TransactionError: `opened` is not the innermost, and stays open; or it has been undone.
        """
        entry = self._entry
        self._refuse_rows_of_copy()
        async with self._turn:
            if opened not in self._transactions:
                raise TransactionError("the transaction was undone with the one around it")
            if opened is not self._transactions[-1]:
                raise TransactionError("the transaction has another one open inside it")
            self._check_still_held(entry)
            await self._make_way(opened)
            self._check_transaction()
            commits = self._commits(opened)
            what = "COMMIT" if self._transactions == [opened] else "RELEASE SAVEPOINT"
            try:
                await self._settled(self._commit(opened))
            except Exception as error:
                self.tell(error, what, commits=commits)
                if commits and isinstance(error, StatementTimeout):
                    raise commit_unknown(error) from error
                raise

    async def rollback(self, opened: OpenTransaction) -> None:
        """Roll a transaction back, with those inside it, whoever is cancelled; in a forked child, do nothing.

        If that takes more than 2 s, or fails, the connection is ended, and the server rolls back.
        """
        await self._roll_back(opened, ENDING_TIMEOUT)

    def has_open(self, opened: OpenTransaction) -> bool:
        """Tell whether a transaction is open here, and in this process: it may have gone with the one around it."""
        is_held = self._entry is not None and self._key.pid == getpid()
        return is_held and opened in self._transactions

    def forsake(self) -> None:
        """Note that nobody gives it back, and have it ended when its task is done. Any thread may call it."""
        if self._entry is not None and self._depth == 1:
            self._entry.is_stuck = True
            if self._owner is not None:
                self._pool.sweep_after(self._owner)

    def note_begin_failed(self, error: BaseException) -> None:
        """End the connection if nobody knows whether something has begun: later statements must not be in that."""
        entry = self._entry
        if entry is not None and entry.is_open and not self._pool.returning.is_idle(entry):
            entry.in_doubt = True
            self._pool.returning.note_error(entry, error)

    def give_up(self, because: str = "") -> None:
        """End the connection: what was done on it cannot be told any more.

        Args:
            because: What its user is to hear, if he asks something of it.
        """
        if self._entry is not None:
            self._entry.ended_because = because
            self._entry.terminate()

    # -- below

    def _commits(self, opened: OpenTransaction) -> bool:
        """Tell whether a COMMIT is about to be sent: of a closed connection no driver sends any."""
        return self._transactions == [opened] and not self._driver.is_closed(self._raw)

    async def _commit(self, opened: OpenTransaction) -> None:
        """Commit; what fails, or is cancelled half-way, stays open for a rollback."""
        try:
            if opened.is_lost:
                raise TransactionAborted
            await self.in_time(opened.transaction.commit())
        except TransactionAborted as error:
            error.retryable = self._may_succeed_again(opened.failure)
            raise error from opened.failure
        self._transactions.remove(opened)
        self._note_transactions()

    def _may_succeed_again(self, failure: BaseException | None) -> bool:
        """Tell it of a transaction that the server has rolled back, by its first failure."""
        if not isinstance(failure, Exception):
            return False
        meant = named(self._pool, self._entry, failure, None, undone=True)
        return meant is not None and meant.retryable

    async def _roll_back(self, opened: OpenTransaction, seconds: float) -> None:
        async def roll_back() -> None:
            async with self._turn:
                if opened in self._transactions:
                    ended = self._transactions[self._transactions.index(opened) :]
                    await self._make_way(*ended)
                    del self._transactions[-len(ended) :]
                    self._note_transactions()
                    if self._entry is None:
                        return  # it is undone, and others may have the connection
                    if not (opened.is_lost and self._transactions):  # its savepoint is no more
                        await opened.transaction.rollback()

        if self._key.pid == getpid():
            await or_give_up(roll_back, seconds, lambda: self.give_up(_GIVEN_UP))

    async def _check_out(self, place: str) -> None:
        if self._owner is not None:  # it was entered before
            self._begin_anew()
        self._owner, self._taken_at = current_task(), place
        loop = self._owner.get_loop()
        entry = self._pool.acquire_nowait(loop) or await self._pool.acquire(
            loop, self._acquire_timeout
        )
        self._entry, self._raw, self._key = entry, entry.raw, entry.home_key
        entry.taken_at, entry.in_doubt = place, False
        self._enter_block()

    def _enter_block(self) -> None:
        """Have its task use it, and those that are started in the block."""
        if self._owner is not None:
            self._bind(self._owner)
        self._block.enter()

    def _release(self) -> Awaitable[None]:
        """Give the connection back to its pool."""
        self._block.leave()
        return self._end_and_return() if self.streams else self._return()

    async def _end_and_return(self) -> None:
        try:
            if self.is_here and not self._turn.locked():
                await or_give_up(self._end_streams, ENDING_TIMEOUT, self.give_up)
        finally:
            for one in list(self.streams):
                one.cut(ReleasedError(repr(self), self._taken_at))
            await self._return()

    async def _end_streams(self) -> None:
        """End what is read no more: its block is over."""
        async with self._turn:
            for one in list(self.streams):
                await self._end_stream(one, one.end)
                one.cut(ReleasedError(repr(self), self._taken_at))

    async def _return(self) -> None:
        entry, self._entry = self._entry, None
        if entry is None or self._key.pid != getpid():
            return
        if self._owner is not None:
            self._unbind(self._owner)
        entry.interrupted |= self._turn.locked()  # a task that it was handed to is at work
        try:
            await self._pool.returning.make_idle(entry)
        finally:
            if self._sqlalchemy is None or not entry.is_open:
                self._pool.returning.release_nowait(entry)
            else:
                await self._give_back(entry, self._sqlalchemy)

    async def _give_back(self, entry: PoolEntry, core: sa.Connection) -> None:
        returning, since = self._pool.returning, entry.since
        try:
            await greenlet_spawn(core.close)  # it releases the connection
        except BaseException:  # the end of a loop cancels each of its tasks
            if entry.since == since:  # else somebody has it already
                entry.terminate()
                returning.release_nowait(entry)
            raise

    async def _in_turn(self, work: Callable[[], Awaitable[T]], *, nests: bool = False) -> T:
        """Work as soon as it is this task's turn, and no stranger's transaction is open: the work would be in that.

        Args:
            work: What is done then.
            nests: Whether it begins a transaction.
        """
        self._refuse_rows_of_copy()
        entry, give_up = self._entry, 0.0
        while True:
            # Who waits leaves the turn to the transaction that it waits for.
            if (
                self._is_welcome(nests=nests)
                or self._is_urgent(give_up)
                or self._entry is not entry
            ):
                async with self._turn:
                    self._check_still_held(entry)
                    if self._is_welcome(nests=nests) or self._is_urgent(give_up):
                        if self.streams:
                            await self._make_way()
                        return await work()
            give_up = give_up or time.monotonic() + self._patience
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(STRANGER_DELAY)

    @property
    def _patience(self) -> float:
        return self._pool.options.timeouts.acquire

    def _is_welcome(self, *, nests: bool) -> bool:
        """Tell whether what the running task does now is in no transaction but its own."""
        innermost = self._innermost
        if innermost is None or innermost.surrounds():
            return True
        return not nests and asyncio.current_task() in self._sharers

    @property
    def _innermost(self) -> OpenTransaction | None:
        """The innermost transaction now: another thread may end it meanwhile."""
        last = self._transactions[-1:]
        return last[0] if last else None

    def _is_urgent(self, give_up: float) -> bool:
        """Tell whether to go on all the same, or give up, after `give_up`."""
        if not give_up or time.monotonic() < give_up:
            return False
        raise TransactionError(
            f"a transaction of another task has been open on {self!r} for too long: "
            + ("" if (innermost := self._innermost) is None else innermost.holder)
        )

    async def _begin(self, options: TransactionOptions) -> OpenTransaction:
        """Begin, in this task's turn."""
        self._check_transaction()
        if not self._transactions:
            self._outermost = options
        elif options not in (_PLAIN, self._outermost):
            raise TransactionOptionsError(
                "isolation, readonly and deferrable belong to the outermost transaction"
            )
        else:
            options = _PLAIN
        seconds = self._limit(None) or self._pool.options.timeouts.acquire
        opened = OpenTransaction(await self._settled(within(seconds, self._started(options))))
        self._transactions.append(opened)
        self._note_transactions()
        return opened

    def _note_transactions(self) -> None:
        """Have SQLAlchemy's way know whether a text may end a transaction, or write there."""
        if self._entry is not None:
            self._entry.kept_by = BLOCK if self._transactions else ""
            self._entry.readonly = self._outermost.readonly and bool(self._transactions)

    def _check_transaction(self) -> None:
        """Refuse what belongs to a transaction that is no more: the server would commit it at once.

        Raises:
            TransactionAborted: It was ended otherwise than by its block.
        """
        if self._transactions and self._driver.traits.has_ended(self._raw):
            for opened in self._transactions:
                opened.is_lost = True
            raise TransactionAborted(_ENDED)

    async def _started(self, options: TransactionOptions) -> DriverTransaction:
        transaction = self._make_transaction(options)
        await transaction.start()
        return transaction

    def _make_transaction(self, options: TransactionOptions) -> DriverTransaction:
        return self._pool.user_driver.transaction(self._raw, options)

    def _bind(self, task: asyncio.Task[Any]) -> None:
        self._pool.bound.setdefault(weakref.ref(task), []).append(weakref.ref(self))

    def _unbind(self, task: asyncio.Task[Any]) -> None:
        key, this = weakref.ref(task), weakref.ref(self)
        stack = self._pool.bound.get(key, [])
        if this in stack:
            stack.remove(this)
        if not stack:
            self._pool.bound.pop(key, None)

    def _check(self) -> None:
        """Refuse any user but the owner, and those it has led to, before anything reaches the driver."""
        task = current_task()
        if task is self._owner and self._entry is not None and self._key.pid == getpid():
            return
        caller = current_key()
        if caller != self._key and self._taken_at:
            raise ForeignLoopError(repr(self), self._key, caller, self._taken_at)
        if self._entry is None:
            raise ReleasedError(repr(self), self._taken_at)
        if task is not self._owner and task not in self._sharers:
            if self._block.surrounds or self.transaction_of_caller is not None:
                return
            owner = "" if self._owner is None else self._owner.get_name()
            raise ForeignTaskError(repr(self), owner, task.get_name(), self._taken_at)

    def _refuse_rows_of_copy(self) -> None:
        """Refuse what makes the rows of a COPY on this connection: it would wait for the COPY, which waits for it.

        Raises:
            BusyConnectionError: The running code does.
        """
        if self._rows_of_copy is not None and self._rows_of_copy.surrounds:
            raise BusyConnectionError(repr(self), self._taken_at)

    def _compile(
        self, query: str, values: Mapping[str, Any] | None
    ) -> tuple[CompiledText, Sequence[Any]]:
        self._check()
        compiled = compile_text(query, self._driver.traits.dialect)
        self._note_text(compiled)
        return compiled, compiled.arguments(values)

    def _note_text(self, compiled: CompiledText) -> None:
        """Note what is about to be sent.

        Raises:
            TransactionError: It would end the transaction of a block.
        """
        if compiled.ends and self.in_transaction:
            refuse_end(compiled.ends, BLOCK)
        self._pool.note(compiled.text)
        self._touch(compiled.touches)

    def _touch(self, touches: int) -> None:
        if touches and self._entry is not None:
            self._entry.touch(touches)

    # -- what `RowStream` calls

    @property
    def is_here(self) -> bool:
        """Whether the process and the loop are those that it was taken in."""
        return current_key() == self._key

    @property
    def enclosing(self) -> OpenTransaction | None:
        """The innermost transaction, if the running task is inside of it."""
        innermost = self._innermost
        return innermost if innermost is not None and innermost.surrounds() else None

    def driver_transaction(self, options: TransactionOptions) -> DriverTransaction:
        """Make a transaction that only a stream knows of."""
        return self._pool.user_driver.transaction(self._raw, options)

    async def read(self, one: RowStream, operation: Callable[[], Awaitable[None]]) -> None:
        """Do in turn what a stream does on what it has open here, if it still has: no other has to step aside.

        Raises:
            ForeignLoopError: It is read in another loop or process.
        """
        if not self.is_here:
            raise ForeignLoopError(repr(self), self._key, current_key(), self._taken_at)
        self._refuse_rows_of_copy()
        async with self._turn:
            if one in self.streams:
                await self._do(lambda _: operation())

    def tell(
        self,
        error: Exception,
        query: CompiledText | str | None = None,
        *,
        commits: bool = False,
    ) -> None:
        """Raise what an error means, if it is of the family that all drivers have; else add to it what has failed.

        Args:
            error: The driver's, which has been noted.
            query: The statement.
            commits: Whether it is of a COMMIT that was sent.
        """
        tell(self._pool, self._entry, error, query, undone=self.in_transaction, commits=commits)

    def written(self, query: Query) -> CompiledText | str:
        """Give a query as an error tells of it."""
        dialect = self._driver.traits.dialect
        return compile_text(query, dialect) if isinstance(query, str) else str(query)

    async def notifications(self, channel: str) -> AsyncGenerator[tuple[int, str] | None, None]:
        """Give what is notified on a channel, as long as the connection lives; first None, when it listens."""
        entry, driver = self._entry, self._session_driver("listen")
        assert entry is not None
        try:
            async with Inner(driver.listen(self._raw, channel)) as heard:
                async for told in heard:
                    yield told
        except Exception as error:
            self._pool.returning.note_error(entry, error)
            self.tell(error)
            raise

    async def open_copy(self, query: str, options: str) -> DriverCursor:
        """Begin to copy out, inside a transaction, in a turn."""
        self._check()
        self._pool.note(query)
        self._touch(touched_by_sql(query, self._driver.traits.dialect))
        return await self._copying("copy_from_query").copy_out(self._raw, query, options)  # type: ignore[no-any-return]

    async def open_cursor(self, query: Query, values: Mapping[str, Any] | None) -> DriverCursor:
        """Begin to read rows, inside a transaction, in a turn."""
        if isinstance(query, str):
            compiled, args = self._compile(query, values)
            return await self._pool.user_driver.open_cursor(self._raw, compiled.sql, args)
        self._check_clause(query)
        if self._entry is not None:
            self._entry.in_doubt = False  # but while the dialect asks the server: see `mark_doubt`
        options = {**TIMED, "stream_results": True, "max_row_buffer": BATCH}
        try:
            result = await greenlet_spawn(
                self._core().execute, query, values or {}, execution_options=options
            )
        except sa.exc.DBAPIError as error:
            raise self._driver.original(error) from None
        return observed_rows(ClauseCursor(result), result.context)

    def drops_plans(self, error: BaseException) -> bool:
        """Tell whether what failed may be tried again, outside a transaction: a table was altered."""
        entry = self._entry
        return entry is not None and entry.is_open and self._pool.drops_plans(entry, error)

    # -- what `SessionMaker` calls

    def sqlalchemy_in_transaction(self) -> sa.Connection:
        """Give SQLAlchemy's connection on this one, which knows that a transaction is open."""
        self._check()
        self._refuse_rows_of_copy()
        connection = self._core()
        if not connection.in_transaction():
            connection.begin()  # a mark only: it is in autocommit
        return connection

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return bool(self._transactions)

    @property
    def transaction_of_caller(self) -> OpenTransaction | None:
        """The transaction here that the running task was started inside of, by a task that is still at it."""
        return next((opened for opened in list(self._transactions) if opened.is_inherited), None)

    @property
    def is_guest(self) -> bool:
        """Whether the running task is none of those that the connection was taken by, or shared with."""
        task = current_task()
        return task is not self._owner and task not in self._sharers

    @property
    def key(self) -> LoopKey:
        """The process and the loop that it was taken in."""
        return self._key

    def in_time(self, operation: Awaitable[T]) -> Awaitable[T]:
        """Await what the driver does without a limit of its own, for as long as a statement may take."""
        return within(self._limit(None), operation)

    def _limit(self, timeout: float | None) -> float | None:
        return self._pool.options.timeouts.statement if timeout is None else call_limit(timeout)

    def run(
        self, operation: Callable[[Any], Awaitable[T]], *, begins: bool = False
    ) -> Awaitable[T]:
        """Run one operation on the driver's connection, in turn.

        Args:
            operation: What the driver does.
            begins: Whether it may begin a transaction of its own.

        Raises:
            ReleasedError: The block of the connection has ended before it was this task's turn.
        """
        return self._in_turn(lambda: self._do(operation, begins=begins))

    async def _run_text(
        self,
        compiled: CompiledText | str,
        operation: Callable[[Any], Awaitable[T]],
        *,
        begins: bool = False,
    ) -> T:
        """Run what the driver does with a text, or with a clause's; what fails tells with which."""
        try:
            return await self.run(operation, begins=begins)
        except Exception as error:
            self.tell(error, compiled)
            raise

    def _noted_query(self, error: E, query: CompiledText | str | None) -> E:
        explain(error, query, self._pool.options.url, caller())
        return error

    async def _do(self, operation: Callable[[Any], Awaitable[T]], *, begins: bool = False) -> T:
        self._check_transaction()
        try:
            return await (self._settled if begins else self._await)(operation(self._raw))
        except BaseException as error:
            self.note_failure(error)
            raise

    def note_failure(self, error: BaseException) -> None:
        """Note in the innermost transaction what has failed there, as the driver's own error, or was cancelled.

        It may be why the server does not commit.
        """
        if self._transactions:
            innermost, error = self._transactions[-1], drivers_own(error)
            innermost.failure = innermost.failure or error
            traits = self._driver.traits
            if traits.ends_transaction(error) or traits.has_ended(self._raw):
                for opened in self._transactions:
                    opened.is_lost = True

    def _check_still_held(self, entry: PoolEntry | None) -> None:
        if entry is None or self._entry is not entry:
            raise ReleasedError(repr(self), self._taken_at)

    async def _make_way(self, *ended: OpenTransaction) -> None:
        """End the streams that something else, or the end of transactions, must not meet; in this task's turn."""
        for one in list(self.streams):
            if one.within is None or one.occupies:
                # Another task may want its rows: who is cancelled here costs it none.
                await to_the_end(self._end_stream(one, one.step_aside), ENDING_TIMEOUT)
            elif one.within in ended:
                await self._end_stream(one, one.end)
                one.cut(TransactionError("the rows went with the transaction they were read in"))
            elif one.abandoned:
                await self._end_stream(one, one.end)

    async def _end_stream(self, one: RowStream, end: Callable[[], Awaitable[None]]) -> None:
        """End a stream; nothing comes out of it but an interruption."""
        try:
            await self._do(lambda _: end(), begins=one.within is None)
        except Exception as error:  # noqa: BLE001 (it is for who reads the stream)
            one.fail(error)
        except BaseException:
            one.cut(TransactionError("reading the rest of the rows was interrupted"))
            raise

    async def _await(self, operation: Awaitable[T]) -> T:
        """Await what the driver does; whatever ends it but an answer leaves doubt."""
        entry = self._entry
        assert entry is not None
        entry.in_doubt = True
        try:
            result = await operation
        except BaseException as error:
            self._pool.returning.note_error(entry, error)
            raise
        entry.in_doubt = False
        return result

    async def _settled(self, operation: Awaitable[T]) -> T:
        """Await what begins or ends a transaction; an interruption leaves none that nobody knows of."""
        try:
            return await self._await(operation)
        except (asyncio.CancelledError, TimeoutError):
            if self._entry is not None and not self._transactions:
                await self._pool.returning.recover(self._entry)
            raise

    async def _run_clause(
        self, query: Any, values: Any, timeout: float | None
    ) -> tuple[list[Record], Any]:
        self._check_clause(query)
        driver, clauses = self._pool.user_driver, self._pool.clauses
        ready = None if clauses is None else clauses.ready(query, values)
        if ready is None:
            return await self.run(lambda _: self._clause(query, values, timeout))
        self._touch(ready.touches)
        limit = self._limit(timeout)
        ask: Any = driver.ask  # type: ignore[attr-defined]
        return ready.results(
            await self._run_text(ready.text, lambda raw: ask(raw, ready.sql, ready.args, limit))
        )

    async def _clause(
        self, query: Any, values: Any, timeout: float | None
    ) -> tuple[list[Record], Any]:
        """Run a clause the way SQLAlchemy does it: defaults, types, RETURNING."""
        self._check_clause(query)
        if self._entry is not None:
            self._entry.in_doubt = False  # but while the dialect asks the server: see `mark_doubt`
        limit = self._limit(timeout)
        try:
            if limit is None:
                return await self._execute_clause_again(query, values)
            try:
                async with asyncio.timeout(limit):
                    return await self._execute_clause_again(query, values)
            except TimeoutError as error:
                raise self._noted_query(StatementTimeout(limit), str(query)) from error
        except sa.exc.DBAPIError as error:
            original: Any = self._driver.original(error)
            self.tell(original, error.statement)
            raise original from None

    async def _execute_clause_again(self, query: Any, values: Any) -> tuple[list[Record], Any]:
        """Run a clause, and once more where that may help."""
        try:
            return await self._execute_clause(query, values)
        except sa.exc.DBAPIError as error:
            if self.in_transaction or not self.drops_plans(error):
                raise
        return await self._execute_clause(query, values)

    def _check_clause(self, query: Any) -> None:
        self._check()
        if not isinstance(query, sa.sql.base.Executable):
            raise QueryError(f"a query is text or a SQLAlchemy clause, not {type(query).__name__}")

    def _core(self) -> sa.Connection:
        """Give SQLAlchemy's connection on this one."""
        if self._sqlalchemy is None:
            # Transactions are begun and ended by us, for text and clauses alike.
            assert self._entry is not None
            proxy = self._pool.proxy(self._entry)
            core = sa.Connection(self._pool.engine.sync_engine, connection=proxy)
            if self._driver.traits.autocommit:
                core.execution_options(isolation_level="AUTOCOMMIT")
            self._sqlalchemy = core
        return self._sqlalchemy

    async def _execute_clause(self, query: Any, values: Any) -> tuple[list[Record], Any]:
        commits = not (self.in_transaction or self._driver.traits.autocommit)
        run = _run_and_commit if commits else _run_batches
        # The greenlet is to know no task, and so no loop: see `greenlets`.
        return await greenlet_spawn(run, self._core(), query, values)


def _run_and_commit(core: sa.Connection, query: Any, values: Any) -> tuple[list[Record], Any]:
    try:
        results = _run_batches(core, query, values)
        core.commit()
    except Exception:
        core.rollback()
        raise
    return results


def _run_batches(core: sa.Connection, query: Any, values: Any) -> tuple[list[Record], Any]:
    """Run a clause once, or for many rows: then the rows affected are those of all."""
    if not isinstance(values, list):
        return _results(
            core.execute(*with_values(keyed(query), values or {}), execution_options=_COUNTED)
        )
    counts = []
    for batch in batches(query, values):
        with core.execute(*batch, execution_options=_COUNTED) as result:
            counts.append(_affected(result))
    return [], sum(counts) if None not in counts else None


def _results(result: Any) -> tuple[list[Record], Any]:
    """Give the rows, and what `execute` gives where there are none."""
    if not result.returns_rows:
        return [], _outcome(result)
    keys = RecordKeys(tuple(result.keys()))
    rows = TupleRecord.many(keys, result)
    # An implicit RETURNING shows no rows.
    return rows, _outcome(result) if not rows and result.context.isinsert else None


def _outcome(result: Any) -> Any:
    """Give the primary key of a one-row insert, else the rows affected."""
    context, affected = result.context, _affected(result)
    if context.isinsert and not context.executemany and context.compiled is not None:
        try:
            key = result.inserted_primary_key
        except sa.exc.InvalidRequestError:  # the insert has a RETURNING of its own, and gave no row
            return None
        # Without a row, it is a key that was given, or that of an insert before.
        if affected != 0 and key and key[0] is not None:
            return key[0]
        if affected is None and context.compiled.implicit_returning:  # SQLite does not count those
            return 0
    return affected


def _affected(result: Any) -> int | None:
    return result.rowcount if result.rowcount >= 0 else None


def current_task() -> asyncio.Task[Any]:
    """Give the running asyncio task.

    Raises:
        NoRunningLoopError: No loop runs in this thread.
        TransactionError: The loop runs a callback.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    if task is None:
        running_loop("a query")  # it says why there is none
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


class LoneConnection(Connection):
    """The connection of a stream that is read outside of any block: what else its task does goes elsewhere."""

    is_lone = True

    def _enter_block(self) -> None:
        """Let nobody join it."""


def stream(
    borrow: Callable[[], Connection], query: Query, values: Mapping[str, Any] | None
) -> Rows:
    """Give the rows of a query as they are needed, on the connection that `borrow` gives then."""
    return Rows(RowStream(query, borrow, lambda connection: connection.open_cursor(query, values)))


def copy_stream(
    borrow: Callable[[], Connection], query: str, format: str, *, header: bool
) -> AsyncGenerator[Any, None]:
    """Give what COPY makes of a query's rows as it is needed, on the connection that `borrow` gives then.

    Raises:
        QueryError: There is no such format.
    """
    if format not in _FORMATS:
        raise QueryError(f"COPY has the formats {', '.join(_FORMATS)}, not {format!r}")
    options = f"(FORMAT {format}{', HEADER' if header else ''})"
    return Rows(
        RowStream(
            query, borrow, lambda connection: connection.open_copy(query, options), occupies=True
        )
    )


def copying_driver(pool: ConnectionPool, what: str, *, session: bool = False) -> Any:
    """Give a pool's driver if it knows PostgreSQL's COPY and LISTEN.

    Raises:
        UnsupportedError: It does not; or what belongs to a session is asked for, and there is none.
    """
    if not hasattr(pool.driver, "copy_in"):
        raise UnsupportedError(what, pool.driver.traits.name)
    if session and pool.options.pgbouncer == "transaction":
        raise UnsupportedError(what, "a PgBouncer in transaction mode")
    return pool.user_driver


def check_lock_key(key: object) -> None:
    """Refuse what is no key of an advisory lock: PostgreSQL locks nothing for a NULL.

    Raises:
        InvalidSettingError: It is neither a text nor a number of 64 bits.
    """
    if isinstance(key, str) or (
        type(key) is not bool and isinstance(key, int) and -_KEYS <= key < _KEYS
    ):
        return
    given = "a larger one" if type(key) is int else type(key).__name__
    raise InvalidSettingError(
        f"the key of an advisory lock is a text or a number of 64 bits, not {given}"
    )


def joined(pool: ConnectionPool) -> Connection | None:
    """Give the connection that the current task has, if it has one and is to use it."""
    if pool.pinned is not None:
        return pool.pinned  # type: ignore[no-any-return]
    connection = own(pool)
    return inherited(pool) if connection is None else connection


def own(pool: ConnectionPool) -> Connection | None:
    """Give the connection that the current task has taken by itself: it is not released while that asks something."""
    stack = pool.bound.get(weakref.ref(current_task())) if pool.bound else None
    return stack[-1]() if stack else None


def inherited(pool: ConnectionPool) -> Connection | None:
    """Give the connection with the transaction that the running task was started inside of, if there is one.

    Raises:
        ForeignTransactionError: It is in another loop.
    """
    if not is_inside_any():
        return None
    for ref in [one for stack in list(pool.bound.values()) for one in stack]:
        connection: Connection | None = ref()
        opened = None if connection is None else connection.transaction_of_caller
        if connection is not None and opened is not None:
            if connection.key != current_key():
                raise ForeignTransactionError("a call in another event loop", opened.holder)
            return connection
    return None
