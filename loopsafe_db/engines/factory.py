"""The ConnectionPool of one handle in this process, with SQLAlchemy's engine on it."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from loopsafe_db.drivers.base import ConnectOptions, Driver
from loopsafe_db.drivers.discovery import find_driver
from loopsafe_db.drivers.url import connect_timeout, describe_target, parse_url
from loopsafe_db.engines.credentials import Credentials
from loopsafe_db.engines.pool import ConnectionPool, SharedQueue
from loopsafe_db.engines.scopes import PER_PROCESS, find_scope
from loopsafe_db.options import DatabaseOptions, PoolLimits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy import URL
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

    from loopsafe_db.options import Options

_ONE_FOR_EVER = PoolLimits(1, idle_timeout=None)  # each connection has a memory of its own


def make_options(url: str | URL, keywords: Options) -> DatabaseOptions:
    """Put a handle's URL and keyword arguments together; None is the default.

    Raises:
        ConfigurationError: A URL or a value cannot be.
    """
    given: dict[str, Any] = {name: value for name, value in keywords.items() if value is not None}
    if unknown := given.keys() - {field.name for field in fields(DatabaseOptions)}:
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
    given["replicas"] = tuple(map(parse_url, given.get("replicas", ())))
    return DatabaseOptions(parse_url(url), **given)


def connect_options(options: DatabaseOptions) -> tuple[Driver, ConnectOptions]:
    """Say how a connection is opened; checks the whole URL and opens nothing.

    Raises:
        ConfigurationError: URL, driver or scope will not do.
    """
    driver = find_driver(options.url.drivername)
    find_scope(options.scope, driver.traits)
    target, timeout = describe_target(options.url), connect_timeout(options)
    return driver, ConnectOptions(driver.arguments(options), target, timeout, _nobody_to_tell)


def make_pool(options: DatabaseOptions) -> ConnectionPool:
    """Make a pool for this process; it opens nothing yet."""
    driver, connecting = connect_options(options)
    scope = find_scope(options.scope, driver.traits)
    if connecting.arguments.get("database") == ":memory:":
        options, scope = replace(options, pool=_ONE_FOR_EVER), PER_PROCESS
    pool = ConnectionPool(driver, options, scope)
    connecting = replace(connecting, on_dropped_plans=pool.renew)
    pool.engine = _make_engine(pool, _opener(pool, connecting))
    queue: Any = pool.engine.sync_engine.pool
    pool.queue = queue
    return pool


def _opener(pool: ConnectionPool, connecting: ConnectOptions) -> Callable[..., Awaitable[Any]]:
    """Give what opens a connection of the pool, in SQLAlchemy's greenlet."""
    password = pool.options.password
    credentials = None if password is None else Credentials(password, connecting)

    async def connect(password: str) -> Any:
        arguments = {**connecting.arguments, "password": password}
        return await pool.driver.connect(replace(connecting, arguments=arguments))

    async def open_connection() -> Any:
        if credentials is None:
            raw = await pool.driver.connect(connecting)
        else:
            raw = await credentials.use(connect)
        pool.opened(raw)
        return raw

    def opener(*_: Any, **__: Any) -> Awaitable[Any]:
        if not in_greenlet():  # before a coroutine is made that nobody would await
            raise MissingGreenlet("a new connection needs SQLAlchemy's greenlet")
        return open_connection()

    return opener


def _make_engine(pool: ConnectionPool, opener: Callable[..., Awaitable[Any]]) -> AsyncEngine:
    """Make SQLAlchemy's engine on the pool's connections."""
    traits = pool.driver.traits
    url = pool.options.url.set(drivername=traits.dialect)

    def adapted(*_: Any, **__: Any) -> Any:
        raw = await_only(opener())
        raw.dialect = pool.engine.dialect
        return raw

    opening: dict[str, Any] = {"async_creator": opener}
    if traits.adapted:
        url = url.difference_update_query(["connect_timeout"])  # ours; the rest is the dialect's
        opening = {"creator": adapted}
    else:
        url = url.set(query={})
    engine = create_async_engine(
        url,
        **opening,
        poolclass=SharedQueue,
        lender=pool,
        pool_reset_on_return="rollback" if traits.reset_on_return else None,
    )
    event.listen(engine.sync_engine, "handle_error", partial(_look_for_dropped_plans, pool))
    return engine


def _look_for_dropped_plans(pool: ConnectionPool, context: ExceptionContext) -> None:
    """Hear of every error that SQLAlchemy meets on the pool's connections."""
    if context.connection is not None and not context.connection.closed:
        fairy: Any = context.connection.connection
        pool.drops_plans(fairy._connection_record, context.original_exception)  # noqa: SLF001


def _nobody_to_tell() -> None:
    """Be told of dropped plans, where nothing is connected yet."""
