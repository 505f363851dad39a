"""Which driver a URL gets: ours, else a registered one, else an installed one, else the generic one."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import secrets
import sys
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db import Database, MisuseError, register_driver
from loopsafe_db.drivers.discovery import find_driver
from loopsafe_db.drivers.generic import GenericDriver
from loopsafe_db.errors import MissingDriverError, UnknownDriverError
from tests.drivers.test_conformance import THIRD_PARTY, install

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def name() -> str:
    return f"sqlite+x{secrets.token_hex(4)}"


class Nothing:
    """A driver that lacks nearly everything."""

    def connect(self) -> None: ...


def test_a_registered_driver_is_used(name: str, tmp_path: Path) -> None:
    driver = GenericDriver("sqlite+aiosqlite")
    register_driver(name, driver)
    database = Database(f"{name}:///{tmp_path}/x.db")

    assert find_driver(name) is driver
    assert asyncio.run(database.fetch_val("SELECT :x + 1", {"x": 1})) == 2
    asyncio.run(database.disconnect())


def test_a_factory_is_called_when_a_url_first_asks(name: str) -> None:
    made = []

    def make() -> Any:
        made.append(GenericDriver("sqlite+aiosqlite"))
        return made[-1]

    register_driver(name, make)
    assert made == []
    assert find_driver(name) is find_driver(name)
    assert len(made) == 1


def test_what_is_no_driver_is_refused_where_it_is_registered(name: str) -> None:
    driver: Any = object()
    with pytest.raises(MisuseError, match=r"what is registered as .* lacks traits, arguments"):
        register_driver(name, driver)


def test_a_factory_that_makes_no_driver_is_refused_at_the_first_use(name: str) -> None:
    factory: Any = Nothing
    register_driver(name, factory)
    with pytest.raises(MisuseError, match="lacks traits, arguments"):
        Database(f"{name}://")


@pytest.mark.parametrize("ours", ["postgresql+asyncpg", "postgresql", "sqlite"])
def test_ours_are_not_replaced(ours: str) -> None:
    with pytest.raises(MisuseError, match="stays so"):
        register_driver(ours, GenericDriver("sqlite+aiosqlite"))


def test_an_installed_driver_is_imported_when_a_url_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(THIRD_PARTY, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plainsqlite", raising=False)
    monkeypatch.setattr("loopsafe_db.drivers.discovery._loaded", {})

    find_driver("mysql+aiomysql")
    assert "plainsqlite" not in sys.modules
    assert find_driver("sqlite+plain") is sys.modules["plainsqlite"].DRIVER


def test_an_entry_point_that_leads_to_no_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.metadata.EntryPoint("sqlite+bad", "json:dumps", "loopsafe_db.drivers")
    monkeypatch.setattr(
        "loopsafe_db.drivers.discovery.entry_points",
        lambda **which: [found] if which.get("name") == "sqlite+bad" else [],
    )
    monkeypatch.setattr(found.load(), "traits", None, raising=False)
    with pytest.raises(MisuseError, match=r"entry point sqlite\+bad = json:dumps is no driver"):
        Database("sqlite+bad://")


@pytest.mark.parametrize("short", ["mysql", "mariadb"])
def test_mysql_without_a_driver_is_aiomysql(short: str) -> None:
    assert find_driver(short).traits.dialect == f"{short}+aiomysql"


@pytest.mark.parametrize("drivername", ["mysql+pymysql", "postgresql+psycopg2", "mssql+pyodbc"])
def test_a_dialect_that_is_not_async_is_told_so(drivername: str) -> None:
    with pytest.raises(UnknownDriverError, match="is not async\nHINT: use one of "):
        find_driver(drivername)


def test_an_unknown_name_lists_what_there_is(name: str) -> None:
    for unknown in (name, "oracle", "nonsense"):
        with pytest.raises(UnknownDriverError, match=r"no driver is called.*\n.*mysql\+aiomysql"):
            find_driver(unknown)


@pytest.mark.parametrize(
    ("drivername", "package", "hint"),
    [
        ("mariadb+asyncmy", "asyncmy", "pip install asyncmy"),
        ("mysql+aiomysql", "aiomysql", r"pip install 'loopsafe-db\[mysql\]'"),
        ("postgresql", "asyncpg", "pip install asyncpg"),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, drivername: str, package: str, hint: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "loopsafe_db.drivers.asyncpg", raising=False)
    monkeypatch.setattr("loopsafe_db.drivers.discovery._generic", {})
    with pytest.raises(MissingDriverError, match=f"needs the package '{package}'.*\n.*{hint}$"):
        find_driver(drivername)
