"""What a run's processes share: one server and one template, however they start, leave and die."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psutil
import pytest
from sqlalchemy import make_url

from loopsafe_db import Database
from loopsafe_db.errors import MisuseError, ServerUnavailableError
from loopsafe_db.testing._binaries import find_local_binaries
from loopsafe_db.testing.servers import (
    GivenPostgres,
    SharedPostgres,
    TemplateDatabase,
    TemplateFile,
    run_apart,
)
from tests.conftest import skip_without_postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loopsafe_db.testing.servers import PostgresServer

USER = """
import sys
from pathlib import Path
from loopsafe_db.testing.servers import SharedPostgres

with SharedPostgres(Path(sys.argv[1])) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


class User:
    """A process that uses the server of a folder until it is told to leave."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-c", USER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def url(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        _, stderr = self.process.communicate("", timeout=60)
        assert (self.process.returncode, stderr) == (0, "")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(autouse=True)
def programs() -> None:
    with skip_without_postgres():
        find_local_binaries()


@contextmanager
def users(folder: Path, count: int) -> Iterator[list[User]]:
    started = [User(folder) for _ in range(count)]
    try:
        yield started
    finally:
        for user in started:
            user.kill()


def fetch_val(url: str, query: str) -> Any:
    async def run() -> Any:
        async with Database(url, scope="loop") as database:
            return await database.fetch_val(query)

    return run_apart(run)


def postmaster(url: str) -> psutil.Process:
    async def find() -> psutil.Process:
        connection = await asyncpg.connect(url)
        try:
            return psutil.Process(psutil.Process(connection.get_server_pid()).ppid())
        finally:
            await connection.close()

    return run_apart(find)


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended; nobody may have waited for it yet."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def answers(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", make_url(url).port or 0), timeout=10).close()
    except OSError:
        return False
    return True


def wait_until(happened: Callable[[], bool]) -> None:
    """Watch what is no child of this process; the test has a timeout."""
    while not happened():
        time.sleep(0.02)


def data_folder(url: str) -> Path:
    return Path(fetch_val(url, "SHOW data_directory")).parent


# -- a server


def test_processes_that_start_at_once_share_one_server_until_the_last_leaves(
    tmp_path: Path,
) -> None:
    with users(tmp_path, 3) as (first, second, third):
        urls = {user.url() for user in (first, second, third)}
        assert len(urls) == 1
        url = urls.pop()
        data = data_folder(url)
        for user in (first, second):
            user.leave()
            assert fetch_val(url, "SELECT 1") == 1
        third.leave()

    assert not answers(url)
    assert not data.exists()


def test_a_server_outlives_the_killed_process_that_started_it(tmp_path: Path) -> None:
    with users(tmp_path, 1) as (first,):
        url = first.url()
        with users(tmp_path, 1) as (second,):
            assert second.url() == url
            first.kill()
            with users(tmp_path, 1) as (third,):
                assert third.url() == url
                second.leave()
                third.leave()

    assert not answers(url)


def test_processes_that_are_all_killed_take_their_server_along(tmp_path: Path) -> None:
    with users(tmp_path, 2) as both:
        url = {user.url() for user in both}.pop()
        server, data = postmaster(url), data_folder(url)

    wait_until(lambda: is_gone(server))
    wait_until(lambda: not data.exists())  # the guard's last act


def test_a_server_that_was_killed_is_replaced(tmp_path: Path) -> None:
    with SharedPostgres(tmp_path) as first:
        data = data_folder(first.url)
        postmaster(first.url).kill()
        wait_until(lambda: not answers(first.url))
        with SharedPostgres(tmp_path) as second:
            assert fetch_val(second.url, "SELECT 1") == 1
            assert second.url != first.url
            url = second.url
    wait_until(
        lambda: not answers(url)
    )  # the guard of the first may be looking whether we are there
    if data.exists():
        subprocess.run(["rm", "-rf", data], check=True)  # nobody's, as its server was killed


def test_a_forked_child_that_leaves_the_block_leaves_the_server_alone(tmp_path: Path) -> None:
    with SharedPostgres(tmp_path) as server:
        if (child := os.fork()) == 0:
            signal.alarm(30)
            server.__exit__()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert fetch_val(server.url, "SELECT 1") == 1


def test_a_server_that_does_not_start_says_why_and_is_in_nobodys_way(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerUnavailableError, match=r"unrecognized .*no_such_setting"),
        SharedPostgres(tmp_path, settings={"no_such_setting": "1"}),
    ):
        pytest.fail("it started")
    with SharedPostgres(tmp_path) as server:
        assert fetch_val(server.url, "SELECT 1") == 1
        url = server.url
        assert repr(server) == f"<SharedPostgres port {make_url(url).port}>"
    assert not answers(url)  # nobody is thought to be there still


def test_a_server_has_no_url_before_its_block(tmp_path: Path) -> None:
    server = SharedPostgres(tmp_path)

    assert repr(server) == "<SharedPostgres not entered>"
    with pytest.raises(MisuseError, match="with SharedPostgres"):
        server.url  # noqa: B018


def test_an_installation_goes_before_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("initdb", "postgres", "psql"):
        (tmp_path / program).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    assert find_local_binaries() == tmp_path


# -- databases


@pytest.fixture
def server(postgres_server: PostgresServer) -> GivenPostgres:
    return GivenPostgres(postgres_server.url)


def databases(server: GivenPostgres) -> list[str]:
    names = "SELECT coalesce(string_agg(datname, ' '), '') FROM pg_database WHERE datname LIKE 'loopsafe%'"
    return str(fetch_val(server.url, names)).split()


def build_things(url: str) -> None:
    fetch_val(url, "CREATE TABLE things AS SELECT 7 AS x")


async def test_databases_are_made_and_dropped_inside_a_running_loop(server: GivenPostgres) -> None:
    url = server.create_database('it\'s "odd":x')
    connection = await asyncpg.connect(url)

    assert await connection.fetchval("SELECT current_database()") == 'it\'s "odd":x'
    server.drop_database('it\'s "odd":x')
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("SELECT 1")
    connection.terminate()


def test_the_url_of_a_database_is_like_the_servers(server: GivenPostgres) -> None:
    given = make_url(server.url).set(drivername="postgresql+psycopg")
    given = given.update_query_dict({"application_name": "mine"})
    like = GivenPostgres(given.render_as_string(hide_password=False))
    url = like.create_database()

    assert make_url(url) == given.set(database=make_url(url).database)
    assert fetch_val(url, "SELECT current_setting('application_name')") == "mine"
    like.drop_database(make_url(url).database or "")


def test_a_template_is_built_once_and_dropped_by_the_last(
    server: GivenPostgres, tmp_path: Path
) -> None:
    builds: list[str] = []

    def build(url: str) -> None:
        builds.append(url)
        build_things(url)

    templates = [TemplateDatabase(server, tmp_path, build) for _ in range(4)]
    with ThreadPoolExecutor(4) as executor:  # locks tell descriptors apart, not processes
        list(executor.map(TemplateDatabase.__enter__, templates))
        urls = list(executor.map(TemplateDatabase.create, templates))
    template = make_url(builds[0]).database
    for url in urls[:3]:
        fetch_val(url, "DELETE FROM things")

    assert len(builds) == 1
    assert len(set(urls)) == 4
    assert fetch_val(urls[3], "SELECT count(*) FROM things") == 1
    for one, url in zip(templates, urls, strict=True):
        assert template in databases(server)
        one.drop(url)
        one.__exit__(None, None, None)
    left = databases(server)
    assert not {template, *(make_url(url).database for url in urls)} & {*left}


def test_a_template_that_went_with_its_server_is_built_again(
    server: GivenPostgres, tmp_path: Path
) -> None:
    """All processes were killed, and another one came: a worker that pytest-xdist replaces."""
    built: list[str] = []
    killed = TemplateDatabase(server, tmp_path, built.append).__enter__()
    server.drop_database(make_url(built[0]).database or "")

    with TemplateDatabase(server, tmp_path, build_things) as template:
        url = template.create()
        assert fetch_val(url, "SELECT x FROM things") == 7
        template.drop(url)
    killed.__exit__(None, None, None)


def test_a_session_that_the_builder_left_open_is_in_nobodys_way(
    server: GivenPostgres, tmp_path: Path
) -> None:
    with asyncio.Runner() as runner:
        left: list[Any] = []

        def build(url: str) -> None:
            left.append(runner.run(asyncpg.connect(url)))

        with TemplateDatabase(server, tmp_path, build) as template:
            url = template.create()
            assert fetch_val(url, "SELECT 1") == 1
            template.drop(url)
        left[0].terminate()


@pytest.mark.parametrize("kind", ["database", "file"])
def test_a_template_that_cannot_be_built_leaves_nothing_and_is_tried_again(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    tried: list[str] = []

    def build(url: str) -> None:
        tried.append(url)
        if len(tried) == 1:
            raise RuntimeError("it does not build")
        build_things(url)

    def template() -> TemplateDatabase | TemplateFile:
        if kind == "file":
            return TemplateFile("sqlite://", tmp_path, build)
        return TemplateDatabase(request.getfixturevalue("server"), tmp_path, build)

    with pytest.raises(RuntimeError, match="it does not build"), template():
        pytest.fail("it was built")
    if kind == "database":
        assert make_url(tried[0]).database not in databases(request.getfixturevalue("server"))
    else:
        assert list(tmp_path.glob("*.db")) == []
    with template() as built:
        url = built.create()
        assert fetch_val(url, "SELECT x FROM things") == 7
        built.drop(url)


def test_a_template_of_sqlite_is_copied_with_what_is_in_its_log(tmp_path: Path) -> None:
    left: list[sqlite3.Connection] = []

    def build(url: str) -> None:
        connection = sqlite3.connect(make_url(url).database or "", check_same_thread=False)
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE things AS SELECT 7 AS x")
        connection.commit()
        left.append(connection)

    with TemplateFile("sqlite+aiosqlite:///ignored.db?timeout=3", tmp_path, build) as template:
        first, second = template.create(), template.create()
        assert make_url(first).query == {"timeout": "3"}
        fetch_val(first, "DELETE FROM things")
        assert fetch_val(second, "SELECT x FROM things") == 7
        template.drop(first)
        template.drop(second)
        left[0].close()
    assert list(tmp_path.glob("*.db*")) == []
