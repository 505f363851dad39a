"""Servers for the whole suite: one PostgreSQL per run, one fresh database per test."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import sqlalchemy.dialects.postgresql  # noqa: F401 (a test with `pytester` forgets its imports, and again they warn)
import uvloop
from sqlalchemy import create_engine, make_url

from loopsafe_db import Database
from loopsafe_db.errors import ServerUnavailableError
from tests.databases import Databases
from tests.mariadb import MariaDB

with suppress(ImportError):  # a tool's environment has none
    import hypothesis  # noqa: F401 (it looks for who refers to what, and finds nobody once that is spared: see below)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from loopsafe_db.testing.servers import GivenPostgres, PostgresServer


SCOPE: Any = os.environ.get("LOOPSAFE_DB_SCOPE", "auto")  # of this run's handles
if os.environ.get("LOOPSAFE_TEST_LOOP") == "uvloop":  # what asyncio.run makes in this run
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


def pytest_collection_finish() -> None:
    """Spare the collector all that the tests were collected into: many of them collect garbage, again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes run the tests: a file stays together, and what keeps the machine busy takes turns."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            alone = nodeid.startswith(("tests/workers/", "tests/benchmarks/"))
            return "alone" if alone else nodeid.partition("::")[0]

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> PostgresServer:
    """The plugin's server: one for the whole run, a given one or a private one."""
    with skip_without_postgres():
        server: PostgresServer = request.getfixturevalue("loopsafe_postgres")
    return server


@pytest.fixture(scope="session")
def empty_databases(postgres_server: GivenPostgres) -> Iterator[Databases]:
    """The databases of this process's tests, on the plugin's server."""
    databases = Databases(postgres_server)
    yield databases
    databases.close()


@pytest.fixture
def postgres_url(empty_databases: Databases) -> Iterator[str]:
    """An empty database for this test alone."""
    url = empty_databases.take()
    yield url
    empty_databases.give_back(url)


@pytest.fixture(params=["asyncpg", "psycopg", "aiosqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A handle on an empty database, for every driver, in the scope that this run is about."""
    if request.param != "aiosqlite":
        url = make_url(request.getfixturevalue("postgres_url"))
        return Database(url.set(drivername=f"postgresql+{request.param}"), scope=SCOPE)
    return Database(f"sqlite:///{tmp_path}/test.db?timeout=30", scope=SCOPE)


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    """A database of a MariaDB that is there for this run; tests clean up after themselves."""
    with skip_without("MariaDB"), MariaDB() as server:
        yield server.url


@pytest.fixture
def mariadb_database_url(mariadb_url: str) -> Iterator[str]:
    """An empty database of MariaDB for this test alone."""
    name = f"test_{secrets.token_hex(6)}"
    _tell_mariadb(mariadb_url, f"CREATE DATABASE {name}")
    yield make_url(mariadb_url).set(database=name).render_as_string(hide_password=False)
    _tell_mariadb(mariadb_url, f"DROP DATABASE {name}")


def _tell_mariadb(url: str, sql: str) -> None:
    engine = create_engine(make_url(url).set(drivername="mysql+pymysql"))
    with engine.connect() as connection:
        connection.exec_driver_sql(sql)
    engine.dispose()


@pytest.fixture(params=["asyncpg", "psycopg", "aiosqlite", "aiomysql", "asyncmy"])
def any_database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A handle on an empty database, for every driver, those of MySQL included."""
    if request.param == "aiosqlite":
        return Database(f"sqlite:///{tmp_path}/test.db?timeout=30", scope=SCOPE)
    mysql = request.param in ("aiomysql", "asyncmy")
    url = make_url(request.getfixturevalue("mariadb_database_url" if mysql else "postgres_url"))
    dialect = "mysql" if mysql else "postgresql"
    return Database(url.set(drivername=f"{dialect}+{request.param}"), scope=SCOPE)


@contextmanager
def skip_without(server: str) -> Iterator[None]:
    """Without a server: a skip that says so; in CI, or where servers are required, a failure."""
    try:
        yield
    except ServerUnavailableError as error:
        if os.environ.get("CI") or os.environ.get("LOOPSAFE_REQUIRE_SERVERS"):
            pytest.fail(f"this run must have a {server}, and has none: {error}")
        pytest.skip(f"NO {server.upper()}, SO NOTHING IS PROVED HERE: {error}")


def skip_without_postgres() -> AbstractContextManager[None]:
    """Do so for PostgreSQL."""
    return skip_without("PostgreSQL")


@asynccontextmanager
async def anyio_timeout(seconds: float) -> AsyncIterator[None]:
    """Do as `asyncio.timeout`; but AnyIO cancels again and again."""
    with anyio.fail_after(seconds):
        yield
