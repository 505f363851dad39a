"""Servers for the whole suite: one PostgreSQL per run, one fresh database per test."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg
import pytest
import uvloop
from sqlalchemy import make_url

from loopsafe_db import Database
from loopsafe_db.errors import ServerUnavailableError
from loopsafe_db.testing.postgres import EmbeddedPostgres
from tests.mariadb import MariaDB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path


SCOPE = os.environ.get("LOOPSAFE_DB_SCOPE", "auto")  # of this run's handles
if os.environ.get("LOOPSAFE_TEST_LOOP") == "uvloop":  # what asyncio.run makes in this run
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes run the tests: a file stays together, and what keeps the machine busy takes turns."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            alone = nodeid.startswith(("tests/workers/", "tests/benchmarks/"))
            return "alone" if alone else nodeid.partition("::")[0]

    return Scheduling(config, log)


class PostgresServer(Protocol):
    """What a test may ask of this run's PostgreSQL, embedded or given."""

    @property
    def url(self) -> str: ...
    def create_database(self, name: str | None = None) -> str: ...
    def drop_database(self, name: str) -> None: ...


class GivenPostgres:
    """A running server, named by LOOPSAFE_TEST_POSTGRES_URL; its user may create databases."""

    def __init__(self, url: str) -> None:
        self.url = url

    def create_database(self, name: str | None = None) -> str:
        name = name or f"db_{secrets.token_hex(6)}"
        self._run(f'CREATE DATABASE "{name}" TEMPLATE template0')
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def drop_database(self, name: str) -> None:
        self._run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _run(self, statement: str) -> None:
        async def run() -> None:
            connection = await asyncpg.connect(self.url)
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(run())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the whole run: the given one, else an embedded one."""
    if given := os.environ.get("LOOPSAFE_TEST_POSTGRES_URL"):
        yield GivenPostgres(given)
        return
    with skip_without_postgres(), EmbeddedPostgres(max_connections=200) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database for this test alone: about 30 ms to make, 15 ms to drop."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(make_url(url).database or "")


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
