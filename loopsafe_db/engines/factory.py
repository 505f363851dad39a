"""One ConnectionPool, with its AsyncEngine, for one loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util.concurrency import in_greenlet

from loopsafe_db._runtime.registry import current_state
from loopsafe_db.drivers.base import ConnectOptions, Driver
from loopsafe_db.drivers.discovery import find_driver
from loopsafe_db.engines.pool import ConnectionPool
from loopsafe_db.engines.url import (
    aiosqlite_arguments,
    asyncpg_arguments,
    connect_timeout,
    describe_target,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from loopsafe_db.engines.options import DatabaseOptions

_ARGUMENTS = {"asyncpg": asyncpg_arguments, "aiosqlite": aiosqlite_arguments}


def connect_options(options: DatabaseOptions) -> tuple[Driver, ConnectOptions]:
    """Say how a connection is opened; checks the whole URL and opens nothing.

    Raises:
        ConfigurationError: URL or driver will not do.
    """
    driver = find_driver(options.url.drivername)
    arguments = _ARGUMENTS[driver.traits.name](options)
    return driver, ConnectOptions(arguments, describe_target(options.url), connect_timeout(options))


def make_pool(options: DatabaseOptions) -> ConnectionPool:
    """Make the pool of the running loop; it opens nothing yet."""
    driver, connecting = connect_options(options)
    pool = ConnectionPool(current_state("a connection pool").key, driver, options)

    async def open_connection() -> Any:
        raw = await driver.connect(connecting)
        pool.opened(raw)
        return raw

    def creator(*_: Any, **__: Any) -> Awaitable[Any]:
        if not in_greenlet():  # before a coroutine is made that nobody would await
            raise MissingGreenlet("a new connection needs SQLAlchemy's greenlet")
        return open_connection()

    in_memory = driver.traits.name == "aiosqlite" and connecting.arguments["database"] == ":memory:"
    recycle = options.pool.recycle
    pool.engine = create_async_engine(
        options.url.set(drivername=driver.traits.dialect, query={}),
        async_creator=creator,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1 if in_memory else options.pool.size,  # each connection has a memory of its own
        max_overflow=0,
        pool_timeout=options.timeouts.acquire,
        pool_recycle=-1 if recycle is None else recycle,
        pool_use_lifo=True,
        pool_reset_on_return="rollback" if driver.traits.reset_on_return else None,
    )
    return pool
