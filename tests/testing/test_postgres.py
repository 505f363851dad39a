"""The embedded server: private while it lives, gone when its owner is, and plain about failure."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psutil
import pytest
from sqlalchemy import make_url

from loopsafe_db.errors import DriverError, MisuseError, ServerUnavailableError
from loopsafe_db.testing.postgres import EmbeddedPostgres, find_binaries
from tests.conftest import skip_without_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

OWNER_TO_BE_KILLED = """
import sys
from loopsafe_db.testing.postgres import EmbeddedPostgres

with EmbeddedPostgres() as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""

FORKING_OWNER = """
import asyncio, os, sys, asyncpg
from loopsafe_db.testing.postgres import EmbeddedPostgres

async def fetch_one_value(url):
    connection = await asyncpg.connect(url)
    print(await connection.fetchval("SELECT 1"))
    await connection.close()

with EmbeddedPostgres() as server:
    if (pid := os.fork()) == 0:
        sys.exit(0)
    os.waitpid(pid, 0)
    asyncio.run(fetch_one_value(server.url))
"""


def fetch_val(url: str, query: str) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(run())


@pytest.fixture
def postgres_folder() -> Iterator[Path]:
    """A folder that the server's account may enter; pytest's own are closed to it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "server"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with skip_without_postgres(), EmbeddedPostgres() as embedded:
        yield embedded


def folder_of(server: EmbeddedPostgres) -> Path:
    return Path(fetch_val(server.url, "SHOW data_directory"))


def test_a_server_lives_in_its_block_and_leaves_nothing_behind() -> None:
    with EmbeddedPostgres() as server:
        url, folder = server.url, folder_of(server)
        assert fetch_val(url, "SELECT 1") == 1

    assert not folder.parent.exists()
    with pytest.raises(ConnectionRefusedError):
        fetch_val(url, "SELECT 1")


def test_a_server_listens_on_loopback_only(server: EmbeddedPostgres) -> None:
    assert fetch_val(server.url, "SHOW listen_addresses") == "127.0.0.1"
    assert fetch_val(server.url, "SHOW unix_socket_directories") == ""


def test_a_server_wants_its_password(server: EmbeddedPostgres) -> None:
    guessed = make_url(server.url).set(password="guessed")

    with pytest.raises(asyncpg.InvalidPasswordError):
        fetch_val(guessed.render_as_string(hide_password=False), "SELECT 1")


def test_each_fresh_database_is_another_one(server: EmbeddedPostgres) -> None:
    urls = [server.create_database() for _ in range(2)]
    names = [fetch_val(url, "SELECT current_database()") for url in urls]

    assert names[0] != names[1]
    for name in names:
        server.drop_database(name)


def test_a_database_may_have_any_name_once(server: EmbeddedPostgres) -> None:
    name = 'it\'s "odd"/x@y'
    url = server.create_database(name)

    assert fetch_val(url, "SELECT current_database()") == name
    with pytest.raises(DriverError, match="already exists"):
        server.create_database(name)
    server.drop_database(name)


async def test_a_database_is_dropped_under_its_sessions() -> None:
    with EmbeddedPostgres() as server:
        connection = await asyncpg.connect(server.create_database("busy"))
        server.drop_database("busy")

        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await connection.fetchval("SELECT 1")
        connection.terminate()


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_a_server_restarts_at_its_address_with_its_data(how: Any) -> None:
    with EmbeddedPostgres(settings={"synchronous_commit": "on"}) as server:
        url, began = server.url, fetch_val(server.url, "SELECT pg_postmaster_start_time()")
        fetch_val(url, "SELECT 1 FROM (SELECT lo_create(4711)) AS made")
        server.restart(how)

        assert server.url == url
        assert fetch_val(url, "SELECT pg_postmaster_start_time()") != began
        assert fetch_val(url, "SELECT count(*) FROM pg_largeobject_metadata") == 1
        folder = folder_of(server)
    assert not folder.exists()


def test_a_stop_does_not_wait_for_clients() -> None:
    with EmbeddedPostgres() as server:
        client = socket.create_connection(("127.0.0.1", make_url(server.url).port or 0))
        server.stop()

        assert client.recv(1) == b""
        client.close()


def test_a_forked_child_that_leaves_the_block_leaves_the_server_alone() -> None:
    done = subprocess.run(
        # No warning is an error: CPython 3.12 and later swallow what they say of a fork beside threads then.
        [sys.executable, "-X", "dev", "-W", "always", "-c", FORKING_OWNER],
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_a_server_can_be_stopped_while_a_forked_child_lives() -> None:
    reader, writer = os.pipe()
    with EmbeddedPostgres() as server:
        if (pid := os.fork()) == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent closes its end
            os._exit(0)
        folder = folder_of(server)

    os.close(writer)
    os.waitpid(pid, 0)
    os.close(reader)
    assert not folder.exists()


def test_a_killed_owner_takes_its_server_along() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER_TO_BE_KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        folder = Path(fetch_val(owner.stdout.readline().strip(), "SHOW data_directory"))
        companions = psutil.Process(owner.pid).children(recursive=True)
        owner.kill()

    _, alive = psutil.wait_procs(companions, timeout=60)
    assert alive == []
    assert not folder.parent.exists()


def test_a_given_folder_keeps_its_data(postgres_folder: Path) -> None:
    with EmbeddedPostgres(postgres_folder) as first:
        fetch_val(first.url, "CREATE TABLE kept AS SELECT 7 AS x")

    with EmbeddedPostgres(postgres_folder) as second:
        assert fetch_val(second.url, "SELECT x FROM kept") == 7


def test_programs_that_only_root_may_enter_are_copied(postgres_folder: Path) -> None:
    """A virtual environment below /root is closed to the account that runs root's server."""
    programs = find_binaries()
    closed = postgres_folder / "closed"
    package, site = programs.parents[1], programs.parents[2]
    for folder in (programs.parent, *site.glob(f"{package.name}.libs")):
        shutil.copytree(folder, closed / folder.relative_to(site), symlinks=True)
    closed.chmod(0o700)

    with EmbeddedPostgres(programs=closed / programs.relative_to(site)) as server:
        assert fetch_val(server.url, "SELECT 1") == 1


def test_a_server_that_does_not_start_says_why() -> None:
    with (
        pytest.raises(ServerUnavailableError, match=r"unrecognized .*no_such_setting"),
        EmbeddedPostgres(settings={"no_such_setting": "1"}),
    ):
        pytest.fail("it started")


def test_without_programs_the_error_names_the_extra(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailableError, match=r"(?s)looked into: .*loopsafe-db\[embedded\]"):
        find_binaries([tmp_path])


def test_a_server_has_no_url_before_its_start() -> None:
    with pytest.raises(MisuseError, match="with EmbeddedPostgres"):
        EmbeddedPostgres().url  # noqa: B018
