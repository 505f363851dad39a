"""psycopg 3: PostgreSQL through libpq. Between two operations no loop has its connections, so they move freely.

A connection is always in autocommit: our transactions begin by BEGIN, and so do SQLAlchemy's (`EngineDialect`).
Texts reach psycopg with ``$1`` and never with ``%s``, so nobody interprets a ``%``.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import sys
import threading
import traceback
import weakref
from collections import deque
from collections.abc import AsyncIterable
from contextlib import asynccontextmanager, suppress
from functools import lru_cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors, generators, waiting
from psycopg._preparing import Prepare, PrepareManager
from psycopg.pq import PGresult, PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row
from psycopg.types.json import Json, JsonDumper, set_json_dumps, set_json_loads
from sqlalchemy import event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg, PGDialectAsync_psycopg
from sqlalchemy.util import await_only

from loopsafe_db._runtime.endings import ENDING_TIMEOUT, to_the_end
from loopsafe_db._runtime.forks import SocketId, is_readable
from loopsafe_db._runtime.generators import Inner
from loopsafe_db._runtime.transport import (
    addresses,
    can_move,
    may_have_news,
    need_readers,
    nowhere,
)
from loopsafe_db.drivers import libpq
from loopsafe_db.drivers.base import (
    Answer,
    ConnectionState,
    ConnectOptions,
    DriverTraits,
    Owner,
    Plans,
    TransactionOptions,
)
from loopsafe_db.drivers.failures import came_by
from loopsafe_db.drivers.handed_out import part, plain_connection, refuse, twin
from loopsafe_db.drivers.psycopg_operation import Operation
from loopsafe_db.drivers.session_state import Touched
from loopsafe_db.errors import (
    AuthenticationError,
    ConnectError,
    ConnectSettingError,
    ConnectTimeout,
    InvalidSettingError,
    StatementTimeout,
    TooManyConnections,
    TransactionAborted,
    UnsupportedLoopError,
)
from loopsafe_db.records import Record, RecordKeys, TupleRecord
from loopsafe_db.url import hidden

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Generator,
        Iterable,
        Mapping,
        Sequence,
    )
    from typing import Self

    from loopsafe_db.options import DatabaseOptions

# Seconds after which a wait looks at its socket unasked. psycopg does at 0.1: that costs, and a registration that is
# new at a fork is one that uvloop's child stumbles over.
_SELDOM = 3600.0
_serials = itertools.count(1)  # for the names of savepoints and cursors
# libpq keeps the SQLSTATE of a refused connection to itself; what is left is the text.
_REFUSED = re.compile(
    r"authentication failed|no pg_hba\.conf entry|no password supplied|is not permitted to log in"
    r"|(role|database) .* does not exist|no such (user|database)|requires a valid client certificate"
    r"|permission denied"
)
_FULL = re.compile(
    r"too many clients|too many connections|remaining connection slots are reserved"
    r"|no more connections allowed"  # PgBouncer's
)
_SETTING = re.compile(
    r"unrecognized configuration parameter|invalid value for parameter|parameter .* cannot be (set|changed)"
    r"|invalid command-line argument|requires a value|(certificate|private key) file \""
)
_TEMPORARY = re.compile(r"Connection refused|the database system is")
_STATES = {
    int(TransactionStatus.IDLE): ConnectionState.IDLE,
    int(TransactionStatus.INTRANS): ConnectionState.IN_TRANSACTION,
    int(TransactionStatus.INERROR): ConnectionState.IN_TRANSACTION,
}
_AT_REST = (TransactionStatus.IDLE, TransactionStatus.INTRANS, TransactionStatus.INERROR)
# What psycopg raises of its own, and of a text that cannot be encoded.
_ANSWERS = (psycopg.Error, UnicodeError)
# What makes values of an answer that has been read, and of what is sent next: nothing is under way there.
_MAKE_VALUES = ("Transformer.load_row", "Transformer.load_rows", "Transformer.dump_sequence")
# What the server has not done, because of what was prepared.
_STALE = (
    errors.InvalidSqlStatementName,
    errors.DuplicatePreparedStatement,
    errors.FeatureNotSupported,
    errors.InternalError_,
)
_DISCARDS = re.compile(libpq.DISCARDS.pattern.encode(), re.IGNORECASE)


def _has_ended(raw: GuardedConnection) -> bool:
    return raw.pgconn.transaction_status == TransactionStatus.IDLE


class ProactorLoopError(UnsupportedLoopError):
    """The loop that runs is Windows' default, which cannot watch a socket for libpq."""

    hint = (
        "run it in asyncio.Runner(loop_factory=asyncio.SelectorEventLoop), or use the driver "
        "asyncpg: postgresql://"
    )

    def __init__(self, library: str) -> None:
        super().__init__(library, f"a {library} runs in this thread, and psycopg cannot work in it")


class TextDialect(PGDialect_psycopg):
    """SQLAlchemy's dialect, for texts: numbered parameters, each sent once, and no doubled ``%``."""

    supports_statement_cache = True
    default_paramstyle = "numeric_dollar"

    @classmethod
    def get_async_dialect_cls(cls, url: Any) -> Any:
        """Give the dialect of engines."""
        return EngineDialect


class EngineDialect(libpq.AsksAtOnce, libpq.RefusesCopy, PGDialectAsync_psycopg):
    """SQLAlchemy's dialect, for engines: it begins its transactions itself, on connections in autocommit."""

    supports_statement_cache = True

    @classmethod
    def engine_created(cls, engine: Any) -> None:
        """Have errors named."""
        event.listen(engine, "handle_error", partial(libpq.name_engines_pgbouncer, _is_elsewhere))

    def _type_info_fetch(self, connection: Any, name: str) -> Any:
        # A type that the server can have; one without to_regtype(), as QuestDB, has not.
        try:
            return super()._type_info_fetch(connection, name)  # type: ignore[no-untyped-call]
        except psycopg.OperationalError:
            raise
        except psycopg.DatabaseError:
            return None

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin, unless isolation level AUTOCOMMIT was asked for."""
        raw: GuardedConnection = plain_connection(dbapi_connection)
        if raw.engine_begins:
            await_only(raw.begin())

    def do_execute(self, cursor: Any, statement: str, *rest: Any) -> None:
        """Execute; say so where the server rolls back what was to be committed."""
        aborted = libpq.COMMITS.match(statement) and _is_aborted(
            plain_connection(rest[-1].root_connection.connection)
        )
        super().do_execute(cursor, statement, *rest)
        if aborted:
            raise TransactionAborted

    def do_execute_no_params(self, cursor: Any, statement: str, *rest: Any) -> None:
        """Execute, without."""
        self.do_execute(cursor, statement, None, *rest)

    def do_commit(self, dbapi_connection: Any) -> None:
        """Commit, or say that the server rolls back instead."""
        aborted = _is_aborted(plain_connection(dbapi_connection))
        super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]
        if aborted:
            raise TransactionAborted

    def do_release_savepoint(self, connection: Any, name: str) -> None:
        """Release, or roll back what the server would not release: SQLAlchemy does not."""
        if _is_aborted(plain_connection(connection.connection)):
            self.do_rollback_to_savepoint(connection, name)  # type: ignore[no-untyped-call]
            raise TransactionAborted
        super().do_release_savepoint(connection, name)  # type: ignore[no-untyped-call]

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Roll back, if anything has begun: else psycopg would only wait for the next turn of the loop."""
        status = plain_connection(dbapi_connection).pgconn.transaction_status
        if status != TransactionStatus.IDLE:
            super().do_rollback(dbapi_connection)  # type: ignore[no-untyped-call]

    def do_terminate(self, dbapi_connection: Any) -> None:
        """End a connection without waiting for anything: SQLAlchemy may be in no greenlet."""
        DRIVER.terminate(plain_connection(dbapi_connection))

    def detect_autocommit_setting(self, dbapi_connection: Any) -> bool:
        """Tell whether isolation level AUTOCOMMIT was asked for."""
        return not plain_connection(dbapi_connection).engine_begins

    # By text: psycopg's own calls for it are for connections that begin transactions themselves.
    do_begin_twophase: Any = PGDialect.do_begin_twophase
    do_prepare_twophase: Any = PGDialect.do_prepare_twophase
    do_rollback_twophase: Any = PGDialect.do_rollback_twophase
    do_commit_twophase: Any = PGDialect.do_commit_twophase
    do_recover_twophase: Any = PGDialect.do_recover_twophase

    def begins_by_itself(self, dbapi_connection: Any) -> int:
        """Have psycopg begin transactions for who has a connection of the DBAPI, until that is back."""
        raw: GuardedConnection = plain_connection(dbapi_connection)
        if raw.engine_begins:
            raw.begin_by_itself()
        return Touched.RAW

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        """Give the level of this transaction, or the next."""
        raw = plain_connection(dbapi_connection)
        is_idle = raw.pgconn.transaction_status == TransactionStatus.IDLE
        if is_idle and raw.engine_begins and raw.isolation_level is not None:
            return raw.isolation_level.name.replace("_", " ")
        return super().get_isolation_level(dbapi_connection)  # type: ignore[no-untyped-call]

    def _do_isolation_level(self, connection: Any, autocommit: Any, isolation_level: Any) -> None:
        self._do_autocommit(connection, autocommit)
        raw: GuardedConnection = plain_connection(connection)
        if autocommit or raw.isolation_level == isolation_level:
            return
        if raw.pgconn.transaction_status == TransactionStatus.IDLE:
            raw.set_next_level(isolation_level)
        else:
            connection.set_isolation_level(isolation_level)  # psycopg says why that cannot be

    def _do_autocommit(self, connection: Any, value: Any) -> None:
        plain_connection(connection).engine_begins = not value


registry.register("postgresql.loopsafe_psycopg", __name__, "TextDialect")


class Prepared(PrepareManager):
    """psycopg's register of what a connection has prepared, by names that no other connection has.

    Attributes:
        plans: What all connections of the pool know.
        last: The statement that was sent last, if by its name; else None.
    """

    plans: Plans
    last: bytes | None

    def __init__(self, plans: Plans) -> None:
        super().__init__()
        self.plans, self._generation = plans, plans.generation
        self.last = None
        self._unique = libpq.unique_names()

    def get(self, query: Any, prepare: bool | None = None) -> tuple[Prepare, bytes]:  # noqa: FBT001
        """Tell whether a query is prepared or should be, and under what name."""
        if self._generation != self.plans.generation:
            self.forget()
        state, name = Prepare.NO, b""
        if hash(query.query) not in self.plans.shifting:
            state, name = super().get(query, prepare)
        if state is Prepare.SHOULD:
            name = f"_pg3_{next(self._unique)}".encode()
        if prepare is not False:  # as for what ends the transaction of what has failed
            self.last = None if state is Prepare.NO else query.query
        return state, name

    def maybe_add_to_cache(self, query: Any, prep: Prepare, name: bytes) -> Any:
        """Have the answer looked at: psycopg looks at that of a statement which is new to it."""
        if _DISCARDS.match(query.query):
            return self.key(query)
        return super().maybe_add_to_cache(query, prep, name)

    def forget(self, *, lost: bool = False) -> None:
        """Forget what was prepared; the server is told, unless it has lost that.

        Not all at once, as psycopg does it after the next statement: that may be prepared by then.
        """
        self._generation = self.plans.generation
        names = [] if lost else list(self._names.values())
        self._names.clear()
        self._counts.clear()
        self._to_flush.clear()
        self._to_flush.extend(names)


class GuardedConnection(psycopg.AsyncConnection[Any]):
    """A connection that moves between loops, and refuses all but its present owner, whoever asks.

    Attributes:
        ended: Whether it was ended, or the server said that it ends it.
        said: The text and the SQLSTATE by which it said so; else None.
        engine_begins: Whether SQLAlchemy's engine is to begin transactions: not in its AUTOCOMMIT.
    """

    guarded_owner: Owner
    guarded_socket: SocketId
    ended: bool
    said: tuple[str, str] | None
    engine_begins: bool
    lock: asyncio.Lock
    server_cursor_factory: type[psycopg.AsyncServerCursor[Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepared: Prepared = Prepared(Plans())
        self.guarded_owner = Owner()
        self.guarded_socket = SocketId.of(self.pgconn.socket)
        self.ended, self.said, self.engine_begins = False, None, True
        self._waiting = False
        self._looking = threading.RLock()  # another loop may take it while this one looks at it
        self._home: Callable[[], asyncio.AbstractEventLoop | None] = nowhere
        self.move()
        self.forget()

    def __del__(self, *_: object) -> None:
        """Do nothing: the pool that opened it ends it, and a forked child must not."""

    def keep_prepared(self, plans: Plans) -> None:
        """Keep what is prepared as `plans` say."""
        threshold = self.prepare_threshold
        self._prepared = Prepared(plans)
        self.prepare_threshold = threshold

    @property
    def prepared(self) -> Prepared:
        """What is prepared on it."""
        return self._prepared

    def move(self) -> None:
        """Let the running loop have it."""
        self.guarded_owner.move()
        self._home = weakref.ref(asyncio.get_running_loop())
        self.lock = asyncio.Lock()  # the old one may belong to the loop of its last contention

    def detach(self) -> None:
        """Let any loop, and any thread, have it."""
        self._home = nowhere

    def forget(self) -> None:
        """Have psycopg's side of the session be what it was when it was new."""
        self._autocommit, self._begin_statement = True, b""
        self._isolation_level = self._read_only = self._deferrable = None
        self.row_factory: Any = tuple_row
        self.cursor_factory: type[psycopg.AsyncCursor[Any]] = psycopg.AsyncCursor
        self.server_cursor_factory = EngineCursor
        self._notify_handlers.clear()
        self._notice_handlers[:] = [partial(_note_end, weakref.ref(self))]
        self._notifies_backlog = deque()

    async def close(self) -> None:
        """Close politely; refused to strangers, as all else."""
        self.guarded_owner.check(self)
        if self._waiting:
            self.end()
        else:
            await super().close()

    async def wait(self, gen: Any, interval: float = _SELDOM, timeout: float | None = None) -> Any:
        """Run one operation: everything that psycopg sends on its connection comes by here."""
        self.guarded_owner.check(self)
        with self._looking:
            self._waiting = True
        try:
            sock = self.pgconn.socket  # where it is closed this fails, before anything is begun
            if interval == _SELDOM and timeout is None:
                return await Operation(gen, sock).run()
            options = {} if timeout is None else {"timeout": timeout}  # psycopg 3.2 knows of none
            return await waiting.wait_async(gen, sock, interval, **options)
        except _ANSWERS:
            raise
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            # In a forked child it is the parent's statement, and goes on.
            if self.guarded_owner.is_here and not self.ended:
                await to_the_end(self._stop(gen), ENDING_TIMEOUT)
            raise
        except BaseException as error:
            # Nothing can be awaited, or it comes out of a signal handler: psycopg may have got half-way anywhere.
            if not (isinstance(error, Exception) and came_by(error, _MAKE_VALUES)):
                self.ended = True
            raise
        finally:
            self._waiting = False
            if self.ended and self.guarded_owner.is_here:
                self._finish()

    async def _stop(self, gen: Any) -> None:
        """Have the server stop a statement that nobody waits for any more, or end the connection."""
        if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
            return
        self.ended = True  # until it is known to be in order again
        if self._is_sending():
            return  # nobody knows when the rest would be taken, and before that the server does not answer
        if not psycopg.capabilities.has_cancel_safe():
            return  # libpq before 17 would hold up the whole interpreter until the server answers
        with suppress(psycopg.Error, TimeoutError):
            async with asyncio.timeout(ENDING_TIMEOUT):
                await self.cancel_safe()
                with suppress(psycopg.Error):  # cancelled, or it had failed by itself
                    await Operation(gen, self.pgconn.socket).run(waiting.READY_W)
                # A pipeline comes to rest at its end.
                in_pipeline = self.pgconn.pipeline_status != PipelineStatus.OFF
                self.ended = (
                    not in_pipeline and self.pgconn.transaction_status == TransactionStatus.ACTIVE
                )

    def _is_sending(self) -> bool:
        """Tell whether something is left that the network has not taken."""
        with suppress(psycopg.Error):
            return self.pgconn.flush() != 0
        return True

    def _check_connection_ok(self) -> None:
        # Closed, as with the loop of its owner: a stranger hears that it is one.
        if self.closed:
            self.guarded_owner.check(self)
        super()._check_connection_ok()

    def _should_cancel(self) -> bool:
        # Any thread may cancel, but no forked child: it would stop its parent's statement.
        if not self.guarded_owner.is_here:
            self.guarded_owner.check(self)
        return super()._should_cancel()

    @property
    def state(self) -> ConnectionState:
        """What it is in the middle of."""
        if self._waiting or self.lock.locked():
            return ConnectionState.BUSY
        state = _STATES.get(self.pgconn.transaction_status, ConnectionState.BUSY)
        if state is ConnectionState.BUSY or self.pgconn.pipeline_status == PipelineStatus.OFF:
            return state
        return ConnectionState.BUSY

    def set_next_level(self, level: Any) -> None:
        """Set the isolation level of the next transaction; nothing is sent or awaited, so nobody can be cancelled."""
        self._isolation_level = None if level is None else psycopg.IsolationLevel(level)
        self._begin_statement = b""

    def begin_by_itself(self) -> None:
        """Have psycopg begin transactions; nothing is sent."""
        self._autocommit = False

    def begin_no_more(self) -> None:
        """Leave that to whoever uses it; nothing is sent."""
        self._autocommit = True

    async def begin(self) -> None:
        """Begin a transaction, as SQLAlchemy has said how."""
        async with self.lock:
            await self.wait(self._exec_command(self._get_tx_start_command()))

    def end(self) -> None:
        """Close at once, from any thread; the loop that uses it does the rest where it runs."""
        self.ended = True
        loop = self._home()
        if loop is None or loop.is_closed():
            self.pgconn.finish()
        elif self._waiting or (loop.is_running() and loop is not asyncio._get_running_loop()):  # noqa: SLF001
            # Its loop watches the descriptor, or may be about to; the server may learn at once.
            self._shut()
        else:
            self._finish()

    def _finish(self) -> None:
        """Close; where psycopg was struck the loop still watches the descriptor, which may soon be another."""
        loop = asyncio._get_running_loop()  # noqa: SLF001
        if loop is not None and loop is self._home():
            with suppress(psycopg.Error):  # it is closed already
                loop.remove_reader(self.pgconn.socket)
                loop.remove_writer(self.pgconn.socket)
        self.pgconn.finish()

    def is_lost(self) -> bool:
        """Tell whether the server has ended a connection that nothing is under way on; without a round trip.

        Reads what has come in, but no answer that somebody waits for: who sends a statement waits for the look to end,
        and who looks sees that a statement was sent. No other thread is in the middle of something then.
        """
        with self._looking:
            return self._may_look() and self._has_ended()

    def _may_look(self) -> bool:
        """Tell whether the running loop has it, and nobody uses it."""
        return (
            not self._waiting
            and self._home() is asyncio._get_running_loop()  # noqa: SLF001
            and self.pgconn.transaction_status in _AT_REST
        )

    def _has_ended(self) -> bool:
        try:
            while not self.ended and is_readable(self.pgconn.socket):
                self.pgconn.consume_input()
                self.pgconn.is_busy()  # reads the messages: `_note_end` hears of a farewell
        except psycopg.Error:
            return True
        return self.ended

    def _shut(self) -> None:
        with suppress(OSError, psycopg.Error):  # closed or reset already
            fd = self.pgconn.socket
            if SocketId.of(fd) == self.guarded_socket:
                with socket.fromfd(fd, socket.AF_INET, socket.SOCK_STREAM) as same:
                    same.shutdown(socket.SHUT_RDWR)


class HandedOut(GuardedConnection):
    """A connection as its user has it: the same, with the same attributes, and another object."""


class TakenBack(GuardedConnection):
    """What was handed out, when it is back: it refuses everything, also what was made by it."""

    def __getattribute__(self, name: str) -> Any:
        return refuse(self, name)


class RecordCursor(psycopg.AsyncRawCursor[Any]):
    """A cursor whose rows are records."""

    def __init__(self, raw: GuardedConnection, row_factory: Any = None) -> None:
        super().__init__(raw, row_factory=row_factory or record_row)

    @property
    def has_rows(self) -> bool:
        """Whether the statement gives rows, be they none."""
        return self.rownumber is not None


class ServerCursor(psycopg.AsyncRawServerCursor[Any]):
    """A cursor that the server keeps, until its transaction ends."""

    def __del__(self, *_: object) -> None:
        """Do nothing: the transaction takes it along."""


class EngineCursor(psycopg.AsyncServerCursor[Any]):
    """The cursor of a clause that SQLAlchemy streams."""

    def __del__(self, *_: object) -> None:
        """Do nothing: the transaction takes it along."""


class Itself(partial[Any]):
    """A function that psycopg tells from others: to it, two of the same code are one, as the methods of two objects.

    Where it looks for a function's code, it finds this, and compares it.
    """

    __closure__ = None

    @property
    def __code__(self) -> Self:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self.func is other.func

    def __hash__(self) -> int:
        return id(self.func)


class OfBytes(Itself):
    """One that takes a text, where psycopg gives bytes."""

    def __call__(self, data: Any) -> Any:
        return self.func(data.decode())


class PsycopgTransaction:
    """BEGIN and COMMIT, or a savepoint inside them."""

    def __init__(self, raw: GuardedConnection, options: TransactionOptions) -> None:
        self._raw, self._options = raw, options
        self._savepoint = ""

    async def start(self) -> None:
        if self._raw.pgconn.transaction_status == TransactionStatus.IDLE:
            await self._run(_begin(self._options))
        else:
            savepoint = f"loopsafe_{next(_serials)}"
            await self._run(f"SAVEPOINT {savepoint}")
            self._savepoint = savepoint

    async def commit(self) -> None:
        if _is_aborted(self._raw):
            raise TransactionAborted
        answer = await self._run(f"RELEASE {self._savepoint}" if self._savepoint else "COMMIT")
        if answer == libpq.ROLLED_BACK:  # of something between here and the server
            raise TransactionAborted

    async def rollback(self) -> None:
        name = self._savepoint
        if name:
            await self._run(f"ROLLBACK TO {name}; RELEASE {name}")
        elif self._raw.pgconn.transaction_status != TransactionStatus.IDLE:
            await self._run("ROLLBACK")

    async def renew(self) -> None:
        await self._run(f"RELEASE {self._savepoint}; SAVEPOINT {self._savepoint}")

    async def _run(self, sql: str) -> str | None:
        return (await RecordCursor(self._raw).execute(sql, prepare=False)).statusmessage


class PsycopgCursor:
    """A cursor of the server; it goes with its transaction."""

    def __init__(self, cursor: ServerCursor) -> None:
        self._cursor = cursor

    async def fetch(self, count: int) -> Sequence[Record]:
        return await self._cursor.fetchmany(count)

    async def close(self) -> None:
        await self._cursor.close()


def _rest(copy: Any) -> Generator[Any, Any, None]:
    """Read what is left of a COPY as one operation of psycopg's: one for each row takes several times as long."""
    while not isinstance((yield from generators.copy_from(copy.connection.pgconn)), PGresult):
        pass


class PsycopgCopy:
    """What a COPY gives, as it is asked for.

    psycopg's own block for it is an async generator, which the end of a loop closes while this reads.
    """

    def __init__(self, cursor: RecordCursor, statement: str) -> None:
        self._cursor, self._statement = cursor, statement
        self._copy: psycopg.AsyncCopy | None = None
        self._is_read = False

    async def fetch(self, count: int) -> Sequence[Any]:
        if self._copy is None:
            raw = self._cursor.connection
            async with raw.lock:
                await raw.wait(self._cursor._start_copy_gen(self._statement))  # noqa: SLF001
            self._copy = psycopg.AsyncCopy(self._cursor)
        pieces: list[bytes] = []
        while len(pieces) < count and not self._is_read:
            try:
                piece = bytes(await self._copy.read())
            except psycopg.Error:  # of the query: there is no rest
                self._is_read = True
                raise
            self._is_read = not piece
            pieces += [piece] if piece else []
        return pieces

    async def close(self) -> None:
        """Read the rest: what is stopped half-way has failed, and a transaction with it."""
        if self._copy is not None and not self._is_read:
            await self._copy.connection.wait(_rest(self._copy))
            self._is_read = True


class PsycopgDriver:
    """The fast path: a cursor of psycopg's own for each call, and its cache of prepared statements."""

    traits: DriverTraits = DriverTraits(
        "psycopg",
        "postgresql+loopsafe_psycopg",
        loop_bound=False,
        attaches=False,
        reset_on_return=True,
        settles=True,
        has_ended=_has_ended,
        farewell=attrgetter("said"),
    )

    def arguments(self, options: DatabaseOptions) -> dict[str, Any]:
        if options.ssl_context is not None:
            raise InvalidSettingError(
                "ssl: libpq, and so psycopg, takes no SSLContext; name the file of the authorities by "
                "sslrootcert in the URL, and the client's by sslcert and sslkey"
            )
        names = (*libpq.NAMES, *libpq.LIBPQ_ALONE)
        url, query = options.url, libpq.postgresql_query(options, names)
        hosts, ports = libpq.places(url, query)
        query.pop("connect_timeout", None)  # the driver's own, a fraction of a second included
        if sys.platform == "darwin":  # GSS there is not safe after a fork
            query.setdefault("gssencmode", "disable")
        return {
            **query,
            **libpq.tcp_settings(options),
            "places": (hosts, ports, query.pop("load_balance_hosts", None)),
            "user": url.username,
            "password": hidden(url.password),
            "dbname": url.database,
            **({} if libpq.prepares(options) else {"prepare_threshold": None}),
            "json": (options.json_serializer, options.json_deserializer),
        }

    async def connect(self, options: ConnectOptions) -> GuardedConnection:
        loop = asyncio.get_running_loop()
        if not can_move(loop):
            raise ProactorLoopError(type(loop).__name__)
        need_readers(loop)
        try:
            async with asyncio.timeout(options.timeout):
                arguments = dict(options.arguments)
                places = await _places(loop, *libpq.in_turn(*arguments.pop("places")))
                raw = await _connect({**arguments, **places})
        except (TimeoutError, errors.ConnectionTimeout) as error:
            raise ConnectTimeout(
                options.target, f"no answer within {options.timeout:g} s"
            ) from error
        except (OSError, psycopg.Error) as error:
            libpq.name_pgbouncer(error)
            reason = str(error).strip() or repr(error)
            kind = _refusal(reason)
            waits = kind is TooManyConnections or _TEMPORARY.search(reason) is not None
            raise kind(options.target, reason, is_temporary=waits) from error
        raw.keep_prepared(options.plans)
        return raw

    async def fetch_all(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> list[Record]:
        cursor = await _execute(raw, sql, args, timeout)
        return await cursor.fetchall() if cursor.has_rows else []

    async def fetch_one(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Record | None:
        cursor = await _execute(raw, sql, args, timeout)
        return await cursor.fetchone() if cursor.has_rows else None

    async def execute(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Any:
        cursor = await _execute(raw, sql, args, timeout)
        while cursor.nextset():
            pass  # of several statements the last one counts
        if not cursor.has_rows:
            return _affected(cursor)
        row = await cursor.fetchone()
        return row[0] if row is not None and len(row) else None

    async def ask(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Answer:
        cursor = await _execute(raw, sql, args, timeout, tuple_row)
        return Answer(await cursor.fetchall() if cursor.has_rows else (), _affected(cursor))

    async def execute_many(
        self, raw: GuardedConnection, sql: str, rows: Sequence[Sequence[Any]], timeout: float | None
    ) -> int | None:
        async with _bounded(timeout):
            try:
                return await _execute_many(raw, sql, rows)
            except _STALE as error:
                await _prepare_anew(raw, error)
            return await _execute_many(raw, sql, rows)

    async def copy_in(
        self,
        raw: GuardedConnection,
        table: str,
        schema: str | None,
        columns: Sequence[str] | None,
        rows: Any,
    ) -> int:
        into = ", ".join(map(libpq.quoted, columns or ()))
        statement = f"COPY {libpq.quoted(schema, table)} {into and f'({into})'} FROM STDIN"
        cursor, failure = RecordCursor(raw, tuple_row), None  # its columns have no names
        try:
            async with cursor.copy(statement) as copy:
                try:
                    if isinstance(rows, AsyncIterable):
                        async for row in rows:
                            await copy.write_row(tuple(row))
                    else:
                        for row in rows:
                            await copy.write_row(tuple(row))
                except BaseException as error:
                    failure = error
                    raise
        except psycopg.Error:  # of ending the COPY: it is not what has failed
            if failure is not None:
                raise failure from None
            raise
        return cursor.rowcount

    async def copy_out(self, raw: GuardedConnection, query: str, options: str) -> PsycopgCopy:
        return PsycopgCopy(RecordCursor(raw, tuple_row), f"COPY ({query}) TO STDOUT {options}")

    async def listen(
        self, raw: GuardedConnection, channel: str
    ) -> AsyncIterator[tuple[int, str] | None]:
        await RecordCursor(raw).execute(f"LISTEN {libpq.quoted(channel)}")
        yield None
        async with Inner(raw.notifies()) as told:
            async for one in told:
                yield one.pid, one.payload

    def pool_mode(self, raw: GuardedConnection) -> str | None:
        return None if raw.closed else raw.info.parameter_status(libpq.POOL_MODE)

    async def open_cursor(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any]
    ) -> PsycopgCursor:
        cursor = ServerCursor(raw, f"loopsafe_{next(_serials)}", row_factory=record_row)
        await cursor.execute(sql, args or None)
        return PsycopgCursor(cursor)

    def transaction(
        self, raw: GuardedConnection, options: TransactionOptions
    ) -> PsycopgTransaction:
        return PsycopgTransaction(raw, options)

    def original(self, error: BaseException) -> BaseException:
        return getattr(error, "orig", None) or error

    def state(self, raw: GuardedConnection) -> ConnectionState:
        return raw.state

    def is_answer(self, raw: GuardedConnection, error: BaseException) -> bool:
        if raw.pgconn.transaction_status == TransactionStatus.ACTIVE:
            return False
        original = self.original(error)
        return isinstance(original, _ANSWERS) or came_by(original, _MAKE_VALUES)

    def drops_plans(self, raw: GuardedConnection, error: BaseException) -> bool:
        prepared, lost = raw.prepared, libpq.is_lost(error)
        if prepared.last is None:
            return False
        if isinstance(error, errors.FeatureNotSupported) and (
            error.diag.source_function == "RevalidateCachedQuery"
        ):
            prepared.plans.shift(prepared.last)
        elif libpq.is_of_a_dropped_type(error):
            prepared.plans.outdate(str(error))
        elif not lost:
            return False
        prepared.forget(lost=lost)
        return True

    def move(self, raw: GuardedConnection) -> None:
        raw.move()

    def detach(self, raw: GuardedConnection) -> None:
        raw.detach()

    async def settle(self, raw: GuardedConnection) -> None:
        # `GuardedConnection.wait` has stopped what was interrupted, or ended the connection.
        raw.guarded_owner.check(raw)
        if raw.state is ConnectionState.BUSY:
            raw.end()

    async def reset(self, raw: GuardedConnection) -> None:
        status = raw.pgconn.transaction_status
        if status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            await raw.rollback()
        elif status != TransactionStatus.IDLE:
            raw.end()

    async def remember(self, raw: GuardedConnection) -> None:
        """Do nothing: the server knows."""

    async def reset_session(
        self, raw: GuardedConnection, touched: int, initialise: Callable[[], Awaitable[None]]
    ) -> None:
        query = libpq.reset_query(touched)
        if query is None:
            await raw.close()
            return
        raw.forget()
        await RecordCursor(raw).execute(query, prepare=False)
        await initialise()

    def hand_out(self, raw: GuardedConnection) -> HandedOut:
        return twin(raw, HandedOut)

    def take_back(self, raw: GuardedConnection, handed_out: HandedOut, taken_at: str) -> None:
        raw.begin_no_more()
        part(handed_out, TakenBack, taken_at)

    def is_closed(self, raw: GuardedConnection) -> bool:
        return raw.closed or raw.ended or raw.is_lost()

    def is_lost(self, raw: GuardedConnection, since: float) -> bool:
        return raw.closed or raw.ended or (may_have_news(since) and raw.is_lost())

    async def close(self, raw: GuardedConnection) -> None:
        await raw.close()

    def terminate(self, raw: GuardedConnection) -> None:
        if raw.guarded_owner.is_here:
            raw.end()

    def sockets(self, raw: GuardedConnection) -> Iterable[SocketId]:
        return () if raw.closed else (raw.guarded_socket,)


def _refusal(reason: str) -> type[ConnectError]:
    """Tell what a text means while a connection is opened: psycopg has no SQLSTATE then."""
    if _REFUSED.search(reason):
        return AuthenticationError
    if _SETTING.search(reason):
        return ConnectSettingError
    return TooManyConnections if _FULL.search(reason) else ConnectError


async def _connect(arguments: Mapping[str, Any]) -> GuardedConnection:
    keywords = dict(arguments)
    dumps, loads = keywords.pop("json")
    try:
        raw = await GuardedConnection.connect(autocommit=True, **keywords)
    except asyncio.CancelledError as error:
        # psycopg's frames have the socket, and live as long as the error: the server would wait for us.
        traceback.clear_frames(error.__traceback__)
        raise
    _set_json(raw, dumps, loads)
    return raw


def _set_json(
    raw: GuardedConnection,
    dumps: Callable[[Any], str] | None,
    loads: Callable[[Any], Any] | None,
) -> None:
    """Set what makes JSON of values and values of JSON, for texts and for SQLAlchemy's columns."""
    if loads is not None:
        set_json_loads(OfBytes(loads), raw)
    if dumps is None:
        return
    set_json_dumps(Itself(dumps), raw)

    class DictDumper(JsonDumper):
        """A dumper of what can only be JSON; the server knows which of the two types it wants."""

        oid = 0

        def dump(self, obj: Any) -> Any:
            return super().dump(Json(obj, dumps))

    raw.adapters.register_dumper(dict, DictDumper)


async def _places(
    loop: asyncio.AbstractEventLoop, hosts: list[str], ports: list[int]
) -> dict[str, str]:
    """Give the addresses of each host, so that psycopg asks no loop for them: `addresses` says why."""
    if not hosts:
        return {"port": str(ports[0])} if ports else {}
    places: list[tuple[str, str, str]] = []
    failed: list[OSError] = []
    for host, port in zip(hosts, map(str, ports) if ports else [""] * len(hosts), strict=True):
        try:
            found = await _addresses_of(loop, host, port)
        except OSError as error:
            failed.append(error)
        else:
            places += [(host, address, port) for address in found]
    if not places:
        raise failed[0]
    return dict(
        zip(("host", "hostaddr", "port"), map(",".join, zip(*places, strict=True)), strict=True)
    )


async def _addresses_of(loop: asyncio.AbstractEventLoop, host: str, port: str) -> list[str]:
    if host.startswith(("/", "@")):  # a Unix socket
        return [""]
    return [found[4][0] for found in await addresses(loop, host, int(port or 5432))]


def record_row(cursor: psycopg.AsyncCursor[Any]) -> Callable[[Sequence[Any]], Record]:
    """Make the maker of one result's rows: a row factory, as psycopg calls it."""
    result: Any = cursor.pgresult
    names = tuple(result.fname(column) for column in range(result.nfields))
    return _record_maker(names, cursor._encoding)  # noqa: SLF001


@lru_cache(128)  # a row may have 1664 columns
def _record_maker(
    names: tuple[bytes, ...], encoding: str
) -> Callable[[Sequence[Any]], TupleRecord]:
    keys = RecordKeys(tuple(name.decode(encoding) for name in names))
    if psycopg.pq.__impl__ != "python":
        return partial(TupleRecord, keys)
    return lambda values: TupleRecord(keys, tuple(values))  # psycopg in Python gives a list


async def _execute(
    raw: GuardedConnection,
    sql: str,
    args: Sequence[Any],
    timeout: float | None,
    row_factory: Any = None,
) -> RecordCursor:
    cursor = RecordCursor(raw, row_factory)
    if timeout is None:  # each query would pay for a limit that there is not
        await _send(raw, cursor, sql, args)
    else:
        async with _bounded(timeout):
            await _send(raw, cursor, sql, args)
    return cursor


async def _send(
    raw: GuardedConnection, cursor: RecordCursor, sql: str, args: Sequence[Any]
) -> None:
    try:
        await cursor.execute(sql, args or None)
    except _STALE as error:
        await _prepare_anew(raw, error)
        await cursor.execute(sql, args or None)
    if cursor.rownumber is None and cursor.statusmessage == libpq.ROLLED_BACK:
        libpq.refuse_rollback(sql)


async def _execute_many(
    raw: GuardedConnection, sql: str, rows: Sequence[Sequence[Any]]
) -> int | None:
    # Without a transaction psycopg would commit what it had sent before a value that it cannot send.
    transaction, cursor = PsycopgTransaction(raw, TransactionOptions()), RecordCursor(raw)
    await transaction.start()
    try:
        await cursor.executemany(sql, rows)
    except BaseException as error:
        if raw.pgconn.pipeline_status != PipelineStatus.OFF:
            raw.end()  # the server ended it before the pipeline's end, and libpq takes it for open
        elif not raw.closed and raw.guarded_owner.is_here:
            await transaction.rollback()
        if isinstance(error, AssertionError) and isinstance(error.__context__, psycopg.Error):
            raise error.__context__ from None  # where its pipeline could not begin, psycopg hides why
        raise
    await transaction.commit()
    return _affected(cursor)


async def _prepare_anew(raw: GuardedConnection, error: Exception) -> None:
    """Forget what was prepared, so that a statement can be sent again; if it cannot, raise `error` or what it means."""
    if not DRIVER.drops_plans(raw, error):
        raise error
    if libpq.is_lost(error) and await _is_elsewhere(raw):
        libpq.name_pgbouncer(error)
    if _is_aborted(raw):
        raise error


async def _is_elsewhere(raw: GuardedConnection) -> bool:
    """Tell whether another server answers than the one that was connected to, or whether that cannot be asked."""
    if _is_aborted(raw):
        return True
    cursor = RecordCursor(raw)
    await cursor.execute(libpq.BACKEND, prepare=False)
    backend = await cursor.fetchone()
    return backend is None or backend[0] != raw.pgconn.backend_pid


def _is_aborted(raw: GuardedConnection) -> bool:
    """Tell whether something has failed in the transaction, so that the server only rolls it back."""
    return raw.pgconn.transaction_status == TransactionStatus.INERROR


def _affected(cursor: RecordCursor) -> int | None:
    return cursor.rowcount if cursor.rowcount >= 0 else None


def _begin(options: TransactionOptions) -> str:
    words = ["BEGIN"]
    if options.isolation is not None:
        words.append(f"ISOLATION LEVEL {libpq.isolation(options.isolation)}")
    if options.readonly:
        words.append("READ ONLY")
    if options.deferrable:
        words.append("DEFERRABLE")
    return " ".join(words)


@asynccontextmanager
async def _bounded(timeout: float | None) -> AsyncGenerator[None, None]:
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if timeout is None or not limit.expired():
            raise
        raise StatementTimeout(timeout) from error


def _note_end(ref: weakref.ref[GuardedConnection], message: psycopg.errors.Diagnostic) -> None:
    """Hear of a farewell: what is fatal comes as a notice where nothing is under way."""
    raw = ref()
    if raw is not None and message.severity_nonlocalized in ("FATAL", "PANIC"):
        raw.ended, raw.said = True, (message.message_primary or "", message.sqlstate or "")


DRIVER = PsycopgDriver()
