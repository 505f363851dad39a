"""Async database access that is right in every event loop, thread and forked process.

::

    from loopsafe_db import get_database

    async def main():
        print(await get_database().fetch_val("SELECT 1"))
"""

from typing import TYPE_CHECKING

try:
    from loopsafe_db._runtime.keys import LoopKey
except ImportError as _error:
    if "subinterpreter" not in str(_error):
        raise
    raise ImportError(
        f"loopsafe_db cannot be imported in a subinterpreter, for SQLAlchemy cannot: {_error}\n"
        "HINT: use threads or processes, which one handle serves; asyncpg alone works in one"
    ) from _error
from loopsafe_db.async_engine import async_engine_from_config, create_async_engine
from loopsafe_db.connection import Connection
from loopsafe_db.database import Database
from loopsafe_db.default import configure, get_database
from loopsafe_db.drivers.discovery import register_driver
from loopsafe_db.engines.observing import Statement, on_statement
from loopsafe_db.engines.stats import PoolStats
from loopsafe_db.errors import (
    ConfigurationError,
    DriverError,
    LoopsafeError,
    MisuseError,
    PoolError,
)
from loopsafe_db.listening import Gap, Notification
from loopsafe_db.local import LoopLocal
from loopsafe_db.options import PoolLimits, Timeouts, Token
from loopsafe_db.records import Record
from loopsafe_db.snapshot import ProcessSnapshot, snapshot
from loopsafe_db.transaction import Transaction
from loopsafe_db.url import DatabaseURL

__all__ = [
    "ConfigurationError",
    "Connection",
    "Database",
    "DatabaseURL",
    "DriverError",
    "Gap",
    "LoopKey",
    "LoopLocal",
    "LoopsafeError",
    "MisuseError",
    "Notification",
    "PoolError",
    "PoolLimits",
    "PoolStats",
    "ProcessSnapshot",
    "Record",
    "Statement",
    "Timeouts",
    "Token",
    "Transaction",
    "async_engine_from_config",
    "configure",
    "create_async_engine",
    "get_database",
    "on_statement",
    "register_driver",
    "snapshot",
]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Look the version up when it is asked for: importing the library does not pay for it."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("loopsafe-db")
