"""What a server's codes mean, over all drivers."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from loopsafe_db.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLost,
    ConnectSettingError,
    DeadlockDetected,
    LockTimeout,
    ReadOnlyError,
    SerializationFailure,
    TooManyConnections,
)

if TYPE_CHECKING:
    from loopsafe_db.errors import DriverError

_BY_SQLSTATE: dict[str, type[DriverError]] = {
    **dict.fromkeys(("08000", "08001", "08003", "08004", "08006", "08007"), ConnectionLost),
    # ended by the administrator, a crash, a start, DROP DATABASE, and the time-outs of idle sessions and transactions
    **dict.fromkeys(
        ("57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"), ConnectionLost
    ),
    "40001": SerializationFailure,
    "40P01": DeadlockDetected,
    "55P03": LockTimeout,
    "25006": ReadOnlyError,
}
_BY_MYSQL_CODE: dict[object, type[DriverError]] = {
    # not connected, gone away, lost, ended by KILL, a shutdown, for being idle
    **dict.fromkeys((0, 2006, 2013, 2055, 1927, 1053, 4031), ConnectionLost),
    1020: SerializationFailure,  # MariaDB: another transaction has changed the row since
    1213: DeadlockDetected,
    1205: LockTimeout,
    3572: LockTimeout,  # NOWAIT
    1290: ReadOnlyError,  # --read-only
    1792: ReadOnlyError,
    1836: ReadOnlyError,
}
_BY_SQLITE_CODE: dict[int, type[DriverError]] = {5: LockTimeout, 6: LockTimeout, 8: ReadOnlyError}


_BY_REFUSAL: dict[str, type[ConnectError]] = {
    "53300": TooManyConnections,
    "42501": AuthenticationError,  # the user may not come to this database, or not with this setting
    # a setting that there is not, or not with this value, or not at the start; or `options` cannot be read
    **dict.fromkeys(("42704", "22023", "55P02", "42601"), ConnectSettingError),
}
_TEMPORARY = ("57P03", "53300")  # it starts, stops or recovers; it is full


def is_temporary(error: BaseException) -> bool:
    """Tell whether a server refuses all that come, for now."""
    return (
        isinstance(error, ConnectionRefusedError)
        or getattr(error, "errno", None) == errno.ECONNREFUSED
        or getattr(error, "sqlstate", None) in _TEMPORARY
    )


def by_refusal(error: BaseException) -> type[ConnectError]:
    """Tell what a server's SQLSTATE means while a connection is opened."""
    return _BY_REFUSAL.get(getattr(error, "sqlstate", None) or "", ConnectError)


def came_by(error: BaseException, functions: tuple[str, ...]) -> bool:
    """Tell whether an error was raised in a function, or below it; by the ends of qualified names."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_qualname.endswith(functions):
            return True
        trace = trace.tb_next
    return False


def by_sqlstate(error: BaseException) -> type[DriverError] | None:
    """Tell what an error of the server means, by its SQLSTATE."""
    return _BY_SQLSTATE.get(getattr(error, "sqlstate", None) or "")


def by_mysql_code(error: BaseException) -> type[DriverError] | None:
    """Tell it by the number that drivers for MySQL and MariaDB give first; else by SQLSTATE."""
    code = error.args[0] if error.args else None
    return (_BY_MYSQL_CODE.get(code) if isinstance(code, int) else None) or by_sqlstate(error)


def by_sqlite_code(error: BaseException) -> type[DriverError] | None:
    """Tell it by SQLite's primary result code."""
    return _BY_SQLITE_CODE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
