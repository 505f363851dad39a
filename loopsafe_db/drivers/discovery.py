"""Driver name -> Driver: ours, else registered, else an entry point, else generic.

Each is imported when a URL first asks for it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.exc import NoSuchModuleError

from loopsafe_db.drivers.base import Driver, DriverTraits
from loopsafe_db.errors import MissingDriverError, MisuseError, UnknownDriverError

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = "loopsafe_db.drivers"


@dataclass(frozen=True, slots=True)
class _Known:
    dialect: str
    module: str
    package: str
    extra: str


_KNOWN = {
    "asyncpg": _Known("postgresql", "loopsafe_db.drivers.asyncpg", "asyncpg", ""),
    "psycopg": _Known("postgresql", "loopsafe_db.drivers.psycopg", "psycopg", "psycopg"),
    "aiosqlite": _Known("sqlite", "loopsafe_db.drivers.aiosqlite", "aiosqlite", "sqlite"),
}
_ALIASES = {"psycopg_async": "psycopg"}  # how SQLAlchemy calls its async dialect
_DEFAULTS = {"postgresql": "asyncpg", "sqlite": "aiosqlite"}
_GENERIC_DEFAULTS = {"mysql": "aiomysql", "mariadb": "aiomysql"}
_METHODS = tuple(name for name in vars(Driver) if not name.startswith("_") and name != "traits")
_registered: dict[str, Driver | Callable[[], Driver]] = {}
_loaded: dict[str, Driver] = {}  # from factories and entry points
_generic: dict[str, Driver] = {}


def register_driver(name: str, driver: Driver | Callable[[], Driver]) -> None:
    """Have URLs of that name use a driver, in this process; a child that is not forked has to be told again.

    A package does better with an entry point of the group ``loopsafe_db.drivers``: every process finds it.

    Args:
        name: As in the URL: ``dialect+driver``, or ``dialect`` alone.
        driver: The driver, or what makes it when a URL first asks for it. In place of one registered before.

    Raises:
        MisuseError: It is no `Driver`, or the name is one of ours.
    """
    if _find_ours(name) is not None:
        raise MisuseError(f"{name!r} is a driver of loopsafe_db itself, and stays so")
    if not _is_factory(driver):
        _checked(driver, f"what is registered as {name!r}")
    _registered[name] = driver
    _loaded.pop(name, None)


def find_driver(drivername: str) -> Driver:
    """Give the driver for ``dialect`` or ``dialect+driver``.

    Raises:
        UnknownDriverError: There is none of that name, or it is not async.
        MissingDriverError: Its package is not installed.
        MisuseError: What somebody provides under that name is no `Driver`.
    """
    if (known := _find_ours(drivername)) is not None:
        return _import(drivername, known)
    found = _loaded.get(drivername) or _find_others(drivername)
    if found is not None:
        _loaded[drivername] = found
        return found
    if drivername in _GENERIC_DEFAULTS:
        drivername = f"{drivername}+{_GENERIC_DEFAULTS[drivername]}"
    if "+" not in drivername:  # SQLAlchemy's default is a sync one, or another in each version
        raise UnknownDriverError(drivername, _names())
    if drivername not in _generic:
        _generic[drivername] = _make_generic(drivername)
    return _generic[drivername]


def known_name(drivername: str) -> str:
    """Give the name of one of our own drivers; "" for another."""
    known = _find_ours(drivername)
    return "" if known is None else known.package


def _find_ours(drivername: str) -> _Known | None:
    dialect, _, name = drivername.partition("+")
    known = _KNOWN.get(_ALIASES.get(name, name) or _DEFAULTS.get(dialect, ""))
    return known if known is not None and known.dialect == dialect else None


def _import(drivername: str, known: _Known) -> Driver:
    try:
        return cast("Driver", importlib.import_module(known.module).DRIVER)
    except ModuleNotFoundError as error:
        if error.name != known.package:
            raise
        name = drivername.partition("+")[2] or known.package
        raise MissingDriverError(name, known.package, known.extra) from None


def _find_others(drivername: str) -> Driver | None:
    """Give what is registered, or what an installed package provides."""
    if (driver := _registered.get(drivername)) is not None:
        return _checked(driver, f"what is registered as {drivername!r}")
    for entry_point in entry_points(group=GROUP, name=drivername):
        source = f"the entry point {drivername} = {entry_point.value}"
        return _checked(entry_point.load(), source)
    return None


def _make_generic(drivername: str) -> Driver:
    from loopsafe_db.drivers.generic import GenericDriver, SyncDialectError

    try:
        return GenericDriver(drivername)
    except NoSuchModuleError:
        raise UnknownDriverError(drivername, _names()) from None
    except SyncDialectError:
        reason = f"SQLAlchemy's {drivername!r} is not async"
        dialect = drivername.partition("+")[0]
        names = [name for name in _names() if name.partition("+")[0] == dialect]
        raise UnknownDriverError(drivername, names or _names(), reason) from None
    except ModuleNotFoundError as error:
        name = drivername.partition("+")[2] or drivername
        extra = "mysql" if error.name in ("aiomysql", "pymysql") else ""
        raise MissingDriverError(name, error.name or name, extra) from None


def _names() -> list[str]:
    ours = [f"{found.dialect}+{driver}" for driver, found in _KNOWN.items()]
    others = {*_registered, *(entry_point.name for entry_point in entry_points(group=GROUP))}
    generic = [f"{dialect}+{driver}" for dialect, driver in _GENERIC_DEFAULTS.items()]
    rest = "any other async dialect of SQLAlchemy"
    return [*_DEFAULTS, *ours, *_GENERIC_DEFAULTS, *generic, *sorted(others), rest]


def _is_factory(driver: object) -> bool:
    return callable(driver) and (isinstance(driver, type) or not hasattr(driver, "traits"))


def _checked(driver: Any, source: str) -> Driver:
    """Give the driver, or what the factory makes.

    Raises:
        MisuseError: It is no driver.
    """
    if _is_factory(driver):
        driver = driver()
    lacking = [name for name in _METHODS if not callable(getattr(driver, name, None))]
    if not isinstance(getattr(driver, "traits", None), DriverTraits):
        lacking.insert(0, "traits")
    if lacking:
        raise MisuseError(f"{source} is no driver: {driver!r} lacks {', '.join(lacking)}")
    return cast("Driver", driver)
