"""The fixture `loopsafe_db`, by running pytest in pytest: whoever works in a test, in whichever loop, it is undone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.conftest import skip_without_postgres

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopsafe_db.testing.servers import PostgresServer

pytest_plugins = ["pytester"]

CONFTEST = """
import pytest
import sqlalchemy as sa
from loopsafe_db import get_database

metadata = sa.MetaData()
things = sa.Table("things", metadata, sa.Column("id", sa.Integer, primary_key=True))

@pytest.fixture(scope="session")
def loopsafe_db_schema():
    return metadata

@pytest.fixture
def store():
    async def store(number):
        await get_database().execute("INSERT INTO things (id) VALUES (:n)", {"n": number})
    return store

@pytest.fixture
def count():
    async def count():
        return await get_database().fetch_val("SELECT count(*) FROM things")
    return count
"""
# Each stores the same row: only one of them could, were it not undone.
ASYNC = """
import asyncio
import pytest
from loopsafe_db import get_database
from conftest import things

pytestmark = pytest.mark.{mark}

@pytest.mark.parametrize("turn", range(3))
async def test_text(loopsafe_db, store, count, turn):
    await store(1)
    async with get_database().transaction():
        await store(2)
    assert await asyncio.gather(count(), count()) == [2, 2]

@pytest.mark.parametrize("turn", range(2))
async def test_sessions(loopsafe_db, count, turn):
    async with get_database().session.begin() as session:
        await session.execute(things.insert().values(id=1))
    assert await count() == 1

@pytest.fixture
async def stored(loopsafe_db, store):
    await store(7)

async def test_fixture(stored, count):
    assert await count() == 1

async def test_without_the_fixture(stored, count):
    assert await asyncio.create_task(count()) == 1
"""
SYNC = """
import asyncio
import threading
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from loopsafe_db import get_database

app = FastAPI()

@app.post("/things/{number}")
async def add(number: int) -> int:
    async with get_database().transaction():
        await get_database().execute("INSERT INTO things (id) VALUES (:n)", {"n": number})
    return await get_database().fetch_val("SELECT count(*) FROM things")

@pytest.mark.parametrize("turn", range(2))
def test_asyncio_run(loopsafe_db, store, count, turn):
    asyncio.run(store(1))
    thread = threading.Thread(target=lambda: asyncio.run(store(2)))
    thread.start()
    thread.join()
    assert asyncio.run(count()) == 2

@pytest.mark.parametrize("turn", range(2))
def test_client(loopsafe_db, store, count, turn):
    asyncio.run(store(1))
    assert TestClient(app).post("/things/2").json() == 2
    with TestClient(app) as client:
        assert client.post("/things/3").json() == 3
    assert asyncio.run(count()) == 3

@pytest.mark.parametrize("turn", range(2))
async def test_asgi(loopsafe_db, store, count, turn):
    import httpx2
    await store(1)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://t") as client:
        assert (await client.post("/things/2")).json() == 2
    assert await count() == 2

@pytest.mark.parametrize("turn", range(2))
def test_named(loopsafe_db, loopsafe_db_named, turn):
    reports = loopsafe_db_named("reports")
    assert get_database("reports") is reports
    asyncio.run(reports.execute("INSERT INTO things (id) VALUES (1)"))
    assert asyncio.run(loopsafe_db.fetch_val("SELECT count(*) FROM things")) == 0

@pytest.mark.parametrize("turn", range(2))
def test_committed_beside(loopsafe_db_committed, store, count, turn):
    asyncio.run(store(1))
    assert asyncio.run(count()) == 1
"""
LEAVES = """
import asyncio
from loopsafe_db import get_database

async def begin():
    await get_database().transaction()

def test_transaction(loopsafe_db):
    asyncio.run(begin())

def test_loop(loopsafe_db):
    asyncio.new_event_loop().run_until_complete(get_database().fetch_val("SELECT 1"))

async def forever():
    await asyncio.sleep(3600)

def test_task(loopsafe_db):
    loop = asyncio.new_event_loop()

    async def main():
        await get_database().fetch_val("SELECT 1")
        loop.task = loop.create_task(forever())
        await asyncio.sleep(0)

    loop.run_until_complete(main())

def test_nothing(loopsafe_db):
    asyncio.run(get_database().fetch_val("SELECT 1"))
"""


@pytest.fixture(params=["postgresql", "sqlite"])
def run(
    request: pytest.FixtureRequest, pytester: pytest.Pytester
) -> Callable[..., pytest.RunResult]:
    """Runs a suite on one kind of database; the PostgreSQL is this run's own."""
    url = "sqlite://"
    if request.param == "postgresql":
        with skip_without_postgres():
            url = request.getfixturevalue("postgres_server").url
    pytester.makeconftest(CONFTEST)

    def run_pytest(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(source)
        plain = ("-p", "no:randomly", "-p", "no:cacheprovider", "--loopsafe-url", url)
        return pytester.runpytest_subprocess(*plain, *arguments)

    return run_pytest


@pytest.mark.parametrize("scope", ["function", "class", "module", "package", "session"])
def test_in_every_scope_of_pytest_asyncios_loops(
    run: Callable[..., pytest.RunResult], scope: str
) -> None:
    source = ASYNC.replace("{mark}", f'asyncio(loop_scope="{scope}")')
    options = ("asyncio_mode=auto", f"asyncio_default_fixture_loop_scope={scope}")
    run(source, *(f"-o{option}" for option in options)).assert_outcomes(passed=7)


def test_with_pytest_asyncio_in_strict_mode(run: Callable[..., pytest.RunResult]) -> None:
    source = ASYNC.replace("{mark}", "asyncio").replace(
        "@pytest.fixture", "@pytest_asyncio.fixture"
    )
    run(f"import pytest_asyncio\n{source}", "-oasyncio_mode=strict").assert_outcomes(passed=7)


def test_with_pytest_asyncios_loop_factories(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    factories = """
import asyncio
import uvloop

def pytest_asyncio_loop_factories(config, item):
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
"""
    pytester.mkpydir("suite").joinpath("conftest.py").write_text(factories, encoding="utf-8")
    source = ASYNC.replace("{mark}", "asyncio")
    pytester.path.joinpath("suite/test_it.py").write_text(source, encoding="utf-8")
    options = ("-oasyncio_mode=auto", "-oasyncio_default_fixture_loop_scope=function")
    run("", *options, "suite").assert_outcomes(passed=14)


def test_with_anyios_plugin(run: Callable[..., pytest.RunResult]) -> None:
    source = ASYNC.replace("{mark}", "anyio")
    backend = '\n@pytest.fixture\ndef anyio_backend():\n    return "asyncio"\n'
    run(source + backend, "-pno:asyncio").assert_outcomes(passed=7)


TRIO = """
import pytest
from loopsafe_db import get_database

pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "trio"

async def test_text(loopsafe_db):
    await loopsafe_db.fetch_val("SELECT 1")

async def test_stream(loopsafe_db):
    async for _ in get_database().iterate("SELECT 1"):
        pass

async def test_transaction(loopsafe_db):
    async with get_database().transaction():
        pass

async def test_connection(loopsafe_db):
    async with get_database().connection():
        pass

async def test_engine(loopsafe_db):
    async with get_database().engine.begin():
        pass

async def test_committed(loopsafe_db_committed):
    await get_database().fetch_val("SELECT 1")
"""


def test_under_trio_the_error_says_that_it_needs_asyncio(
    run: Callable[..., pytest.RunResult],
) -> None:
    result = run(TRIO, "-pno:asyncio")

    result.assert_outcomes(failed=6)
    errors = [line for line in result.outlines if line.startswith("E  ")]
    assert sum("errors.UnsupportedLoopError: [LDB105]" in line for line in errors) == 6
    result.stdout.no_fnmatch_line("*no running event loop*")


def test_in_sync_tests_and_applications_in_other_threads(
    run: Callable[..., pytest.RunResult],
) -> None:
    run(SYNC, "-oasyncio_mode=auto").assert_outcomes(passed=10)


def test_without_the_rolling_back_the_same_tests_fail(
    run: Callable[..., pytest.RunResult],
) -> None:
    plain = """
@pytest.fixture(scope="session")
def loopsafe_db(loopsafe_db_url):
    from loopsafe_db import configure
    return configure(loopsafe_db_url)
"""
    source = ASYNC.replace("{mark}", "asyncio") + plain
    outcomes = run(source, "-oasyncio_mode=auto").parseoutcomes()
    assert outcomes["failed"] + outcomes.get("errors", 0) >= 5


def test_workers_of_xdist_do_not_meet(run: Callable[..., pytest.RunResult]) -> None:
    run(ASYNC.replace("{mark}", "asyncio"), "-oasyncio_mode=auto", "-n4").assert_outcomes(passed=7)


def test_what_is_left_behind_is_an_error_with_its_place(
    run: Callable[..., pytest.RunResult],
) -> None:
    result = run(LEAVES, "--loopsafe-leaks=error")

    result.assert_outcomes(passed=4, errors=3)
    result.stdout.re_match_lines_random(
        [
            r"a transaction or a session was left open: .*test_what_is_left.*\.py:5",
            r"an event loop was left open: <_UnixSelectorEventLoop.*",
            r"an asyncio task was left running: .*\.py:14",
        ]
    )


@pytest.mark.parametrize(("how", "warnings"), [("warn", 3), ("off", 0)])
def test_what_is_left_behind_is_a_warning_or_nothing(
    run: Callable[..., pytest.RunResult], how: str, warnings: int
) -> None:
    result = run(LEAVES, f"--loopsafe-leaks={how}")

    result.assert_outcomes(passed=4)
    assert result.stdout.str().count("left something behind") == warnings


def test_a_test_that_fails_shows_what_it_asked(run: Callable[..., pytest.RunResult]) -> None:
    source = """
import asyncio
def test_it(loopsafe_db, store, count):
    asyncio.run(store(1))
    assert asyncio.run(count()) == 2
"""
    result = run(source)

    result.stdout.re_match_lines(
        [r"-+ SQL on <Database .*", r"1\. INSERT INTO things.*", r"2\. SELECT count\(\*\) FROM .*"]
    )
    result.stdout.no_fnmatch_line("*SAVEPOINT*")


def test_scopes_that_clash_name_the_fixture(run: Callable[..., pytest.RunResult]) -> None:
    source = """
import pytest
import pytest_asyncio

@pytest_asyncio.fixture(loop_scope="session")
async def connection(loopsafe_db_committed):
    async with loopsafe_db_committed.connection() as connection:
        yield connection

@pytest.mark.asyncio(loop_scope="function")
async def test_it(connection):
    await connection.fetch_val("SELECT 1")
"""
    result = run(source, "-oasyncio_mode=strict")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the connection was taken by the fixture 'connection'*"])


STOPPED = """
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")
FOR_EVER = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT count(*) FROM n"

async def test_first(loopsafe_db):
    await loopsafe_db.fetch_val("SELECT 1")  # connects, which may take longer than a second

@pytest.mark.timeout(1, func_only=True)
async def test_stopped(loopsafe_db):
    await loopsafe_db.fetch_val(FOR_EVER)

async def test_next(loopsafe_db, store, count):
    await store(1)
    assert await count() == 1
"""


def test_a_test_that_a_time_out_stops_costs_the_next_ones_nothing(
    run: Callable[..., pytest.RunResult],
) -> None:
    result = run(STOPPED, "-Wdefault")

    result.assert_outcomes(failed=1, passed=2, warnings=1)
    result.stdout.fnmatch_lines(
        [
            "*test_stopped left something behind:",
            "*a connection was left checked out: * s, */test_a_test_that_*.py:11",
        ]
    )


def test_a_session_left_on_the_server_is_told_of(
    pytester: pytest.Pytester, postgres_server: PostgresServer
) -> None:
    source = """
import asyncio
import asyncpg
import pytest
from loopsafe_db import get_database

loop = asyncio.new_event_loop()
kept = []

async def leave(url, closes):
    await get_database().fetch_val("SELECT count(*) FROM pg_stat_activity")
    kept.append(await asyncpg.connect(url, server_settings={"application_name": "strange"}))
    if closes:
        await kept.pop().close()

@pytest.mark.parametrize("closes", [False, True])
def test_it(loopsafe_db, loopsafe_db_url, closes):
    loop.run_until_complete(leave(loopsafe_db_url, closes))
"""
    pytester.makepyfile(source)
    arguments = ("-p", "no:randomly", "--loopsafe-url", postgres_server.url, "-Wignore")
    result = pytester.runpytest_subprocess(*arguments, "--loopsafe-leaks=error")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.re_match_lines([".*left on the server: pid [0-9]+, application 'strange', idle"])


@pytest.mark.parametrize("fixture", ["loopsafe_db", "loopsafe_db_committed"])
@pytest.mark.parametrize("last", ["pass", "assert False"], ids=["passes", "fails"])
def test_an_application_that_configures_its_database_works_on_that_of_the_test(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester, fixture: str, last: str
) -> None:
    real = pytester.path / "real.db"
    with closing(sqlite3.connect(real)) as plain:
        plain.execute("CREATE TABLE things (id integer PRIMARY KEY)")
    source = f"""
import asyncio
import threading
from loopsafe_db import configure

def start_up():
    configure("sqlite:///{real}")

def test_it({fixture}, store):
    start_up()
    thread = threading.Thread(target=start_up)
    thread.start()
    thread.join()
    asyncio.run(store(1))
    {last}

def test_after({fixture}, count):
    assert asyncio.run(count()) == 0
"""
    passed = last == "pass"
    run(source).assert_outcomes(passed=1 + passed, failed=1 - passed)
    with closing(sqlite3.connect(real)) as plain:
        assert plain.execute("SELECT count(*) FROM things").fetchone() == (0,)


def test_fixtures_run_a_test_once_per_loop_and_start_method(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
import asyncio
import os
from loopsafe_db.testing import call_in_child

def test_loops(loopsafe_loop_factory):
    with asyncio.Runner(loop_factory=loopsafe_loop_factory) as runner:
        assert type(runner.get_loop()) is type(loopsafe_loop_factory())

def test_children(loopsafe_start_method):
    assert call_in_child(os.getpid, start_method=loopsafe_start_method) != os.getpid()
"""
    )
    pytester.runpytest_subprocess("-Wignore").assert_outcomes(passed=5)
