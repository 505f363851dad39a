"""Driver name -> Driver; a driver's module is imported when a URL first asks for it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from loopsafe_db.errors import MissingDriverError, UnknownDriverError

if TYPE_CHECKING:
    from loopsafe_db.drivers.base import Driver


@dataclass(frozen=True, slots=True)
class _Known:
    module: str
    package: str
    extra: str


_KNOWN = {
    "asyncpg": _Known("loopsafe_db.drivers.asyncpg", "asyncpg", "asyncpg"),
    "aiosqlite": _Known("loopsafe_db.drivers.aiosqlite", "aiosqlite", "sqlite"),
}
_DEFAULTS = {"postgresql": "asyncpg", "sqlite": "aiosqlite"}


def find_driver(drivername: str) -> Driver:
    """Give the driver for ``dialect`` or ``dialect+driver``.

    Raises:
        UnknownDriverError: There is none of that name.
        MissingDriverError: Its package is not installed.
    """
    dialect, _, name = drivername.partition("+")
    known = _KNOWN.get(name or _DEFAULTS.get(dialect, ""))
    if known is None or dialect not in _DEFAULTS:
        raise UnknownDriverError(
            drivername, sorted(_DEFAULTS) + [f"{d}+{n}" for d, n in _DEFAULTS.items()]
        )
    try:
        driver = cast("Driver", importlib.import_module(known.module).DRIVER)
    except ModuleNotFoundError as error:
        if error.name != known.package:
            raise
        raise MissingDriverError(name or _DEFAULTS[dialect], known.package, known.extra) from error
    if driver.traits.dialect.partition("+")[0] != dialect:
        raise UnknownDriverError(drivername, [driver.traits.dialect])
    return driver
