"""One suite, several servers: the stand-in, the real server, and one given by its URL."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import httpx
import pytest

from reflector_workers.conductor import StandInServer
from reflector_workers.conductor.errors import ConductorSetupError
from reflector_workers.conductor.jvm import find_java
from reflector_workers.conductor.opening import URL_VARIABLE, open_conductor
from reflector_workers.conductor.real import RealServer
from reflector_workers.conductor.server_files import is_unpacked
from tests.workers.conductor.rest import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loopsafe_db.testing.servers import PostgresServer

# Fetching 437 MB may come first.
REAL_MARKS = [pytest.mark.real_conductor, pytest.mark.timeout(1800)]
KINDS = [pytest.param("stand_in"), pytest.param("real", marks=REAL_MARKS)]
if os.environ.get(URL_VARIABLE):
    KINDS.append(pytest.param("given"))


def must_have_servers() -> bool:
    """Whether a missing server fails a test (in CI) instead of skipping it."""
    return os.environ.get("LOOPSAFE_REQUIRE_SERVERS") == "1" or os.environ.get("CI", "") not in {
        "",
        "0",
        "false",
    }


def skip_without_real_server() -> None:
    if must_have_servers():
        return
    try:
        find_java()
    except ConductorSetupError as error:
        pytest.skip(f"NOT TESTED against the real Conductor: {error}")
    if not is_unpacked():
        pytest.skip(
            "NOT TESTED against the real Conductor: it is not in the cache "
            "(`make demo CONDUCTOR=real` fetches it, LOOPSAFE_REQUIRE_SERVERS=1 does it here)"
        )


@pytest.fixture(scope="session")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def stand_in(http: httpx.Client) -> Iterator[Server]:
    with StandInServer() as server:
        yield Server(server.url, http)


@pytest.fixture(scope="session")
def real(http: httpx.Client) -> Iterator[Server]:
    skip_without_real_server()
    with RealServer() as server:
        yield Server(server.url, http)


@pytest.fixture(scope="session")
def durable(http: httpx.Client, postgres_server: PostgresServer) -> Iterator[Server]:
    """The real server with its state in PostgreSQL: on SQLite it stalls under many workers."""
    skip_without_real_server()
    with RealServer(database=postgres_server.create_database()) as server:
        yield Server(server.url, http)


@pytest.fixture(scope="session")
def given(http: httpx.Client) -> Iterator[Server]:
    with open_conductor(os.environ[URL_VARIABLE]) as url:
        yield Server(url, http)


# Not itself parametrised for the session: pytest would stop and start servers as tests alternate.
@pytest.fixture(params=KINDS)
def conductor(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Names that no other test uses: servers are shared."""
    suffix = secrets.token_hex(4)
    return lambda name: f"{name}_{suffix}"
