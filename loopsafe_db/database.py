"""Database: the handle. A URL, options and a scope; no socket."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from loopsafe_db import connection as connections
from loopsafe_db._runtime.generators import Outer, inner_block
from loopsafe_db._runtime.keys import running_loop
from loopsafe_db.configuration import Configuration, Overrides
from loopsafe_db.drivers.base import TransactionOptions
from loopsafe_db.drivers.session_state import Touched
from loopsafe_db.engines.factory import make_options
from loopsafe_db.engines.failing import tell
from loopsafe_db.engines.observing import Listener
from loopsafe_db.errors import (
    ForeignTransactionError,
    InvalidSettingError,
    NoRunningLoopError,
    NotUndoableError,
)
from loopsafe_db.listening import listen
from loopsafe_db.options import SECONDS, PoolLimits, call_limit
from loopsafe_db.queries import CompiledText, compile_text
from loopsafe_db.retry import Attempts
from loopsafe_db.sessions import SessionMaker
from loopsafe_db.transaction import Transaction
from loopsafe_db.url import hidden, masked

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from typing import Self, Unpack

    from sqlalchemy import URL, Engine

    from loopsafe_db.connection import Connection
    from loopsafe_db.drivers.base import Isolation
    from loopsafe_db.engines.compiled_clause import ReadyClause
    from loopsafe_db.engines.observing import Around, Callback
    from loopsafe_db.engines.pool import ConnectionPool
    from loopsafe_db.engines.stats import PoolStats
    from loopsafe_db.listening import Gap, Notification
    from loopsafe_db.options import DatabaseOptions, Options
    from loopsafe_db.queries import Query
    from loopsafe_db.records import Record
    from loopsafe_db.url import DatabaseURL

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D", bound="Database")


class Database:
    """A handle on a database; should live as long as your program does.

    Keep it in a module global, make it at import, before a fork, in any thread; it pickles. Each call finds
    the pool of the process that it is made in, and a connection that works in the loop that it is made in.
    Nothing has to be opened or closed: the first use connects.

    A call joins the transaction that its asyncio task has open, or was started inside of; otherwise it uses a
    connection of its own.
    A query is text with ``:name`` parameters, or any SQLAlchemy Core clause. `timeout` is in seconds, None
    takes ``timeouts.statement``; what is no number is an `InvalidSettingError`.
    """

    def __init__(
        self,
        url: str | URL = "",
        *,
        engine: AsyncEngine | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Note where the database is; opens nothing.

        Args:
            url: As SQLAlchemy writes it; ``postgresql://`` is asyncpg, ``sqlite://`` aiosqlite.
            engine: In place of a URL and options: what `create_async_engine` has made, whose connections it uses.
            options: See `Options`.

        Raises:
            ConfigurationError: The URL cannot be read, or has no driver; or an option has a value that cannot be.
        """
        url = hidden(url)
        if engine is not None:
            self._overrides = _overrides_of(engine, url, options)
            return
        self._overrides = Overrides(_configuration(make_options(url, options)))

    def __repr__(self) -> str:
        url = masked(self._options.url.render_as_string())  # with stars for the password
        return f"<Database {url} scope={self._options.scope!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._options)

    @property
    def _options(self) -> DatabaseOptions:
        return self._overrides.current.options

    @property
    def url(self) -> DatabaseURL:
        """The URL as it was given: ``str()`` of it shows the password, ``repr()`` masks it."""
        return self._options.url

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments as they were given, `force_rollback` apart."""
        return dict(self._options.keywords)

    @property
    def is_connected(self) -> bool:
        """Whether this process has a connection open."""
        return self.stats().idle + self.stats().in_use > 0

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine, on the same connections; works in every loop.

        It may be kept: it works on what the handle works on when it is used. What listens to the events of its
        ``sync_engine`` does so in children that are forked later, too.
        """
        return HandleEngine(self)

    async def connect(self) -> None:
        """Open a connection now, to fail early. Never needed.

        Or as many as ``min_connections``, side by side; these are kept until `disconnect`.
        """
        pool = self._pool()
        if (joined := connections.joined(pool)) is not None:
            async with joined:
                return
        entry = await pool.acquire(running_loop("connect()"))
        entry.in_doubt = False
        await pool.returning.release(entry)
        await pool.open_least()

    async def disconnect(self) -> None:
        """Close what is idle in this loop; what others use stays, and a later call connects again.

        Under `force_rollback` it undoes what was done.
        """
        pool = self._pool()
        if pool.pinned is not None:
            if pool.pinned.outlives_disconnect:
                return
            await pool.pinned.undo()
        pool.keep_none()
        await pool.close()

    def expire_connections(self) -> None:
        """Have no connection of this process that is open now used again: for after a failover, or new credentials.

        What is idle is ended now, what others use when it comes back. A connection that holds what no other has stays:
        that of `force_rollback`, or of a database in memory.
        """
        pool = self._pool()
        if not pool.only_one:
            pool.expire()

    @contextmanager
    def force_rollback(self) -> Iterator[None]:
        """Have this handle undo in the end whatever is done with it in the block, by anybody. For tests.

        As the option ``force_rollback=True`` does it: all tasks, loops and threads of the process work on one
        connection, in turn, and see each other's work. At `disconnect` it is undone, and at the end of the block.
        """
        with self._overrides.roll_back(self._undone_configuration):
            yield

    def _undone_configuration(self) -> Configuration:
        """Make one that is as the handle's of now, but has all work undone."""
        return _configuration(replace(self._options, force_rollback=True))

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def fetch_all(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> list[Record]:
        """Give every row of a query."""
        if type(query) is str and (pool := self._free_pool()) is not None:
            return await _once(pool, pool.user_driver.fetch_all, query, values, timeout)
        if (ready := self._ready(query, values)) is not None:
            return (await _ask(*ready, timeout))[0]
        if (own := self._own()) is not None:
            return await own.fetch_all(query, values, timeout=timeout)
        async with self.connection() as connection:
            return await connection.fetch_all(query, values, timeout=timeout)

    async def fetch_one(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Record | None:
        """Give the first row of a query, or None."""
        if type(query) is str and (pool := self._free_pool()) is not None:
            return await _once(pool, pool.user_driver.fetch_one, query, values, timeout)
        if (ready := self._ready(query, values)) is not None:
            return next(iter((await _ask(*ready, timeout))[0]), None)
        if (own := self._own()) is not None:
            return await own.fetch_one(query, values, timeout=timeout)
        async with self.connection() as connection:
            return await connection.fetch_one(query, values, timeout=timeout)

    async def fetch_val(
        self,
        query: Query,
        values: Mapping[str, Any] | None = None,
        column: Any = 0,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Give one column, by position, name or SQLAlchemy's object, of the first row; None if there is no row."""
        if type(query) is not str:
            row = await self.fetch_one(query, values, timeout=timeout)
        elif (pool := self._free_pool()) is not None:
            row = await _once(pool, pool.user_driver.fetch_one, query, values, timeout)
        elif (own := self._own()) is not None:
            row = await own.fetch_one(query, values, timeout=timeout)
        else:
            async with self.connection() as connection:
                row = await connection.fetch_one(query, values, timeout=timeout)
        return None if row is None else connections.column_of(row, column)

    async def execute(
        self, query: Query, values: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """Run a statement.

        Returns:
            Of what gives rows (``RETURNING``), the first value of the first row, or None if there is no row. Of a Core
            insert of one row, its primary key. Else the rows affected, or None if there is no such number. So what
            was to insert a row, and did not (``ON CONFLICT DO NOTHING``), gives None with a ``RETURNING``, else 0.
        """
        if type(query) is str and (pool := self._free_pool()) is not None:
            return await _once(pool, pool.user_driver.execute, query, values, timeout)
        if (ready := self._ready(query, values)) is not None:
            rows, outcome = await _ask(*ready, timeout)
            return rows[0][0] if rows else outcome
        if (own := self._own()) is not None:
            return await own.execute(query, values, timeout=timeout)
        async with self.connection() as connection:
            return await connection.execute(query, values, timeout=timeout)

    async def execute_many(
        self,
        query: Query,
        values: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        timeout: float | None = None,
    ) -> int | None:
        """Apply one statement to many mappings of values: all of them or none.

        What an async iterator gives is sent in batches, as it comes, in one transaction; then `timeout` is that of
        each batch.

        Returns:
            Rows affected, or None if the driver cannot tell: asyncpg reads of each answer only whether it failed.
        """
        async with self.connection() as connection:
            return await connection.execute_many(query, values, timeout=timeout)

    async def copy_records_to(
        self,
        table: str,
        rows: Iterable[Sequence[Any] | Record] | AsyncIterable[Sequence[Any] | Record],
        *,
        columns: Sequence[str] | None = None,
        schema: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Copy rows to a table by PostgreSQL's COPY: all of them or none.

        Args:
            table: Its name, as it is: it will be quoted.
            rows: Sequences of values, or records, in the order of the columns. What the handle is asked for while
                they are made goes over another connection. Inside of a transaction, or a block of `connection`, there
                is only one.
            columns: Their names; without them all, in the table's order.
            schema: The table's; without one it is looked for as in a query.
            timeout: Seconds for all of it.

        Returns:
            How many rows.

        Raises:
            BusyConnectionError: What makes the rows uses the connection that copies them.
            CopyRowsError: They are no rows of the columns; of values of the wrong kind psycopg's server tells.
            UnsupportedError: The driver is neither asyncpg nor psycopg.
        """
        async with self._stream_connection() as connection:
            return await connection.copy_records_to(
                table, rows, columns=columns, schema=schema, timeout=timeout
            )

    def copy_from_query(
        self, query: str, *, format: str = "text", header: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """Give the rows of a query as PostgreSQL's COPY writes them, as they are needed: pieces of bytes.

        It holds a connection, as `iterate` does; who leaves it early waits up to 2 s for the rest. Inside a
        transaction, the first thing that is done otherwise has the rest read into memory.

        Args:
            query: A query, or the name of a table in brackets, ``TABLE points``. COPY takes no parameters.
            format: ``"text"``, ``"csv"`` or ``"binary"``.
            header: Whether the names of the columns come first.

        Raises:
            UnsupportedError: The driver is neither asyncpg nor psycopg.
        """
        return connections.copy_stream(self._stream_connection, query, format, header=header)

    @inner_block
    async def advisory_lock(
        self, key: int | str, *, shared: bool = False, timeout: float | None = None
    ) -> AsyncIterator[None]:
        """Hold a lock of PostgreSQL's that is the application's own, for the length of a block.

        The block has a connection, as that of `connection` has: what its task asks of the handle goes over it. If
        that is lost, so is the lock. Inside a transaction, the lock is held until that ends: others see what the
        block has done when they have it.

        Args:
            key: A number of 64 bits, or a text, which the server makes one of.
            shared: Whether others may hold it shared meanwhile.
            timeout: Seconds to wait for it, in place of the time of a statement.

        Raises:
            ConnectionLost: The lock was lost with its connection; told when the block ends, if nothing else was asked.
            InvalidSettingError: The key is neither a text nor a number of 64 bits.
            StatementTimeout: It was not free in time.
            UnsupportedError: The driver is neither asyncpg nor psycopg, or a PgBouncer is in transaction mode.
        """
        connections.check_lock_key(key)
        async with (
            self.connection() as connection,
            connection.advisory_lock(key, shared=shared, timeout=timeout),
        ):
            yield

    def listen(self, channel: str) -> AsyncGenerator[Notification | Gap, None]:
        """Give what is notified on a channel of PostgreSQL's, for as long as it is iterated over.

        It has a connection of its own, beside the pool, and opens another when that is lost: then a `Gap` comes, for
        what was notified meanwhile nobody has heard. It begins to listen when it is asked for the first of them.

        Args:
            channel: Its name, as it is: it will be quoted.

        Raises:
            UnsupportedError: The driver is neither asyncpg nor psycopg, or a PgBouncer is in transaction mode.
            NotUndoableError: All is undone in the end here, so that nobody is ever notified.
        """
        if self._options.force_rollback:
            raise NotUndoableError(f"LISTEN {channel}")
        connections.copying_driver(self._pool(), "listen", session=True)
        own = replace(self._options, scope="loop", pool=PoolLimits(1, idle_timeout=None))
        return Outer(listen(lambda: _restore(Database, own), channel))

    def iterate(
        self, query: Query, values: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Record, None]:
        """Give rows as they are needed, by a server-side cursor; holds a connection until all were fetched.

        It may be left at any row. Inside a transaction it ends with that. Inside a block of `connection`, the first
        thing that is done otherwise on its connection has the rest of the rows read into memory.
        """
        return connections.stream(self._stream_connection, query, values)

    def _stream_connection(self) -> Connection:
        pool = self._pool()
        return connections.joined(pool) or connections.LoneConnection(pool)

    def connection(self, *, timeout: float | None = None) -> Connection:
        """Give a connection, to be checked out for the length of an ``async with``.

        What this asyncio task asks of the handle inside the block goes over it; tasks that are started there have
        connections of their own, outside of a transaction. A task has one connection at a time:
        inside of such a block, or of a transaction, this gives that block's, which may be handed to tasks that are
        started there.

        Args:
            timeout: Seconds to have one: to wait for it, and to open it where need be. None takes ``timeouts``.

        Raises:
            AcquireTimeout: None came free in time.
            ConnectTimeout: It was not open in time.
            InvalidSettingError: The time is not more than 0 seconds.
        """
        if timeout is not None:
            SECONDS.check("timeout", timeout)
        pool = self._pool()
        return connections.joined(pool) or connections.Connection(pool, timeout)

    def transaction(
        self,
        *,
        isolation: Isolation | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        force_rollback: bool = False,
    ) -> Transaction:
        """Run a block in a transaction, or in a savepoint if this task has one open.

        Every call on this handle joins it that is made in the same asyncio task, or in one that is started inside
        (`asyncio.wait_for`, `asyncio.gather`, a `TaskGroup`): these take turns, and none outlives it there. A task
        that is to be beside it is started with ``context=contextvars.Context()``.

        Args:
            isolation: ``"serializable"``, ``"repeatable_read"``, ``"read_committed"``, or None for the server's.
            readonly: Whether writes are refused.
            deferrable: Whether it may wait for a safe snapshot (PostgreSQL, serializable and read-only).
            force_rollback: Whether its block is undone at its end, whatever happened: for tests.
        """
        options = TransactionOptions(isolation, readonly, deferrable)
        return Transaction(self.connection, options, force_rollback=force_rollback)

    async def run_in_transaction(
        self,
        function: Callable[[], Awaitable[T]],
        *,
        attempts: int = 5,
        within: float = 30.0,
        isolation: Isolation | None = None,
        readonly: bool = False,
        deferrable: bool = False,
    ) -> T:
        """Give what a function gives, run in a transaction, which is run again where that may help.

        That is where nothing of it is stored, and the error is `retryable`: a serialization failure, a deadlock, a
        lock that was not free, a connection that was lost before COMMIT was sent or could not be opened. Never after
        a `CommitUnknown`. What the function does elsewhere is done in each attempt. Sessions join it, as they do any
        transaction. Inside another transaction it is a savepoint, run once: what is outermost has to be run again.

        Args:
            function: Is called without arguments, perhaps several times.
            attempts: How often, at most. Between two of them is a pause of random length.
            within: Seconds after which no attempt begins any more.
            isolation: See `transaction`.
            readonly: See `transaction`.
            deferrable: See `transaction`.

        Raises:
            InvalidSettingError: Of `attempts` or `within`.
        """
        options = TransactionOptions(isolation, readonly, deferrable)
        return await self._run_again(function, Attempts(attempts, within), options)

    def transactional(
        self,
        *,
        attempts: int = 5,
        within: float = 30.0,
        isolation: Isolation | None = None,
        readonly: bool = False,
        deferrable: bool = False,
    ) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
        """Make a decorator that has each call of a coroutine function run by `run_in_transaction`."""
        options = TransactionOptions(isolation, readonly, deferrable)
        tried = Attempts(attempts, within)

        def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
            @wraps(function)
            async def run(*args: P.args, **kwargs: P.kwargs) -> T:
                return await self._run_again(lambda: function(*args, **kwargs), tried, options)

            return run

        return decorate

    async def _run_again(
        self, function: Callable[[], Awaitable[T]], attempts: Attempts, options: TransactionOptions
    ) -> T:
        if self._in_transaction():  # whoever has begun that has to begin again
            attempts = Attempts(1, attempts.within)
        return await attempts.run(lambda: Transaction(self.connection, options), function)

    def read(self) -> Database:
        """Give a handle for reading: one of the replicas, in turn.

        Without replicas, and inside a transaction of this task, it is this handle. Replicas lag behind, and one
        that fails is not left out: for that let its URL name several hosts.
        """
        configuration = self._overrides.current
        if not configuration.replicas or self._in_transaction():
            return self
        return configuration.next_replica()

    @property
    def session(self) -> SessionMaker:
        """SQLAlchemy's sessions: ``async with db.session() as session``, ``async with db.session.begin() as session``.

        Inside `transaction` a session of the same task joins it; what the handle is asked beside a session does not
        join that.
        """
        return SessionMaker(lambda: self.engine, self._transaction_of_session)

    def on_statement(
        self, callback: Callback, *, around: Around | None = None, parameters: bool = False
    ) -> Callable[[], None]:
        """Have a function called with each statement that this handle has sent, of every path: see `Statement`.

        Texts, clauses, sessions, scripts, streams, BEGIN and COMMIT; of every loop and thread of the process, and of
        processes that are forked later, also where the handle is overridden by `force_rollback`. What is done on
        `Connection.raw_connection` nobody hears of. A listener that raises is logged, once, and disturbs nothing.
        `loopsafe_db.on_statement` does so for all handles.

        Args:
            callback: Called with a `Statement` when that is over, in its thread; what takes long goes elsewhere.
            around: Called with the SQL before it is sent; gives a context manager, which is left when the answer is
                here. It may be called several times for one stream.
            parameters: Whether it is to have the values of the parameters: they may be secret.

        Returns:
            What ends it.
        """
        return self._overrides.listeners.add(Listener(callback, around, parameters))

    def stats(self) -> PoolStats:
        """Give the figures of this handle's pool in this process, and who has its connections."""
        return self._overrides.current.stats()

    def _pool(self) -> ConnectionPool:
        return self._overrides.current.find_pool()

    def _joined_transaction(self) -> Connection | None:
        pool = self._pool()
        if pool.pinned is not None:  # sessions begin savepoints on it by themselves
            return None
        connection = connections.joined(pool)
        return connection if connection is not None and connection.in_transaction else None

    def _transaction_of_session(self) -> Connection | None:
        """Give what a session joins.

        Raises:
            ForeignTransactionError: It is another task's, which may have a session there, too: they take no turns.
        """
        connection = self._joined_transaction()
        if connection is not None and connection.is_guest:
            opened = connection.transaction_of_caller
            raise ForeignTransactionError(
                "a session", opened.holder if opened else repr(connection)
            )
        return connection

    def _in_transaction(self) -> bool:
        if self._options.force_rollback:
            return True
        try:
            return self._joined_transaction() is not None
        except NoRunningLoopError:
            return False

    def _free_pool(self) -> ConnectionPool | None:
        """Give the pool, unless the running task has a connection that it has to use."""
        pool = self._overrides.current.find_pool()
        if not pool.direct:
            return None
        if not pool.bound:
            return pool
        return pool if connections.joined(pool) is None else None

    def _own(self) -> Connection | None:
        """Give the connection that the running task has taken by itself, where all that it asks goes over that."""
        pool = self._overrides.current.find_pool()
        return connections.own(pool) if pool.direct else None

    def _ready(
        self, query: Query, values: Mapping[str, Any] | None
    ) -> tuple[ConnectionPool, ReadyClause] | None:
        """Give the pool, and a clause for its driver, where both can be used without a `Connection`."""
        if type(query) is str or (pool := self._free_pool()) is None or pool.clauses is None:
            return None
        ready = pool.clauses.ready(query, values)
        return None if ready is None else (pool, ready)


class HandleEngine(AsyncEngine):
    """An engine that asks its handle at each use, and keeps it: its connections end when nobody has the handle."""

    __slots__ = ("_execution_options", "_found", "_of", "handle")
    handle: Database

    def __init__(self, handle: Database, **execution_options: Any) -> None:
        self.handle, self._execution_options = handle, execution_options
        self._of: Engine | None = None
        super().__init__(self.sync_engine)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_engine, (self.handle, self._execution_options)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, HandleEngine):
            return self._identity == other._identity
        return isinstance(other, AsyncEngine) and self.sync_engine == other.sync_engine

    def __hash__(self) -> int:
        return hash(self.handle._overrides)  # noqa: SLF001

    @property
    def _identity(self) -> tuple[Overrides, dict[str, Any]]:
        return self.handle._overrides, self._execution_options  # noqa: SLF001

    @property
    def sync_engine(self) -> Engine:
        """SQLAlchemy's engine of what the handle uses now: one for all processes."""
        engine = self.handle._pool().engine.sync_engine  # noqa: SLF001
        if engine is not self._of:
            options = self._execution_options
            self._found = engine.execution_options(**options) if options else engine
            self._of = engine
        return self._found

    @sync_engine.setter
    def sync_engine(self, engine: Engine) -> None:
        pass

    @property
    def _proxied(self) -> Engine:
        return self.sync_engine

    async def raw_connection(self) -> Any:
        """Give a connection of the DBAPI; what is done on it cannot be seen, and so all is reset."""
        fairy = await super().raw_connection()
        record: Any = fairy._connection_record  # noqa: SLF001
        record.touch(Touched.RAW)
        begins = getattr(self.dialect, "begins_by_itself", None)
        if begins is not None and record.lender.pinned is None:
            record.hand_out()
            record.touch(begins(fairy))
        return fairy

    def execution_options(self, **opt: Any) -> HandleEngine:
        """Give an engine with these options, on the same connections."""
        return HandleEngine(self.handle, **{**self._execution_options, **opt})


def _restore_engine(handle: Database, execution_options: Mapping[str, Any]) -> HandleEngine:
    return HandleEngine(handle, **execution_options)


def _overrides_of(engine: AsyncEngine, url: Any, options: Mapping[str, Any]) -> Overrides:
    """Give what an engine uses, for a handle that is to use the same.

    Raises:
        InvalidSettingError: It is none of ours, or there is something beside it.
    """
    if not isinstance(engine, HandleEngine):
        raise InvalidSettingError(
            f"engine takes what loopsafe_db.create_async_engine makes, not {type(engine).__name__}"
        )
    if url or options:
        raise InvalidSettingError("engine has its URL and options: give Database nothing else")
    return engine.handle._overrides  # noqa: SLF001


def _once(
    pool: ConnectionPool,
    operation: Callable[[Any, str, Sequence[Any], float | None], Awaitable[T]],
    query: str,
    values: Mapping[str, Any] | None,
    timeout: float | None,
) -> Awaitable[T]:
    """Run one text on a connection of its own."""
    compiled = compile_text(query, pool.driver.traits.dialect)
    return _alone(pool, operation, compiled, compiled.arguments(values), timeout)


async def _ask(
    pool: ConnectionPool, ready: ReadyClause, timeout: float | None
) -> tuple[list[Record], Any]:
    """Run one clause on a connection of its own; give the rows, and what `execute` gives where there are none."""
    driver: Any = pool.user_driver
    return ready.results(await _alone(pool, driver.ask, ready, ready.args, timeout))


async def _alone(
    pool: ConnectionPool,
    operation: Callable[[Any, str, Sequence[Any], float | None], Awaitable[T]],
    statement: CompiledText | ReadyClause,
    args: Sequence[Any],
    timeout: float | None,
) -> T:
    """Run a statement on a connection of its own: acquired, used and given back without a `Connection`."""
    timeout = pool.options.timeouts.statement if timeout is None else call_limit(timeout)
    loop = running_loop("a query")
    entry = pool.acquire_nowait(loop) or await pool.acquire(loop)
    if statement.touches:
        entry.touch(statement.touches)
    try:
        result = await operation(entry.raw, statement.sql, args, timeout)
        entry.in_doubt = False
    except BaseException as error:
        pool.returning.note_error(entry, error)
        sent = statement if isinstance(statement, CompiledText) else statement.text
        if isinstance(error, Exception):
            tell(pool, entry, error, sent, undone=False)
        raise
    finally:
        if pool.returning.is_idle(entry):
            pool.give_back(entry)  # the common case, without a coroutine
        else:
            await pool.returning.release(entry)
    return result


def _configuration(options: DatabaseOptions) -> Configuration:
    replicas = [
        _restore(Database, replace(options, url=url, replicas=())) for url in options.replicas
    ]
    return Configuration(options, replicas)


def _restore(kind: type[D], options: DatabaseOptions) -> D:
    database = kind.__new__(kind)
    database._overrides = Overrides(_configuration(options))  # noqa: SLF001
    return database
