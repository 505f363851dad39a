"""The contract between a driver and the rest."""

from __future__ import annotations

import asyncio
import enum
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

from loopsafe_db._runtime.pids import getpid
from loopsafe_db._runtime.registry import current_key
from loopsafe_db.drivers.failures import by_sqlstate
from loopsafe_db.errors import ForeignLoopError, TransactionOptionsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

    from loopsafe_db._runtime.forks import SocketId
    from loopsafe_db._runtime.keys import LoopKey
    from loopsafe_db.errors import DriverError
    from loopsafe_db.options import DatabaseOptions
    from loopsafe_db.records import Record


def _never(_: object) -> bool:
    return False


def _nothing(_: Any) -> None:
    """Do nothing: between two operations the connection refers to no loop."""


Isolation: TypeAlias = Literal[
    "serializable", "repeatable_read", "read_committed", "read_uncommitted", "snapshot"
]  # the last is of SQL Server
_ISOLATION = get_args(Isolation)
_MET = 10_000  # reasons to forget something that are remembered


@dataclass(frozen=True, slots=True)
class DriverTraits:
    """What the core has to know of a driver.

    Attributes:
        name: As in the URL, ``postgresql+NAME``.
        dialect: SQLAlchemy's dialect and driver, ``postgresql+asyncpg``.
        loop_bound: Whether a connection works only in the loop that opened it.
        unbound: Gives the same driver with connections for any loop, which cost more. Used under ``force_rollback``.
        attaches: Whether an idle connection stays with the loop that used it, until it is detached.
        reset_on_return: Whether SQLAlchemy's rollback at release costs nothing, and so may stay on.
        autocommit: Whether a connection commits what is done outside a transaction by itself. Where it does not,
            the driver commits what it does, and the core what it has SQLAlchemy do.
        adapted: Whether ``raw`` is what SQLAlchemy's dialect works on, and not what it would adapt first. It is
            given the engine's dialect as its attribute ``dialect``.
        settles: Whether a connection may stay where SQLAlchemy was cancelled in a statement on it: `Driver.settle` and
            `Driver.reset` have in order again what that leaves behind. Else SQLAlchemy ends it.
        has_ended: Tells without a round trip whether the server has none open any more on a connection where one of our
            transactions was begun: what belongs to it is refused then. It is asked while an interrupted statement still
            runs, too, and must not raise. A driver that refuses by itself need not know.
        ends_transaction: Tells of a failure whether the server has rolled the whole transaction back with it, and goes
            on as if nothing were.
        lent: Called when a connection is lent. From then on it may refer to what waits for its answers, and so to the
            loop, only weakly: a loop that is dropped without ``close()`` has to become garbage.
        rested: Called when it comes back: it keeps all that it needs in the next loop.
        closes_before_fork: Whether a connection that is open at a fork is in the way of the child's own: idle ones are
            closed before, and open ones refused in the child by the driver, with `ForkedFileError`, in `connect`.
        failure: Tells which of our errors a failure is, if any: lost connections, serialization failures, deadlocks,
            locks and servers that take no writes. By SQLSTATE, unless a driver knows better.
        farewell: Gives the text and the SQLSTATE by which the server has ended a connection that nothing was asked on,
            where the error of the next statement does not tell it.
    """

    name: str
    dialect: str
    loop_bound: bool
    attaches: bool
    reset_on_return: bool
    autocommit: bool = True
    adapted: bool = False
    settles: bool = False
    closes_before_fork: bool = False
    has_ended: Callable[[Any], bool] = _never
    ends_transaction: Callable[[BaseException], bool] = _never
    lent: Callable[[Any], None] = _nothing
    rested: Callable[[Any], None] = _nothing
    failure: Callable[[BaseException], type[DriverError] | None] = by_sqlstate
    farewell: Callable[[Any], tuple[str, str] | None] = _nothing
    unbound: Callable[[], Driver] | None = None


class ConnectionState(enum.Enum):
    """What a driver knows of a connection without asking the server.

    Attributes:
        IDLE: Nothing is under way, and no transaction is open.
        IN_TRANSACTION: Nothing is under way in an open transaction, which may have failed.
        BUSY: An operation or a COPY is under way, or may be.
    """

    IDLE = "idle"
    IN_TRANSACTION = "in transaction"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class TransactionOptions:
    """How an outermost transaction begins.

    Attributes:
        isolation: ``"serializable"``, ``"repeatable_read"``, ``"read_committed"``, ``"read_uncommitted"``,
            ``"snapshot"``, or None for the server's. A driver refuses what its server has not.
        readonly: Whether writes are refused.
        deferrable: Whether it may wait for a safe snapshot (PostgreSQL, serializable and read-only).
        deferred: Whether it takes locks only when it writes (SQLite; others do so anyway).
    """

    isolation: Isolation | None = None
    readonly: bool = False
    deferrable: bool = False
    deferred: bool = False

    def __post_init__(self) -> None:
        """Refuse a level that no server has, before anything is asked of one.

        Raises:
            TransactionOptionsError: There is none of that name.
        """
        if self.isolation is not None and self.isolation not in _ISOLATION:
            known = ", ".join(map(repr, _ISOLATION))
            raise TransactionOptionsError(
                f"there is no isolation level {self.isolation!r}, only {known}"
            )


class Plans:
    """What the connections of one pool know of statements that cannot stay prepared.

    One whose rows had another shape once (its table was altered, or ``search_path`` leads to another table) may have a
    third: it is not prepared under a name any more. What one connection has met makes all others of the pool forget
    what they have prepared, before their next statement: an altered table is seldom that of one statement only.

    Attributes:
        generation: Counts how often there was something to forget.
        shifting: Hashes of the statements that are not prepared under a name.
    """

    __slots__ = ("_met", "generation", "shifting")
    generation: int
    shifting: set[int]

    def __init__(self) -> None:
        self.generation, self.shifting = 0, set()
        self._met: set[int] = set()

    def shift(self, statement: str | bytes) -> None:
        """Note that the rows of a statement have got another shape."""
        self.outdate(statement)
        self.shifting.add(hash(statement))

    def outdate(self, reason: str | bytes) -> None:
        """Have all connections forget what they have prepared; once for each reason: the second time that is not it."""
        if hash(reason) not in self._met:
            if len(self._met) >= _MET:
                self._met.clear()
                self.shifting.clear()
            self._met.add(hash(reason))
            self.generation += 1


def take_rows(rows: list[Any]) -> list[Any]:
    """Give rows in a list of ours.

    A driver may keep the one that it gave until its next answer, asyncpg in its protocol, aiosqlite in its thread: an
    idle connection would keep the rows of its last user.
    """
    taken = rows[:]
    rows.clear()
    return taken


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How one connection is opened.

    Attributes:
        arguments: What `Driver.arguments` gave.
        target: Where to, for error texts; holds no secret.
        timeout: Seconds.
        plans: What all connections of the pool know of prepared statements.
    """

    arguments: Mapping[str, Any]
    target: str
    timeout: float
    plans: Plans


class Owner:
    """Who may use a connection now: the loop, of one process, that it was lent in last."""

    __slots__ = ("_loop", "key")
    key: LoopKey

    def __init__(self) -> None:
        self.move()

    def move(self) -> None:
        """Let the running loop have it."""
        self.key = current_key()
        self._loop = weakref.ref(asyncio.get_running_loop())

    def check(self, raw: object) -> None:
        """Refuse another loop or process.

        Raises:
            ForeignLoopError: The running loop is not the one that it was lent in.
        """
        if self.key.pid != getpid() or asyncio._get_running_loop() is not self._loop():  # noqa: SLF001
            what = f"<{type(raw).__module__.rpartition('.')[2]} connection {id(raw):#x}>"
            raise ForeignLoopError(what, self.key, current_key())

    @property
    def is_here(self) -> bool:
        """Whether this is the process that opened it."""
        return self.key.pid == getpid()


class ProcessOwner(Owner):
    """Who may use a connection now: any loop of one process, for it takes turns by itself."""

    __slots__ = ()

    def check(self, raw: object) -> None:
        """Refuse another process.

        Raises:
            ForeignLoopError: The process is not the one that opened it.
        """
        if not self.is_here:
            super().check(raw)


class Answer(NamedTuple):
    """All that a statement gives.

    Attributes:
        rows: With their values in the columns' order.
        affected: How many rows, if the driver can tell.
        last_id: SQLite's row id of what was inserted last.
    """

    rows: Sequence[Sequence[Any]]
    affected: int | None
    last_id: int | None = None


class DriverTransaction(Protocol):
    """A transaction, or a savepoint where one is open already."""

    def start(self) -> Awaitable[None]: ...
    def commit(self) -> Awaitable[None]:
        """Make it permanent, or release the savepoint.

        Raises:
            TransactionAborted: The server does not, for something has failed in it. `rollback` follows.
        """

    def rollback(self) -> Awaitable[None]:
        """Undo it; also after a `commit` that failed or was cancelled, when nothing may be left to undo."""

    def renew(self) -> Awaitable[None]:
        """Release a savepoint and set it again: in one message, where that can be."""


class DriverCursor(Protocol):
    """Rows that are fetched as they are needed. No generator: a loop that shuts down closes those at any moment."""

    def fetch(self, count: int) -> Awaitable[Sequence[Record]]:
        """Give the next `count` rows; fewer at the end, then none."""

    def close(self) -> Awaitable[None]:
        """Let go of what the server holds, if the end of the transaction would not."""


class Driver(Protocol):
    """What a driver does with one connection of its own kind (``raw``). It has no state."""

    traits: DriverTraits

    def arguments(self, options: DatabaseOptions) -> dict[str, Any]:
        """Give what `connect` needs, with a ``password`` if there is one.

        Raises:
            InvalidURLError: The URL's query has a name that is not known, or a value that cannot be.
        """

    async def connect(self, options: ConnectOptions) -> Any:
        """Open a connection, or raise `ConnectError` or one below it."""

    async def fetch_all(
        self, raw: Any, sql: str, args: Sequence[Any], timeout: float | None
    ) -> list[Record]:
        """Give every row."""

    async def fetch_one(
        self, raw: Any, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Record | None:
        """Give the first row."""

    async def execute(self, raw: Any, sql: str, args: Sequence[Any], timeout: float | None) -> Any:
        """Give the first value of the first row, or None if no row comes back; of what gives no rows, those affected.

        Args:
            raw: The connection.
            sql: A statement, in the paramstyle of the dialect in `traits`; or several, if there are no `args` and the
                server takes them: then the last one counts.
            args: The values of its parameters, in that order.
            timeout: Seconds, or None for no limit.

        Raises:
            StatementTimeout: It has taken longer, and was stopped. So do the others that have a `timeout`.
        """

    async def execute_many(
        self, raw: Any, sql: str, rows: Sequence[Sequence[Any]], timeout: float | None
    ) -> int | None:
        """Apply a statement to each row of arguments, all or none; give the rows affected, if known."""

    async def open_cursor(self, raw: Any, sql: str, args: Sequence[Any]) -> DriverCursor:
        """Begin to read rows batch by batch, inside an open transaction."""

    def transaction(self, raw: Any, options: TransactionOptions) -> DriverTransaction:
        """Make a transaction that has not begun."""

    def original(self, error: BaseException) -> BaseException:
        """Give the driver's own exception behind one of SQLAlchemy's."""

    def drops_plans(self, raw: Any, error: BaseException) -> bool:
        """Forget what was prepared, if it is outdated or gone; tell whether what failed may be sent again."""

    def move(self, raw: Any) -> None:
        """Make a connection usable in the running loop, where it was used in another before."""

    def detach(self, raw: Any) -> None:
        """Have the running loop let go of an idle connection, so that any other may take it."""

    def state(self, raw: Any) -> ConnectionState:
        """Tell what a connection is in the middle of, without a round trip; asked each time that it comes back."""

    def is_answer(self, raw: Any, error: BaseException) -> bool:
        """Tell whether an operation is known to be over: the server has answered by `error`, or nothing was sent.

        Any other exception may have struck in the middle, such as one that a signal handler raises.
        """

    async def settle(self, raw: Any) -> None:
        """Wait until an interrupted statement is over."""

    async def reset(self, raw: Any) -> None:
        """Roll back what is open on a settled connection, so that it can be used again; or close it, or raise."""

    async def remember(self, raw: Any) -> None:
        """Note what a new session is like, after ``init``, where `reset_session` has to know it."""

    async def reset_session(
        self, raw: Any, touched: int, initialise: Callable[[], Awaitable[None]]
    ) -> None:
        """Make the session what it was when it was new; or close the connection, or raise.

        Args:
            raw: The connection: idle, in no transaction.
            touched: What its user may have changed.
            initialise: Does again what ``init`` did, where that is undone, too.
        """

    def hand_out(self, raw: Any) -> Any:
        """Give what the user is handed as the driver's own connection: the same, but refused after `take_back`."""

    def take_back(self, raw: Any, handed_out: Any, taken_at: str) -> None:
        """Refuse from now on what was handed out, and what was made by it; `taken_at` is for the error."""

    def is_closed(self, raw: Any) -> bool:
        """Tell whether a connection is known to be closed."""

    def is_lost(self, raw: Any, since: float) -> bool:
        """Tell whether an idle connection is closed, or its server has ended it, as far as this machine knows.

        Asked before each use, in the loop that has the connection: no round trip, and next to no time.

        Args:
            raw: The connection.
            since: When its last user gave it back, on the monotonic clock.
        """

    async def close(self, raw: Any) -> None:
        """Close politely."""

    def terminate(self, raw: Any) -> None:
        """Close at once, without a loop, from any thread; not in a forked child."""

    def sockets(self, raw: Any) -> Iterable[SocketId]:
        """Give the sockets that a forked child has to let go of."""


class CopyDriver(Driver, Protocol):
    """A driver that knows PostgreSQL's COPY and LISTEN; others lack these methods."""

    async def copy_in(
        self, raw: Any, table: str, schema: str | None, columns: Sequence[str] | None, rows: Any
    ) -> int:
        """Copy rows, an iterable or an async one, to a table; give how many. All or none."""

    async def copy_out(self, raw: Any, query: str, options: str) -> DriverCursor:
        """Begin to copy out the rows of a query; what is fetched are pieces of bytes. `options` are as in SQL."""

    def listen(self, raw: Any, channel: str) -> AsyncIterator[tuple[int, str] | None]:
        """Give sender's process and payload of what comes, as long as the connection lives; first None: it listens."""

    def pool_mode(self, raw: Any) -> str | None:
        """Give the pool mode of the PgBouncer on the way; None if there is none, or it has not told at login."""


class ClauseDriver(Driver, Protocol):
    """A driver that takes what SQLAlchemy has compiled of a clause; with others, SQLAlchemy's cursor is used."""

    async def ask(self, raw: Any, sql: str, args: Sequence[Any], timeout: float | None) -> Answer:
        """Run one statement, in the paramstyle of the driver's texts."""
