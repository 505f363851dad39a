"""asyncpg: PostgreSQL. Its connections belong to the loop that opened them."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import types
import weakref
from collections.abc import AsyncIterable
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

import asyncpg
from asyncpg.protocol import BUILTIN_TYPE_NAME_MAP as BUILTIN_TYPES
from sqlalchemy import JSON, event
from sqlalchemy.dialects import postgresql, registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from loopsafe_db._runtime.transport import (
    ANY_LOOP,
    AnyLoop,
    MovableTransport,
    PrecedingTls,
    can_move,
    need_readers,
    nowhere,
)
from loopsafe_db._runtime.whole_steps import whole
from loopsafe_db.drivers import libpq
from loopsafe_db.drivers.asyncpg_adapter import EngineConnection, PreparedStatements
from loopsafe_db.drivers.base import (
    Answer,
    ConnectionState,
    ConnectOptions,
    DriverTraits,
    Owner,
    Plans,
    TransactionOptions,
    take_rows,
)
from loopsafe_db.drivers.failures import by_refusal, by_sqlstate, came_by, is_temporary
from loopsafe_db.drivers.handed_out import plain_connection
from loopsafe_db.errors import (
    AuthenticationError,
    ConnectionLost,
    ConnectSettingError,
    ConnectTimeout,
    CopyRowsError,
    InvalidURLError,
    PgBouncerError,
    StatementTimeout,
    TransactionAborted,
)
from loopsafe_db.queries import compile_text
from loopsafe_db.records import Record
from loopsafe_db.url import hidden

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from loopsafe_db._runtime.forks import SocketId
    from loopsafe_db.errors import DriverError
    from loopsafe_db.options import DatabaseOptions

    class BaseRecord:
        """asyncpg has no types."""

    class BaseTransaction:
        """asyncpg has no types."""

        _connection: Any
        _id: str
        _nested: bool

        def __init__(self, *args: Any) -> None: ...
        def start(self) -> Awaitable[None]: ...
        def commit(self) -> Awaitable[None]: ...
        def rollback(self) -> Awaitable[None]: ...

    class BaseConnection:
        """asyncpg has no types."""

        _aborted: bool
        _query_loggers: Any
        _stmt_cache: Any
        _stmt_exclusive_section: Any
        _top_xact: Any

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
        async def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any: ...
        def _check_open(self) -> None: ...
        def _cancel_current_command(self, waiter: Any, *rest: Any) -> None: ...
        def _get_statement(
            self, query: str, timeout: float | None, **options: Any
        ) -> Awaitable[Any]: ...
        async def _introspect_type(self, typename: str, schema: str) -> Any: ...
        async def set_type_codec(self, typename: str, **options: Any) -> None: ...
        async def _executemany(self, *args: Any, **options: Any) -> Any: ...
else:
    BaseConnection, BaseRecord = asyncpg.Connection, asyncpg.Record
    BaseTransaction = asyncpg.transaction.Transaction

T = TypeVar("T")

_REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,  # also InvalidPasswordError
    asyncpg.InvalidCatalogNameError,
)
_LOST = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
# What the server has not done, because of what was prepared: but for what asyncpg sends again by itself.
_STALE = (*_LOST, asyncpg.InternalServerError)
_PIECES = 16  # of what is copied out, that wait to be fetched
_JSON_PREFIXES = {"json": b"", "jsonb": b"\x01"}  # of their binary format
_ANSWERS = (asyncpg.PostgresError, asyncpg.exceptions._base.DataError)  # noqa: SLF001 (a value that cannot be sent)
# What makes values of an answer: asyncpg keeps what fails there until it has read the answer to its end.
_MAKE_VALUES = ("BaseProtocol._decode_row",)
_IDLE = ConnectionState.IDLE
_FAREWELL = 0.1  # seconds for a server to end what has said goodbye, and has its place for another
_WITH_STATUS = True  # what asks asyncpg for the server's word on a statement, beside its rows
_ROLLED_BACK = libpq.ROLLED_BACK.encode()
_UTF8 = ("utf8", "unicode", "auto")  # libpq's names of it, without hyphens
_SETS = ("SET ", "set ")  # how such a text begins, unless it is written otherwise
# What asyncpg tells its users of a connection.
_callbacks = attrgetter("_listeners", "_log_listeners", "_termination_listeners", "_query_loggers")
_FAILED = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # no host has the wanted target_session_attrs
)


def _meaning(error: BaseException) -> type[DriverError] | None:
    # The server has said farewell to a connection that was not asked anything, and its end is not yet here: asyncpg
    # takes the farewell for the answer of an operation that nobody has begun.
    return ConnectionLost if type(error) is asyncpg.InternalClientError else by_sqlstate(error)


def _has_ended(raw: GuardedConnection) -> bool:
    # `_top_xact` is asyncpg's mark of a transaction that has begun
    if raw._top_xact is None:  # noqa: SLF001
        return False
    protocol = raw.guarded_protocol()
    return protocol is not None and not protocol.is_in_transaction() and protocol.is_connected()


class _DriverRecord(BaseRecord):
    """asyncpg's own row, but freed: from 0.31 on it keeps up to 2,000 of each width for a thread, and past its end."""

    __slots__ = ()


class AsyncpgRecord(Record, BaseRecord):
    """asyncpg's own row type, allocated by asyncpg in C, with our methods."""

    # No __getitem__ that names the columns where one is missing: each access would pay for it (decision 0008).

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return Record.__eq__(self, other)

    def __hash__(self) -> int:
        return Record.__hash__(self)

    def __repr__(self) -> str:
        return Record.__repr__(self)


class GuardedConnection(BaseConnection):
    """A connection that moves between loops, and refuses all but its present owner, whoever asks."""

    __slots__ = (
        "guarded_answer",
        "guarded_codecs",
        "guarded_farewell",
        "guarded_forgotten",
        "guarded_generation",
        "guarded_kept",
        "guarded_lease",
        "guarded_names",
        "guarded_owner",
        "guarded_plans",
        "guarded_protocol",
        "guarded_socket",
        "guarded_stream",
    )
    guarded_answer: str
    guarded_codecs: set[str]
    guarded_farewell: libpq.Farewell  # asyncpg drops what comes while nothing was asked
    guarded_forgotten: int  # how often it has forgotten what it had prepared
    guarded_generation: int  # of `Plans`, when it did so
    guarded_kept: object  # all that only the loop keeps while it is in use: see `let_loop_keep`
    guarded_names: Iterator[str]
    guarded_lease: int
    guarded_owner: Owner
    guarded_plans: Plans
    guarded_protocol: Callable[[], Any]
    guarded_stream: Callable[[], Any]
    guarded_socket: Callable[[], MovableTransport | None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.guarded_owner = Owner()
        self.guarded_codecs = set()
        self.guarded_farewell = libpq.Farewell()
        self.guarded_names = libpq.unique_names()
        self.guarded_plans = Plans()
        self.guarded_forgotten = self.guarded_generation = 0
        self.guarded_lease = 0  # how often it was taken back
        self.guarded_protocol = self.guarded_stream = self.guarded_socket = nowhere
        super().__init__(*args, **kwargs)
        transport: MovableTransport | None = self._transport.get_extra_info("movable")
        if transport is not None:
            self.guarded_socket = weakref.ref(transport)
            transport.opened()
            self._transport.overhear(libpq.Farewell.FIRST, self.guarded_farewell.hear)
        self.keep()

    def let_loop_keep(self) -> None:
        """Have only the loop keep what waits for answers: its selector has the socket, and that all the rest.

        Else a loop that is dropped in the middle of a statement would never be garbage: what waits there knows it.
        """
        if self.guarded_socket is not nowhere:
            self.guarded_kept = None

    def keep(self) -> None:
        """Keep all of it: the loop may end, and another one have the connection."""
        self.guarded_kept = self.guarded_socket() or (
            self.guarded_protocol(),
            self.guarded_stream(),
        )

    @property
    def guarded_transport(self) -> MovableTransport | None:
        """None where the loop's own transport is used, which cannot move; or where it is gone with its loop."""
        return self.guarded_socket()

    @property
    def _protocol(self) -> Any:
        return self.guarded_protocol()

    @_protocol.setter
    def _protocol(self, protocol: Any) -> None:
        self.guarded_protocol = nowhere if protocol is None else weakref.ref(protocol)

    @property
    def _transport(self) -> Any:
        return self.guarded_stream()

    @_transport.setter
    def _transport(self, transport: Any) -> None:
        self.guarded_stream = nowhere if transport is None else weakref.ref(transport)

    def is_closed(self) -> bool:
        """Tell whether it is closed, or gone with its loop."""
        protocol = self.guarded_protocol()
        return self._aborted or protocol is None or not protocol.is_connected()

    @property
    def _loop(self) -> Any:
        """The loop that runs: a connection that moved would remember the wrong one."""
        return asyncio._get_running_loop() or ANY_LOOP  # noqa: SLF001

    @_loop.setter
    def _loop(self, loop: Any) -> None:
        pass

    @property
    def _pool_release_ctr(self) -> int:
        # Every method of a prepared statement or a cursor compares this before it does anything.
        self.guarded_owner.check(self)
        return self.guarded_lease

    @_pool_release_ctr.setter
    def _pool_release_ctr(self, count: int) -> None:
        pass

    def _get_unique_id(self, prefix: str) -> str:
        # asyncpg's is unique in its process only.
        return f"__asyncpg_{prefix}_{next(self.guarded_names)}__"

    def _get_statement(
        self,
        query: str,
        timeout: float | None,
        *,
        named: str | bool | None = False,
        use_cache: bool = True,
        **options: Any,
    ) -> Awaitable[Any]:
        # asyncpg prepares here, or finds what it has prepared.
        self.guarded_catch_up()
        if hash(query) not in self.guarded_plans.shifting:
            return self.guarded_prepare(query, timeout, named=named, use_cache=use_cache, **options)
        if named:  # as for a cursor
            # A PgBouncer keeps a plan for each text, whatever name it has: this one is new to it.
            query = f"{query}\n/* {next(self.guarded_names)} */"
        return super()._get_statement(query, timeout, named=named or "", use_cache=False, **options)

    async def guarded_prepare(self, query: str, timeout: float | None, **options: Any) -> Any:
        """Prepare what is thought to have the rows that it always had.

        Raises:
            PgBouncerError: It has others, and a PgBouncer has kept it from before; in a transaction, which has failed.
        """
        try:
            return await super()._get_statement(query, timeout, **options)
        except asyncpg.InvalidCachedStatementError as error:
            self.guarded_plans.shift(query)
            if self.is_in_transaction():
                raise PgBouncerError(f"{error}; it has kept a statement of before that") from error
        return await self._get_statement(query, timeout, **options)

    def guarded_prepared(self, query: str, record_class: type) -> Any:
        """Give what was prepared for a query; None where asyncpg's own way has more to do."""
        plans = self.guarded_plans
        if self.guarded_generation != plans.generation or self._query_loggers:
            return None
        if plans.shifting and hash(query) in plans.shifting:
            return None
        return self._stmt_cache.get((query, record_class, False))

    def guarded_catch_up(self) -> None:
        """Forget what another connection has found to be outdated."""
        if self.guarded_generation != self.guarded_plans.generation:
            self.guarded_forget()

    def guarded_forget(self, *, lost: bool = False) -> None:
        """Forget what was prepared; the server is told in time, unless it has lost that."""
        self.guarded_generation = self.guarded_plans.generation
        self.guarded_forgotten += 1
        if lost:
            self._mark_stmts_as_closed()
        else:
            self._drop_local_statement_cache()

    def _drop_global_statement_cache(self) -> None:
        # asyncpg would tell the connections of its own pool. After an altered table it asks again, where it may.
        error = sys.exception()
        if error is None or not DRIVER.drops_plans(self, error):
            self.guarded_forget()

    def _drop_global_type_cache(self) -> None:
        # Nor has it a pool of asyncpg's where a user has it.
        self._drop_local_type_cache()

    async def set_type_codec(self, typename: str, **options: Any) -> None:
        """Set a codec, and remember that it was set: `EngineDialect` leaves those of the user's alone."""
        if typename in _JSON_PREFIXES and (encoder := options.get("encoder")) is not None:
            options["encoder"] = lambda value: encoder(
                value.value if type(value) is JsonValue else value
            )
        await super().set_type_codec(typename, **options)
        self.guarded_codecs.add(typename)

    async def _introspect_type(self, typename: str, schema: str) -> Any:
        # asyncpg makes a row of its own kind for it, which it keeps past the end of the thread.
        oid = BUILTIN_TYPES.get(typename) if schema == "pg_catalog" else None
        if oid is None or typename.endswith("[]"):
            return await super()._introspect_type(typename, schema)
        return {"oid": oid, "elemtype": None, "kind": b"b"}

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """Execute, and keep the answer: asyncpg's transactions do not look at it."""
        self.guarded_answer = await super().execute(query, *args, timeout=timeout)
        if libpq.MAY_DISCARD.search(query):
            self.guarded_forget()
        return self.guarded_answer

    def guarded_query(self, text: str) -> Awaitable[str]:
        """Send a text without arguments: as execute() does it, in fewer steps where nobody has to be told."""
        self._check_open()
        if self._query_loggers:
            return super().execute(text)
        return self.guarded_protocol().query(text, None)  # type: ignore[no-any-return]

    async def _executemany(self, *args: Any, **options: Any) -> Any:
        return await _sending(self, super()._executemany(*args, **options))

    def _check_open(self) -> None:
        # Every public method of the connection comes by here.
        self.guarded_owner.check(self)
        if self.is_closed():
            super()._check_open()

    def _cancel_current_command(self, waiter: Any, *rest: Any) -> None:
        # A forked child that cancels its copy of the parent's task must not cancel the parent's query.
        if self.guarded_owner.is_here:
            super()._cancel_current_command(waiter, *rest)
        elif not waiter.done():
            waiter.set_result(None)

    def __del__(self) -> None:
        """Do nothing: the pool that opened it ends it, and a forked child must not."""


class UnpreparedConnection(GuardedConnection):
    """A connection whose next transaction may be on another server: it prepares nothing under a name.

    asyncpg parses and describes a statement, flushes, and only then binds: no ``Sync`` in between, so PgBouncer keeps
    the server. A named one would be closed, or its types looked up, with a ``Sync`` in between.
    """

    __slots__ = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Looking a type up switches the JIT off and on again, on two servers perhaps.
        this: Any = self
        this._server_caps = this._server_caps._replace(jit=False)  # noqa: SLF001

    def _get_statement(
        self, query: str, timeout: float | None, *, named: object = False, **options: Any
    ) -> Awaitable[Any]:
        return super()._get_statement(query, timeout, named="", **options)


class JsonValue:
    """A value of one of SQLAlchemy's JSON columns, for the codec of its connection to encode."""

    __slots__ = ("value",)
    value: object

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


class EngineJSON(postgresql.JSON):
    """SQLAlchemy's JSON, which it would encode itself, before the codec of the connection does it again."""

    def bind_processor(self, dialect: Any) -> Any:
        """Leave it to the codec."""
        return self._make_bind_processor(None, JsonValue)  # type: ignore[no-untyped-call]

    def result_processor(self, dialect: Any, coltype: Any) -> None:
        """Leave it to the codec: SQLAlchemy 2.0 would decode what is decoded."""


class EngineJSONB(postgresql.JSONB):
    """The same of the other type."""

    def bind_processor(self, dialect: Any) -> Any:
        """Leave it to the codec."""
        return self._make_bind_processor(None, JsonValue)  # type: ignore[no-untyped-call]

    def result_processor(self, dialect: Any, coltype: Any) -> None:
        """Leave it to the codec: SQLAlchemy 2.0 would decode what is decoded."""


class EngineDialect(libpq.AsksAtOnce, libpq.RefusesCopy, PGDialect_asyncpg):
    """SQLAlchemy's dialect: without its cache where nothing may stay prepared, and with our name for PgBouncer."""

    supports_statement_cache = True
    colspecs: Any = {  # noqa: RUF012 (as SQLAlchemy has it)
        **PGDialect_asyncpg.colspecs,
        JSON: EngineJSON,
        postgresql.JSON: EngineJSON,
        postgresql.JSONB: EngineJSONB,
    }

    @classmethod
    def import_dbapi(cls) -> Any:
        """Have all of asyncpg's errors wrapped: SQLAlchemy 2.0 lets those go that asyncpg calls its own."""
        dbapi: Any = super().import_dbapi()  # type: ignore[no-untyped-call]
        dbapi._asyncpg_error_translate.setdefault(  # noqa: SLF001
            asyncpg.InternalClientError, dbapi.InternalError
        )
        return dbapi

    @classmethod
    def engine_created(cls, engine: Any) -> None:
        """Have errors named."""
        event.listen(engine, "handle_error", partial(libpq.name_engines_pgbouncer, _is_elsewhere))

    def connect(self, *args: Any, **options: Any) -> Any:
        """Open a connection, and have it adapted by ours."""
        adapted: Any = super().connect(*args, **options)
        raw, known = adapted.driver_connection, adapted._prepared_statement_cache  # noqa: SLF001
        # isinstance() takes any connection of asyncpg's for any other
        unprepared = known is None or type(raw) is UnpreparedConnection
        statements = None if unprepared else PreparedStatements(raw, known.capacity)
        return EngineConnection(adapted.dbapi, raw, statements)

    def on_connect(self) -> Callable[[Any], Any]:
        """Give what SQLAlchemy does with a new connection."""
        prepare: Callable[[Any], Any] = super().on_connect()  # type: ignore[no-untyped-call]

        def connect(adapted: Any) -> None:
            try:
                prepare(adapted)
            except asyncpg.PostgresError as error:  # no statement of SQLAlchemy's, so no event
                libpq.name_pgbouncer(error)
                raise
            except asyncpg.InterfaceError as error:
                if adapted.driver_connection.is_closed():
                    raise ConnectionResetError(str(error)) from error
                raise

        return connect

    def do_execute(
        self, cursor: Any, statement: str, parameters: Any, context: Any | None = None
    ) -> None:
        """Execute; then forget what the server has forgotten."""
        if not libpq.needs_a_look(statement):
            cursor.execute(statement, parameters)
            return
        if libpq.COMMITS.match(statement) and cursor._connection.is_in_transaction():  # noqa: SLF001
            _commit_by_text(cursor, statement)
            return
        super().do_execute(cursor, statement, parameters, context)
        if libpq.DISCARDS.match(statement):
            cursor._connection.guarded_forget()  # noqa: SLF001

    def do_execute_no_params(self, cursor: Any, statement: str, *rest: Any) -> None:
        """Execute, without."""
        self.do_execute(cursor, statement, (), *rest)

    def do_commit(self, dbapi_connection: Any) -> None:
        """Commit, and read what the server answers."""
        raw: GuardedConnection = plain_connection(dbapi_connection)
        raw.guarded_answer = ""
        super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]
        if raw.guarded_answer == libpq.ROLLED_BACK:
            raise TransactionAborted

    def do_release_savepoint(self, connection: Any, name: str) -> None:
        """Release, or roll back what the server does not release: SQLAlchemy does not."""
        try:
            super().do_release_savepoint(connection, name)  # type: ignore[no-untyped-call]
        except DBAPIError as error:
            if isinstance(DRIVER.original(error), asyncpg.InFailedSQLTransactionError):
                self.do_rollback_to_savepoint(connection, name)  # type: ignore[no-untyped-call]
                raise TransactionAborted from error
            raise

    def do_terminate(self, dbapi_connection: Any) -> None:
        """End at once what the server still owes an answer: asyncpg's farewell waits for that, without a limit."""
        raw: GuardedConnection = plain_connection(dbapi_connection)
        if DRIVER.state(raw) is ConnectionState.BUSY:
            DRIVER.terminate(raw)
        else:
            super().do_terminate(dbapi_connection)

    async def setup_asyncpg_json_codec(self, conn: Any) -> None:
        """Set the codec of JSON, unless ``init`` has set another."""
        await self._set_json_codec(conn.driver_connection, "json")

    async def setup_asyncpg_jsonb_codec(self, conn: Any) -> None:
        """Do so for the other type."""
        await self._set_json_codec(conn.driver_connection, "jsonb")

    async def _set_json_codec(self, raw: GuardedConnection, typename: str) -> None:
        if typename in raw.guarded_codecs:
            return
        prefix = _JSON_PREFIXES[typename]
        loads = self._json_deserializer or json.loads
        await super(GuardedConnection, raw).set_type_codec(
            typename,
            schema="pg_catalog",
            encoder=lambda value: prefix + self._encode_json(value).encode(),
            decoder=lambda data: loads(data[len(prefix) :].decode()),
            format="binary",  # composite types take no other
        )

    def _encode_json(self, value: Any) -> Any:
        """Encode what a column gives; from a text all where a serializer was given, else it is JSON already."""
        serializer: Any = self._json_serializer
        if type(value) is JsonValue:
            return (serializer or json.dumps)(value.value)
        return value if serializer is None else serializer(value)


def _commit_by_text(cursor: Any, statement: str) -> None:
    """Execute what commits; SQLAlchemy's cursor keeps what the server answers to itself.

    Raises:
        TransactionAborted: The server rolls back instead.
    """
    raw: GuardedConnection = cursor._connection  # noqa: SLF001
    try:
        answer = await_only(raw.execute(statement))
    except Exception as error:  # noqa: BLE001 (it is made one of SQLAlchemy's)
        cursor._handle_exception(error)  # noqa: SLF001
    else:
        if answer == libpq.ROLLED_BACK:
            raise TransactionAborted


registry.register("postgresql.loopsafe_asyncpg", __name__, "EngineDialect")


class OpeningLoop(AnyLoop):
    """The loop that runs, for one connection that is being opened: what asyncpg does with TLS becomes what libpq does.

    Who has the root certificates at `root` has servers verified in every mode. And what is refused is closed at once:
    asyncpg would wait for the server's farewell, in a loop that may end first.
    """

    def __init__(self, root: str, tcp: Mapping[str, int]) -> None:
        self._root, self._tcp = root, tcp
        self._opened: list[Any] = []

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        """Connect to the first address of a host that answers."""
        opened = await super().create_connection(*args, **options)
        self._opened.append(opened[0])
        libpq.set_tcp(opened[0].get_extra_info("socket"), self._tcp)
        return opened

    def call_soon(self, callback: Callable[..., object], *args: Any, **options: Any) -> Any:
        """Have TLS begin in whole steps."""
        return asyncio.get_running_loop().call_soon(whole, callback, *args, **options)

    def keep(self, raw: GuardedConnection | None) -> None:
        """End all that was opened, but for what `raw` has now."""
        while self._opened:
            transport = self._opened.pop()
            if raw is None or transport is not raw.guarded_transport:
                transport.abort()

    async def start_tls(
        self,
        transport: Any,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
    ) -> Any:
        """Put TLS on a connection."""
        verify = sslcontext.verify_mode
        if verify == ssl.CERT_NONE:
            self._verify(sslcontext)
        try:
            return PrecedingTls(
                await super().start_tls(
                    transport, protocol, sslcontext, server_hostname=server_hostname
                )
            )
        finally:
            # For the next host: asyncpg asks it whether TLS is a must.
            sslcontext.verify_mode = verify

    def _verify(self, sslcontext: ssl.SSLContext) -> None:
        if os.path.exists(self._root):
            sslcontext.load_verify_locations(self._root)
            sslcontext.verify_mode = ssl.CERT_REQUIRED


class AsyncpgTransaction(BaseTransaction):
    """asyncpg's own, which reads what the server answers to COMMIT, and may be rolled back if that fails."""

    async def commit(self) -> None:
        raw = self._connection
        if raw._top_xact is self:  # noqa: SLF001
            raw._top_xact = None  # noqa: SLF001
        try:
            # by execute(): that is where OpenTelemetry and logfire look
            answer = await raw.execute(
                f"RELEASE SAVEPOINT {self._id}" if self._nested else "COMMIT"
            )
        except asyncpg.InFailedSQLTransactionError as error:
            raise TransactionAborted from error
        if answer == libpq.ROLLED_BACK:
            raise TransactionAborted

    async def rollback(self) -> None:
        raw = self._connection
        if self._nested or raw.is_in_transaction():
            await super().rollback()
        elif raw._top_xact is self:  # noqa: SLF001
            raw._top_xact = None  # noqa: SLF001 (something else has ended it)

    async def renew(self) -> None:
        await self._connection.execute(f"RELEASE SAVEPOINT {self._id}; SAVEPOINT {self._id}")


class AsyncpgCursor:
    """A portal of the server. It goes with its transaction, but keeps tables from being altered in that."""

    def __init__(self, raw: GuardedConnection, cursor: Any) -> None:
        self._raw, self._cursor = raw, cursor

    async def fetch(self, count: int) -> Sequence[Record]:
        return await self._cursor.fetch(count)  # type: ignore[no-any-return]

    async def close(self) -> None:
        self._raw._check_open()  # noqa: SLF001
        if self._raw.is_in_transaction():
            await self._cursor._close_portal(None)  # noqa: SLF001


class AsyncpgCopy:
    """What a COPY gives, as it is asked for. asyncpg hands it to a coroutine function: a task of its own runs that."""

    def __init__(self, raw: GuardedConnection, statement: str) -> None:
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(_PIECES)
        self._copying: asyncio.Task[Any] = asyncio.ensure_future(
            raw._copy_out(statement, self._pieces.put, None)  # noqa: SLF001
        )
        # The end of `asyncio.run` would cancel it, and the transaction fail: who reads it is to end it.
        asyncio.tasks._unregister_task(self._copying)  # noqa: SLF001
        self._copying.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def fetch(self, count: int) -> Sequence[Any]:
        pieces: list[bytes] = []
        while len(pieces) < count and (pieces := [*pieces, *await self._next()]):
            if self._copying.done() and self._pieces.empty():
                break
        return pieces

    async def _next(self) -> list[bytes]:
        """Give a piece; none at the end."""
        if self._pieces.empty():
            waiting = asyncio.ensure_future(self._pieces.get())
            try:
                await asyncio.wait([waiting, self._copying], return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not waiting.done():
                    waiting.cancel()
            if waiting.done() and not waiting.cancelled():
                return [waiting.result()]
            await self._copying
        return [] if self._pieces.empty() else [self._pieces.get_nowait()]

    async def close(self) -> None:
        """Read the rest: what is stopped half-way has failed, and a transaction with it."""
        while not self._copying.done() or not self._pieces.empty():
            await self._next()


class _FirstRow(tuple[Any, ...]):
    """The first row of a COPY: asyncpg asks it for as many values as there are columns."""

    columns = 0

    def __getitem__(self, index: Any) -> Any:
        self.columns = index + 1
        if index >= len(self):
            raise _misfit(1, self, "more")
        return super().__getitem__(index)


class _RowsOfCopy:
    """Gives asyncpg rows, and notes what it does not tell: what has failed in making them, and values without a column.

    Attributes:
        given: How many it has been given.
        failure: What was raised here.
    """

    def __init__(self) -> None:
        self.given = 0
        self.failure: Exception | None = None
        self._first: _FirstRow | None = None

    def of(self, rows: Iterable[Any]) -> Iterator[Any]:
        """Give rows."""
        try:
            for row in rows:
                yield self._next(row)
            self._check_first()
        except Exception as error:
            self.failure = error
            raise

    async def of_async(self, rows: AsyncIterable[Any]) -> AsyncIterator[Any]:
        """Give rows."""
        try:
            async for row in rows:
                yield self._next(row)
            self._check_first()
        except Exception as error:
            self.failure = error
            raise

    def _next(self, row: Sequence[Any]) -> Sequence[Any]:
        self.given += 1
        if self._first is None:
            self._first = _FirstRow(row)
            return self._first
        if self.given == 2:  # asyncpg has read the first
            self._check_first()
        if len(row) != self._first.columns:
            raise _misfit(self.given, row, self._first.columns)
        return row

    def _check_first(self) -> None:
        if self._first is not None and len(self._first) != self._first.columns:
            raise _misfit(1, self._first, self._first.columns)


def _misfit(number: int, row: Sequence[Any], columns: object) -> CopyRowsError:
    return CopyRowsError(
        f"row {number} of a COPY has {len(row)} values, and there are {columns} columns"
    )


class AsyncpgDriver:
    """The fast path: asyncpg's own calls and its cache of prepared statements."""

    traits: DriverTraits = DriverTraits(
        "asyncpg",
        "postgresql+loopsafe_asyncpg",
        loop_bound=sys.platform == "win32",  # its default loop cannot take a socket over
        attaches=True,
        reset_on_return=True,
        settles=True,
        has_ended=_has_ended,
        failure=_meaning,
        farewell=attrgetter("guarded_farewell.said"),
        lent=GuardedConnection.let_loop_keep,
        rested=GuardedConnection.keep,
    )

    def arguments(self, options: DatabaseOptions) -> dict[str, Any]:
        url, query = options.url, libpq.postgresql_query(options, libpq.NAMES)
        _refuse(query)
        hosts, ports = libpq.places(url, query)
        settings = {name: query[name] for name in ("application_name", "options") if name in query}
        size = libpq.statement_cache_size(options)
        return {
            "places": (hosts, ports, query.get("load_balance_hosts")),
            "user": url.username,
            "password": hidden(url.password),
            "database": url.database,
            "ssl": options.ssl_context or query.get("sslmode"),
            "target_session_attrs": query.get("target_session_attrs"),
            "server_settings": settings,
            "files": {name: query[name] for name in libpq.SSL_FILES if name in query},
            "passfile": query.get("passfile"),
            "tcp": libpq.tcp_settings(options),
            "prepares": libpq.prepares(options),
            **({"statement_cache_size": size} if size else {}),
        }

    async def connect(self, options: ConnectOptions) -> GuardedConnection:
        loop = asyncio.get_running_loop()
        if can_move(loop):
            need_readers(loop)
        try:
            keywords = _keywords(**options.arguments)
        except OSError as error:  # a file that is not there
            raise ConnectSettingError(options.target, str(error)) from error
        try:
            raw = await _connect(keywords, options.timeout)
        except asyncpg.ClientConfigurationError as error:  # the same, where none was named
            raise ConnectSettingError(options.target, str(error)) from error
        except _REFUSED as error:
            raise AuthenticationError(options.target, str(error)) from error
        except TimeoutError as error:
            raise ConnectTimeout(
                options.target, f"no answer within {options.timeout:g} s"
            ) from error
        except _FAILED as error:
            libpq.name_pgbouncer(error)
            kind, reason = by_refusal(error), str(error) or repr(error)
            raise kind(options.target, reason, is_temporary=is_temporary(error)) from error
        raw.guarded_plans = options.plans
        raw.guarded_generation = options.plans.generation
        return raw

    async def fetch_all(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> list[Record]:
        try:
            (rows, _, _), _ = await _fetch(raw, sql, args, 0, timeout)
        except _STALE as error:
            await _prepare_anew(raw, error)
            (rows, _, _), _ = await _fetch(raw, sql, args, 0, timeout)
        return rows

    async def fetch_one(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Record | None:
        try:
            (rows, _, _), _ = await _fetch(raw, sql, args, 1, timeout)
        except _STALE as error:
            await _prepare_anew(raw, error)
            (rows, _, _), _ = await _fetch(raw, sql, args, 1, timeout)
        return rows.pop() if rows else None

    async def execute(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Any:
        if not args and self._is_script(sql):
            with _limit(timeout):
                return _affected(await _execute_script(raw, sql, timeout))
        if sql[:4] in _SETS and not args and not raw._query_loggers:  # noqa: SLF001
            # Neither rows nor a plan: the simple protocol costs asyncpg less.
            raw._check_open()  # noqa: SLF001
            answer = raw.guarded_protocol().query(sql, timeout)
            await (answer if timeout is None else _limited(answer, timeout))
            return None
        try:
            return await _execute(raw, sql, args, timeout)
        except _STALE as error:
            await _prepare_anew(raw, error)
        return await _execute(raw, sql, args, timeout)

    async def ask(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Answer:
        try:
            return (await _ask(raw, sql, args, timeout))[0]
        except _STALE as error:
            await _prepare_anew(raw, error)
        return (await _ask(raw, sql, args, timeout))[0]

    async def copy_in(
        self,
        raw: GuardedConnection,
        table: str,
        schema: str | None,
        columns: Sequence[str] | None,
        rows: Any,
    ) -> int:
        noted = _RowsOfCopy()
        given = noted.of_async(rows) if isinstance(rows, AsyncIterable) else noted.of(rows)
        try:
            answer = await raw.copy_records_to_table(
                table, schema_name=schema, columns=columns, records=given
            )
        except asyncpg.QueryCanceledError:
            # What is late in the rows asyncpg takes for its own time limit.
            if isinstance(noted.failure, TimeoutError):
                raise noted.failure from None
            raise
        except (TypeError, ValueError, ArithmeticError) as error:
            if error is noted.failure or isinstance(error, asyncpg.InterfaceError):
                raise
            raise CopyRowsError(f"row {noted.given} of a COPY: {error}") from error
        return _affected(answer) or 0

    async def copy_out(self, raw: GuardedConnection, query: str, options: str) -> AsyncpgCopy:
        raw._check_open()  # noqa: SLF001
        return AsyncpgCopy(raw, f"COPY ({query}) TO STDOUT {options}")

    async def listen(
        self, raw: GuardedConnection, channel: str
    ) -> AsyncIterator[tuple[int, str] | None]:
        heard: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()
        raw.add_termination_listener(lambda _: heard.put_nowait(None))
        await raw.add_listener(
            channel, lambda _, sender, __, payload: heard.put_nowait((sender, payload))
        )
        yield None
        while (told := await heard.get()) is not None:
            yield told

    def pool_mode(self, raw: GuardedConnection) -> str | None:
        return None if raw.is_closed() else getattr(raw.get_settings(), libpq.POOL_MODE, None)

    def _is_script(self, sql: str) -> bool:
        """Tell whether a text without parameters, which is the user's, has several statements: found once for each."""
        return ";" in sql and len(compile_text(sql, self.traits.dialect).statements) > 1

    async def execute_many(
        self, raw: GuardedConnection, sql: str, rows: Sequence[Sequence[Any]], timeout: float | None
    ) -> int | None:
        try:
            with _limit(timeout):
                await raw.executemany(sql, rows, timeout=timeout)
        except _STALE as error:  # it is a transaction: nothing is done
            await _prepare_anew(raw, error)
            with _limit(timeout):
                await raw.executemany(sql, rows, timeout=timeout)
        return None

    async def open_cursor(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any]
    ) -> AsyncpgCursor:
        try:
            return AsyncpgCursor(raw, await raw.cursor(sql, *args, record_class=AsyncpgRecord))
        except _LOST as error:
            await _prepare_anew(raw, error)
            raise

    def transaction(self, raw: GuardedConnection, options: TransactionOptions) -> Any:
        raw._check_open()  # noqa: SLF001
        if options.isolation is not None:
            libpq.isolation(options.isolation)
        return AsyncpgTransaction(raw, options.isolation, options.readonly, options.deferrable)

    def original(self, error: BaseException) -> BaseException:
        found: BaseException = getattr(error, "orig", None) or error
        if type(found).__module__.startswith("sqlalchemy."):
            return found.__cause__ or found
        return found

    def state(self, raw: GuardedConnection) -> ConnectionState:
        protocol = raw.guarded_protocol()  # `_protocol` is a call more
        if protocol is None:  # it is closed
            return ConnectionState.BUSY
        if raw._stmt_exclusive_section._acquired or protocol._is_cancelling():  # noqa: SLF001
            return ConnectionState.BUSY
        # `_top_xact` is set before BEGIN is sent
        if protocol.is_in_transaction() or raw._top_xact is not None:  # noqa: SLF001
            return ConnectionState.IN_TRANSACTION
        return _IDLE

    def is_answer(self, raw: GuardedConnection, error: BaseException) -> bool:
        original = self.original(error)
        return isinstance(original, _ANSWERS) or came_by(original, _MAKE_VALUES)

    async def settle(self, raw: GuardedConnection) -> None:
        transport = raw.guarded_transport
        if transport is not None and transport.get_write_buffer_size():
            # Nobody knows when the rest would be taken, and before that the server does not answer.
            self.terminate(raw)
            return
        with suppress(asyncpg.InFailedSQLTransactionError):
            # Waits for a cancel request under way, as every operation does.
            await raw.execute("SELECT 1")

    async def reset(self, raw: GuardedConnection) -> None:
        raw._top_xact = None  # noqa: SLF001 (asyncpg's mark of a transaction that has begun, or was to)
        if raw.is_in_transaction():
            await raw.execute("ROLLBACK")

    async def remember(self, raw: GuardedConnection) -> None:
        """Do nothing: the server knows."""

    async def reset_session(
        self, raw: GuardedConnection, touched: int, initialise: Callable[[], Awaitable[None]]
    ) -> None:
        query = libpq.reset_query(touched)
        if query is None:
            await raw.close()
            return
        for callbacks in _callbacks(raw):
            callbacks.clear()
        await raw._protocol.query(query, None)  # noqa: SLF001 (execute() would take it for a user's DISCARD)
        await initialise()

    def hand_out(self, raw: GuardedConnection) -> Any:
        return asyncpg.pool.PoolConnectionProxy(_HOLDER, raw)  # what asyncpg's own pool hands out

    def take_back(self, raw: GuardedConnection, handed_out: Any, taken_at: str) -> None:
        raw.guarded_lease += 1
        raw.guarded_forgotten += 1  # what SQLAlchemy has prepared is refused, too: it makes others
        handed_out._detach()  # noqa: SLF001

    def is_closed(self, raw: GuardedConnection) -> bool:
        transport = raw.guarded_transport
        if transport is None:
            return bool(raw.is_closed())
        if not raw._stmt_exclusive_section._acquired:  # noqa: SLF001
            transport.look()
        return transport.closing or raw.guarded_farewell.said is not None

    def is_lost(self, raw: GuardedConnection, since: float) -> bool:
        transport = raw.guarded_socket()
        if transport is None or transport.closing:
            return self.is_closed(raw)
        # A server that was not asked says farewell; or sends what is listened to, under ``reset="never"``.
        return transport.has_news(since) and not raw._listeners  # noqa: SLF001

    async def close(self, raw: GuardedConnection) -> None:
        # asyncpg says farewell, and waits for the server's end: to an idle connection that says nothing new. It is not
        # given the time: until 0.31 it opens a connection when that is over, to cancel what does not run.
        transport, farewell = raw.guarded_transport, None
        if transport is not None and self.state(raw) is _IDLE:
            farewell = asyncio.get_running_loop().call_later(_FAREWELL, transport.abort)
        try:
            await raw.close()
        finally:
            if farewell is not None:
                farewell.cancel()

    def drops_plans(self, raw: GuardedConnection, error: BaseException) -> bool:
        plans = raw.guarded_plans
        if isinstance(error, PgBouncerError):  # see `guarded_prepare`
            return isinstance(error.__cause__, asyncpg.InvalidCachedStatementError)
        outdated = isinstance(error, asyncpg.OutdatedSchemaCacheError)  # found in the answer
        lost = libpq.is_lost(error)
        if isinstance(error, asyncpg.InvalidCachedStatementError):
            plans.shift(error.query)
        elif outdated or libpq.is_of_a_dropped_type(error):
            plans.outdate(str(error))
        elif not lost:
            return False
        raw.guarded_forget(lost=lost)
        return not outdated

    def move(self, raw: GuardedConnection) -> None:
        raw.guarded_owner.move()
        if raw.guarded_transport is not None and raw.guarded_transport.attach():
            # The server says farewell, whose end may still be on its way; if it is only a notice: it is rare.
            self.terminate(raw)

    def detach(self, raw: GuardedConnection) -> None:
        if raw.guarded_transport is not None:
            raw.guarded_transport.detach()

    def terminate(self, raw: GuardedConnection) -> None:
        if not raw.guarded_owner.is_here:
            return
        with suppress(RuntimeError):  # who waits for an answer may do so in a loop that is closed
            raw.terminate()
        if raw.guarded_transport is not None:
            raw.guarded_transport.abort()

    def sockets(self, raw: GuardedConnection) -> Iterable[SocketId]:
        return () if raw.guarded_transport is None else (raw.guarded_transport.socket_id,)


def _refuse(query: Mapping[str, str]) -> None:
    """Refuse what asyncpg cannot do, where it is more than a wish.

    Raises:
        InvalidURLError: It is.
    """
    if query.get("channel_binding") == "require":
        raise InvalidURLError(
            "channel_binding=require: asyncpg has none; use prefer, or postgresql+psycopg"
        )
    encoding = query.get("client_encoding", "utf8")
    if encoding.lower().replace("-", "") not in _UTF8:
        raise InvalidURLError(f"client_encoding must be utf8 with asyncpg, not {encoding!r}")


def _keywords(
    places: tuple[list[str], list[int], str | None],
    files: dict[str, str],
    tcp: dict[str, int],
    *,
    prepares: bool,
    **given: Any,
) -> dict[str, Any]:
    """Give asyncpg's arguments. The files are looked at now: they come and go."""
    hosts, ports = libpq.in_turn(*places)
    own = isinstance(given["ssl"], ssl.SSLContext)  # of the user's, who has said everything by it
    files = {} if own else libpq.tls_files(files, given["ssl"])
    root = files.get("sslrootcert") or os.path.expanduser("~/.postgresql/root.crt")
    if own:
        root = ""
    elif root == "system":
        given["ssl"] = ssl.create_default_context()
        if "sslcert" in files:
            given["ssl"].load_cert_chain(files["sslcert"], files.get("sslkey"))
    elif files:  # asyncpg takes these from a DSN only
        given["dsn"] = f"postgresql://?{urlencode(files)}"
    if not prepares:
        given["statement_cache_size"] = 0
    return {
        **given,
        "host": hosts or None,
        "port": ports or None,
        "loop": OpeningLoop(root, tcp),
        "connection_class": GuardedConnection if prepares else UnpreparedConnection,
    }


async def _connect(keywords: dict[str, Any], timeout: float) -> GuardedConnection:
    raw: GuardedConnection | None = None
    try:
        # Its timers would run in loops that the connection has left.
        keywords["max_cached_statement_lifetime"] = 0
        if (password := keywords["password"]) is not None:  # its SASL takes no subclass of str
            keywords["password"] = lambda: str(password)
        raw = await asyncpg.connect(**keywords, record_class=_DriverRecord, timeout=timeout)
    finally:
        if raw is None or raw.guarded_transport is not None:
            keywords["loop"].keep(raw)
    return raw


@types.coroutine
def _sending(raw: GuardedConnection, work: Awaitable[T]) -> Generator[Any, Any, T]:
    """Await what sends piece by piece; where it is cancelled then, end the connection.

    asyncpg swallows a cancellation there, and waits for an answer to what it has not sent to its end.
    """
    steps: Any = work.__await__()
    go_on, told = steps.send, None
    cancelled: BaseException | None = None
    result: Any = None
    try:
        while True:
            waited = go_on(told)
            if isinstance(told, asyncio.CancelledError):  # else it would have come out
                cancelled = told
                DRIVER.terminate(raw)
            try:
                yield waited
                go_on, told = steps.send, None
            except BaseException as error:  # noqa: BLE001 (asyncpg is told)
                go_on, told = steps.throw, error
    except StopIteration as done:
        result = done.value
    except Exception:
        if cancelled is None:
            raise
    if cancelled is not None:
        raise cancelled
    return result  # type: ignore[no-any-return]


async def _prepare_anew(raw: GuardedConnection, error: Any) -> None:
    """Forget what was prepared, so that a statement can be sent again; if it cannot, raise `error` or what it means."""
    if not DRIVER.drops_plans(raw, error):
        raise error
    if libpq.is_lost(error) and await _is_elsewhere(raw):
        libpq.name_pgbouncer(error)
    if raw.is_in_transaction():
        raise error


async def _is_elsewhere(raw: Any) -> bool:
    """Tell whether another server answers than the one that was connected to, or whether that cannot be asked."""
    if raw.is_in_transaction():
        return True
    backend = await raw.prepare(libpq.BACKEND, name="")
    return bool(await backend.fetchval() != raw.get_server_pid())


async def _execute(raw: Any, sql: str, args: Sequence[Any], timeout: float | None) -> Any:
    (rows, affected, _), statement = await _ask(raw, sql, args, timeout)
    if rows:
        return rows[0][0] if len(rows[0]) else None
    return None if statement._get_attributes() else affected  # noqa: SLF001


async def _ask(
    raw: Any, sql: str, args: Sequence[Any], timeout: float | None
) -> tuple[Answer, Any]:
    """Run a statement; give its answer, and the statement that asyncpg has prepared."""
    # fetch() keeps the status to itself, and execute() the rows: both are wanted.
    with _limit(timeout):
        (rows, status, _), statement = await _run(raw, sql, args, 0, timeout, _DriverRecord)
    answer = (status or b"").decode()
    if answer in libpq.DISCARDED:
        raw.guarded_forget()
    return Answer(rows, _affected(answer)), statement


def _fetch(
    raw: Any, sql: str, args: Sequence[Any], limit: int, timeout: float | None
) -> Awaitable[tuple[tuple[list[Record], bytes | None, bool], Any]]:
    """Do what asyncpg's fetch() and fetchrow() do; 0 is all rows."""
    rows = _run(raw, sql, args, limit, timeout, AsyncpgRecord)
    return rows if timeout is None else _limited(rows, timeout)


async def _limited(rows: Awaitable[T], timeout: float) -> T:
    with _limit(timeout):
        return await rows


async def _run(
    raw: Any,
    sql: str,
    args: Sequence[Any],
    limit: int,
    timeout: float | None,
    record_class: type,
) -> tuple[Any, Any]:
    """Do what asyncpg's _execute() does, in fewer steps where the statement is prepared.

    Returns:
        The rows, what the server says of the statement, and whether that is all; and what was prepared.
    """
    protocol = raw.guarded_protocol()
    result: Any = None
    with raw._stmt_exclusive_section:  # noqa: SLF001
        statement = None if protocol is None else raw.guarded_prepared(sql, record_class)
        if statement is not None:
            try:  # by a protocol that is closed it is refused
                result = await protocol.bind_execute(
                    statement, args, "", limit, _WITH_STATUS, timeout
                )
            except asyncpg.OutdatedSchemaCacheError:
                await raw.reload_schema_state()
                raise
            except asyncpg.InvalidCachedStatementError:
                raw._drop_global_statement_cache()  # noqa: SLF001
                if raw.is_in_transaction():
                    raise
                statement = None
        if statement is None:
            raw._check_open()  # noqa: SLF001
            result, statement = await raw._Connection__execute(  # noqa: SLF001
                sql, args, limit, timeout, return_status=True, record_class=record_class
            )
    rows, status, is_all = result  # one row is popped by who has asked for no more
    if status == _ROLLED_BACK:
        libpq.refuse_rollback(sql)
    return result if limit or not rows else (take_rows(rows), status, is_all), statement


async def _execute_script(raw: GuardedConnection, sql: str, timeout: float | None) -> str:
    """Execute several statements; give the answer to the last one, which is the only one that asyncpg gives."""
    if raw.is_in_transaction():
        commit, rest = libpq.cut_off_commit(sql)
        if commit:
            if await raw.execute(commit, timeout=timeout) == libpq.ROLLED_BACK:
                raise TransactionAborted
            sql = rest
    return await raw.execute(sql, timeout=timeout)  # type: ignore[no-any-return]


class _Holder:
    """What asyncpg before 0.31 tells of a connection that its user has terminated: our pool sees it at the release."""

    def _release_on_close(self) -> None:
        pass


_HOLDER: Any = _Holder()


class _Limit:
    """Names the error of a statement that took too long. Not a generator: each query pays for it."""

    __slots__ = ("_timeout",)

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TimeoutError) and self._timeout is not None:
            raise StatementTimeout(self._timeout) from error


_NO_LIMIT = _Limit(None)


def _limit(timeout: float | None) -> _Limit:
    return _NO_LIMIT if timeout is None else _Limit(timeout)


def _affected(status: str) -> int | None:
    """Read ``INSERT 0 3`` or ``UPDATE 3``; other statements have no count."""
    last = status.rpartition(" ")[2]
    return int(last) if last.isdigit() else None


DRIVER = AsyncpgDriver()
