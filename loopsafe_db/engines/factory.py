"""SQLAlchemy's engine for one handle, and the ConnectionPool that it uses in this process."""

from __future__ import annotations

import asyncio
import re
from dataclasses import fields, replace
from difflib import get_close_matches
from ssl import SSLContext
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, event
from sqlalchemy.exc import ArgumentError, MissingGreenlet
from sqlalchemy.ext import asyncio as extension
from sqlalchemy.ext.asyncio import session
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from loopsafe_db.drivers.base import ConnectOptions, Driver, Plans
from loopsafe_db.drivers.discovery import find_driver
from loopsafe_db.drivers.session_state import touched_by_sql
from loopsafe_db.drivers.url import (
    connect_timeout,
    describe_target,
    dialect_url,
    is_memory,
    is_memory_for_dialect,
    parse_url,
    refuse_control_characters,
)
from loopsafe_db.engines.clauses import forget_long_clauses
from loopsafe_db.engines.compiled_clause import Clauses
from loopsafe_db.engines.connecting import connect
from loopsafe_db.engines.credentials import Credentials
from loopsafe_db.engines.entry import PoolEntry, Proxy
from loopsafe_db.engines.failing import named, tell_of_opening
from loopsafe_db.engines.fork_locks import guard_locks
from loopsafe_db.engines.greenlets import mend_greenlets
from loopsafe_db.engines.listeners import listeners_of
from loopsafe_db.engines.pinning import PinnedQueue, pin
from loopsafe_db.engines.pool import ConnectionPool, SharedQueue, refuse_others
from loopsafe_db.engines.returning import end_in_time, mark_doubt
from loopsafe_db.engines.scopes import PER_PROCESS, find_scope
from loopsafe_db.engines.scripts import hear_scripts
from loopsafe_db.engines.statement_timeout import TIMED, limit_statements, limit_transactions
from loopsafe_db.errors import ConnectTimeout, InvalidSettingError
from loopsafe_db.options import (
    DRIVER_NAMES,
    HANDLE_NAMES,
    SECONDS,
    DatabaseOptions,
    Options,
    PoolLimits,
    limits,
    nearest,
)
from loopsafe_db.url import hidden

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sqlalchemy.engine import Connection, Engine, ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

    from loopsafe_db.errors import DriverError

_ONE_FOR_EVER = PoolLimits(
    1, idle_timeout=None
)  # what only one connection has would be lost with it

# How SQLAlchemy and psycopg_pool call what we have under another name, or not at all.
_ELSEWHERE = {
    "max_connections": "pool=PoolLimits(max_connections=...) or max_size",
    "max_idle": "pool=PoolLimits(idle_timeout=...)",
    "max_waiting": "pool=PoolLimits(max_waiting=...)",
    "max_overflow": "pool=PoolLimits(max_connections=...) or max_size, which nothing exceeds",
    "pool_pre_ping": "pool=PoolLimits(pre_ping=True)",
    "pool_recycle": "pool=PoolLimits(recycle=...)",
    "pool_size": "pool=PoolLimits(max_connections=...) or max_size",
    "pool_timeout": "timeouts=Timeouts(acquire=...)",
}

# What `create_async_engine` takes beside our own options and has to be spelt.
_OF_SQLALCHEMY = (
    *("pool_size", "max_overflow", "pool_timeout", "pool_recycle", "pool_pre_ping", "poolclass"),
    *("connect_args", "echo", "isolation_level", "execution_options", "hide_parameters"),
    *("json_serializer", "json_deserializer", "logging_name", "query_cache_size"),
)
_REFUSED = re.compile(r"'(\w+)'(?=.* sent to )")  # in what SQLAlchemy says


class UnknownOptionError(InvalidSettingError, TypeError):
    """An option that there is not: a `TypeError`, too, as for any other function of Python."""


def make_options(url: str | URL, keywords: Options) -> DatabaseOptions:
    """Put a handle's URL and keyword arguments together; None is the default.

    Raises:
        ConfigurationError: A URL, an option or a value cannot be.
    """
    url = hidden(url)
    _hide_replicas(keywords)
    given: dict[str, Any] = {name: value for name, value in keywords.items() if value is not None}
    if unknown := given.keys() - Options.__optional_keys__:
        told = [
            f"{name} ({nearest(name, Options.__optional_keys__, _ELSEWHERE)})"
            for name in sorted(unknown)
        ]
        raise UnknownOptionError(f"no such option: {', '.join(told)}")
    parsed = parse_url(url)
    pool, timeouts = limits(parsed, given)
    context = given.pop("ssl") if isinstance(given.get("ssl"), SSLContext) else None
    connecting = _connecting(parsed, given)
    named = {field.name for field in fields(DatabaseOptions)}
    return DatabaseOptions(
        parsed,
        **{
            **{name: value for name, value in given.items() if name in named},
            "pool": pool,
            "timeouts": timeouts,
            "replicas": tuple(map(parse_url, given.get("replicas", ()))),
            "ssl_context": context,
            "connecting": connecting,
            "keywords": {
                name: value for name, value in keywords.items() if name != "force_rollback"
            },
        },
    )


def _hide_replicas(keywords: Any) -> None:
    """Have their passwords be masked in all tracebacks that show these keywords."""
    if isinstance(keywords.get("replicas"), list | tuple):
        kind = type(keywords["replicas"])
        keywords["replicas"] = kind(map(hidden, keywords["replicas"]))


def _connecting(url: URL, given: dict[str, Any]) -> dict[str, str]:
    """Give the keywords for the driver as the URL's query would have them."""
    connecting = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name in DRIVER_NAMES
        if (value := given.get(name)) is not None
    }
    if "timeout" in connecting and url.get_backend_name() != "sqlite":
        SECONDS.read("timeout", given["timeout"], InvalidSettingError)
        connecting["connect_timeout"] = connecting.pop("timeout")
    return connecting


def connect_options(options: DatabaseOptions) -> tuple[Driver, ConnectOptions]:
    """Say how a connection is opened; checks the whole URL and opens nothing.

    Raises:
        ConfigurationError: URL, driver or scope will not do.
    """
    refuse_control_characters(options)
    driver = find_driver(options.url.drivername)
    if options.force_rollback and driver.traits.unbound is not None:
        driver = driver.traits.unbound()
    find_scope(options.scope, driver.traits)
    target, timeout = describe_target(options.url), connect_timeout(options)
    return driver, ConnectOptions(driver.arguments(options), target, timeout, Plans())


def make_pool(options: DatabaseOptions, engine: AsyncEngine) -> ConnectionPool:
    """Make a pool for this process, which SQLAlchemy's engine uses here; it opens nothing yet."""
    driver, connecting = connect_options(options)
    scope = find_scope(options.scope, driver.traits)
    only_one = options.force_rollback or _is_memory(connecting.arguments)
    if only_one:
        options = replace(options, pool=_ONE_FOR_EVER)
        scope = scope if driver.traits.loop_bound else PER_PROCESS
    pool = ConnectionPool(driver, options, scope, engine)
    pool.only_one = only_one
    pool.open_connection = _opener(pool, connecting)
    return pool


def _is_memory(arguments: Mapping[str, Any]) -> bool:
    """Tell whether the database ends with its connection."""
    url = arguments.get("url")  # where SQLAlchemy's dialect opens it
    if isinstance(url, URL):
        return is_memory_for_dialect(url)
    return is_memory(str(arguments.get("database")))


def _opener(
    pool: ConnectionPool, connecting: ConnectOptions
) -> Callable[[Mapping[str, Any]], Awaitable[Any]]:
    """Give what opens a connection of the pool: with what a listener of SQLAlchemy's ``do_connect`` wants otherwise."""
    password = pool.options.password
    credentials = None if password is None else Credentials(password, connecting)

    async def open_connection(changes: Mapping[str, Any]) -> Any:
        async def connect_with(password: str) -> Any:
            given = {"password": password, **changes}
            return await connect(pool.driver, _changed(connecting, given), pool.outage)

        if credentials is None:
            raw = await connect(pool.driver, _changed(connecting, changes), pool.outage)
        else:
            raw = await credentials.use(connect_with)
        pool.opened(raw)
        await _initialise(pool, raw, connecting)
        return raw

    return open_connection


def _changed(connecting: ConnectOptions, changes: Mapping[str, Any]) -> ConnectOptions:
    """Give other arguments for connecting.

    Raises:
        InvalidSettingError: The driver knows none of that name.
    """
    arguments = dict(connecting.arguments)
    known = arguments.keys() | {"context"}
    if "connect_args" in arguments:  # a dialect of SQLAlchemy connects
        others = {name: changes[name] for name in changes if name not in known}
        arguments["connect_args"] = {**arguments["connect_args"], **others}
    elif unknown := changes.keys() - known:
        raise InvalidSettingError(
            f"a do_connect listener has set {', '.join(sorted(unknown))}, which is not possible here; "
            f"known: {', '.join(sorted(arguments))}"
        )
    arguments.update((name, changes[name]) for name in changes if name in known)
    return replace(connecting, arguments=arguments)


async def _initialise(pool: ConnectionPool, raw: Any, connecting: ConnectOptions) -> None:
    try:
        await pool.initialise(raw)
        await pool.driver.remember(raw)
        try:
            async with asyncio.timeout(connecting.timeout):
                await pool.first.turn()
        except TimeoutError as error:
            what = "the server has not answered the first connection"
            raise ConnectTimeout(connecting.target, what) from error
    except BaseException:
        pool.has_opened(raw)  # so nobody else will ask
        pool.driver.terminate(raw)
        pool.counts.terminated += 1
        raise


def make_engine(options: DatabaseOptions, find_pool: Callable[[], ConnectionPool]) -> AsyncEngine:
    """Make SQLAlchemy's engine on the connections of whichever process uses it."""
    guard_locks()
    mend_greenlets()
    driver, _ = connect_options(options)
    traits = driver.traits
    url = dialect_url(options)
    # The pool has the password; here it would stand in frames of SQLAlchemy's.
    url = url.set(drivername=traits.dialect)._replace(password=None)
    if not traits.adapted:
        url = url.set(query={})
    resets = traits.reset_on_return and not options.force_rollback
    said = {**options.engine, **_json_functions(options)}
    if options.force_rollback and traits.autocommit:
        said["isolation_level"] = "AUTOCOMMIT"
    engine = _create(
        url,
        poolclass=PinnedQueue if options.force_rollback else SharedQueue,
        find_pool=find_pool,
        pool_reset_on_return="rollback" if resets else None,
        **said,
    )
    _connect_by(engine.sync_engine, find_pool, is_adapted=traits.adapted)
    engine.sync_engine.url = _shown_url(options, driver)
    forget_long_clauses(engine.sync_engine)
    if traits.adapted:
        hear_scripts(engine.sync_engine.dialect)
    if options.force_rollback:
        pin(engine, lambda: find_pool().pinned, commits_itself=traits.autocommit)
    else:
        mark_doubt(engine.sync_engine.dialect)
        end_in_time(engine.sync_engine.dialect, driver)
    _listen(engine.sync_engine, options)
    queue: Any = engine.sync_engine.pool
    queue.own_listeners = listeners_of(engine)
    queue.clauses = Clauses(engine.sync_engine) if hasattr(driver, "ask") else None
    return engine


def _connect_by(
    engine: Engine, find_pool: Callable[[], ConnectionPool], *, is_adapted: bool
) -> None:
    """Have a pool open the connections of an engine, whose ``do_connect`` listeners may say with what."""
    dialect: Any = engine.dialect
    before: Mapping[str, Any] = dialect.create_connect_args(engine.url)[1]
    of_dialect = dialect.connect

    def connect(*_: Any, **said: Any) -> Any:
        if not in_greenlet():  # before a coroutine is made that nobody would await
            raise MissingGreenlet("a new connection needs SQLAlchemy's greenlet")
        changes = {
            name: value
            for name, value in said.items()
            if name == "context" or name not in before or before[name] != value
        }
        open_connection = find_pool().open_connection
        if is_adapted:
            raw = await_only(open_connection(changes))
            raw.dialect = dialect
            return raw
        return of_dialect(async_creator_fn=lambda *_, **__: open_connection(changes))

    dialect.connect = connect
    dialect.initialize = _noting_end(dialect.initialize)


def _noting_end(initialize: Callable[[Connection], None]) -> Callable[[Connection], None]:
    """Have it told if the connection ends while SQLAlchemy asks what it asks first of all."""

    def call(connection: Connection) -> None:
        entry: Any = connection.connection._connection_record  # noqa: SLF001
        try:
            initialize(connection)
        except Exception as error:
            tell_of_opening(entry, error)
            raise

    return call


def _listen(engine: Engine, options: DatabaseOptions) -> None:
    event.listen(engine.pool, "connect", refuse_others, insert=True)
    if options.force_rollback:  # else `mark_doubt` sees to it
        event.listen(engine, "before_cursor_execute", _Touching(engine.dialect.name))
    event.listen(engine, "handle_error", _hear_of_error)
    if (limit := options.timeouts.statement) is not None:
        limit_statements(engine, options.url, limit)
        if not options.force_rollback:
            limit_transactions(engine.dialect, options.url, limit)


def _create(url: URL, **options: Any) -> AsyncEngine:
    """Have SQLAlchemy make an engine.

    Raises:
        InvalidSettingError: SQLAlchemy does not take an option.
    """
    try:
        return extension.create_async_engine(url, **options)  # whoever has wrapped it
    except (TypeError, ArgumentError) as error:
        reason = str(error).partition(", using configuration")[0]
        known = {*Options.__optional_keys__, *_OF_SQLALCHEMY}
        told = [
            f"; {name}: {nearest(name, known, {})}"
            for name in _REFUSED.findall(reason)
            if get_close_matches(name, known, n=1, cutoff=0.7)
        ]
        raise InvalidSettingError(
            f"create_async_engine: SQLAlchemy says: {reason}{''.join(told)}"
        ) from error


def _shown_url(options: DatabaseOptions, driver: Driver) -> URL:
    """Give the URL by which another engine is made: the user's, with the driver, and without what is the handle's."""
    url = URL._make(options.url).difference_update_query(HANDLE_NAMES)
    name, _, package = url.drivername.partition("+")
    return url if package else url.set(drivername=f"{name}+{driver.traits.name}")


def _json_functions(options: DatabaseOptions) -> dict[str, Any]:
    """Give those that were given: not every dialect takes them."""
    functions = {name: getattr(options, name) for name in ("json_serializer", "json_deserializer")}
    return {name: function for name, function in functions.items() if function is not None}


class _Touching:
    """Looks at each statement that SQLAlchemy sends: what it may change of the session is undone at the release."""

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect

    def __call__(self, connection: Connection, _: object, statement: str, *__: object) -> None:
        if touched := touched_by_sql(statement, self._dialect):
            record: Any = connection.connection._connection_record  # noqa: SLF001
            record.touch(touched)


def _hear_of_error(context: ExceptionContext) -> DriverError | None:
    """Hear of every error that SQLAlchemy meets on connections of ours; give what it means, if it is of ours."""
    if context.connection is None or context.connection.closed:
        return None
    fairy: Any = context.connection.connection
    entry, error = fairy._connection_record, context.original_exception  # noqa: SLF001
    if isinstance(entry, PoolEntry) and entry.is_being_opened:
        return None  # who opens it says what that means
    pool: ConnectionPool = entry.lender
    if not isinstance(error, asyncio.CancelledError):
        pool.drops_plans(entry, error)
        entry.suspect = pool.refuses_writes(error)
        if isinstance(entry, PoolEntry) and not pool.returning.survives(entry, error):
            context.is_disconnect, context.invalidate_pool_on_disconnect = True, False
        return _meaning(pool, entry if isinstance(entry, PoolEntry) else None, context)
    elif isinstance(fairy, Proxy) and pool.driver.traits.settles and _ends_in_order(context):
        entry.in_doubt, entry.interrupted, context.is_disconnect = False, True, False
    return None


def _meaning(
    pool: ConnectionPool, entry: PoolEntry | None, context: ExceptionContext
) -> DriverError | None:
    """Give the error that a session, or another user of the engine, gets: of SQLAlchemy's class, too."""
    commits = False
    if entry is not None:
        commits, entry.commits = entry.commits, False
    error, connection = context.sqlalchemy_exception, context.connection
    if error is None or connection is None or _is_ours(context):
        return None
    # Of ours, sessions have the connection in a transaction only.
    joins = isinstance(connection.connection, Proxy)
    undone = joins or not connection._is_autocommit_isolation()  # noqa: SLF001
    return named(pool, entry, error, context.statement, undone=undone, commits=commits)


def _ends_in_order(context: ExceptionContext) -> bool:
    """Tell whether what was cancelled is over before the transaction around it ends: a clause, or a session of today.

    In older versions of SQLAlchemy a session that AnyIO cancels goes on with its rollback after its block.
    """
    return _is_ours(context) or hasattr(session, "_run_to_completion")


def _is_ours(context: ExceptionContext) -> bool:
    """Tell whether it is a clause of a `Connection`, which looks after its errors itself."""
    execution = context.execution_context
    return execution is not None and TIMED.keys() <= execution.execution_options.keys()
