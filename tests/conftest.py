"""Servers for the whole suite: one PostgreSQL per run, one fresh database per test."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import asyncpg
import pytest
from sqlalchemy import make_url

from loopsafe_db import Database
from loopsafe_db.errors import ServerUnavailableError
from loopsafe_db.testing.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
    with _skip_if_there_is_none(), EmbeddedPostgres(max_connections=200) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database for this test alone: about 30 ms to make, 15 ms to drop."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(make_url(url).database or "")


@pytest.fixture(params=["asyncpg", "aiosqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A handle on an empty database, for every driver."""
    if request.param == "asyncpg":
        return Database(request.getfixturevalue("postgres_url"))
    return Database(f"sqlite:///{tmp_path}/test.db?timeout=30")


@contextmanager
def _skip_if_there_is_none() -> Iterator[None]:
    """Without a server: a skip that says so; in CI, or where servers are required, a failure."""
    try:
        yield
    except ServerUnavailableError as error:
        if os.environ.get("CI") or os.environ.get("LOOPSAFE_REQUIRE_SERVERS"):
            pytest.fail(f"this run must have a PostgreSQL, and has none: {error}")
        pytest.skip(f"NO POSTGRESQL, SO NOTHING IS PROVED HERE: {error}")
