"""The plugin's databases, by running pytest in pytest: one server, a database per worker, and nothing left over."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy import make_url

from loopsafe_db.testing._binaries import find_local_binaries
from loopsafe_db.testing.postgres import EmbeddedPostgres
from loopsafe_db.testing.runs import Run
from loopsafe_db.testing.servers import GivenPostgres
from tests.conftest import skip_without_postgres
from tests.testing.test_servers import databases, wait_until

if TYPE_CHECKING:
    from loopsafe_db.testing.servers import PostgresServer

pytest_plugins = ["pytester"]

CONFTEST = """
import os
import pytest
import sqlalchemy as sa

metadata = sa.MetaData()
sa.Table("things", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))

@pytest.fixture(scope="session")
def loopsafe_db_schema():
    return [metadata, built]

async def built(database):
    with open("built", "a") as file:
        file.write(f"{database.url.database}\\n")

@pytest.fixture
def note(loopsafe_db_committed, loopsafe_postgres, worker_id):
    async def note():
        name = await loopsafe_db_committed.fetch_val("SELECT current_database()")
        folder = await loopsafe_db_committed.fetch_val("SELECT current_setting('data_directory')")
        with open("used", "a") as file:
            file.write(f"{worker_id} {name} {folder} {loopsafe_postgres.url}\\n")
    return note
"""
CLEAN = """
import asyncio
import pytest
from loopsafe_db import get_database

@pytest.mark.parametrize("turn", range(3))
def test_each_begins_with_empty_tables(loopsafe_db_committed, turn):
    async def use():
        database = get_database()
        assert database is loopsafe_db_committed
        assert await database.fetch_val("SELECT count(*) FROM things") == 0
        await database.execute("INSERT INTO things (name) VALUES ('x')")
        return await database.fetch_val("SELECT id FROM things")

    assert asyncio.run(use()) == 1
"""
DIFFERENT = """
import asyncio
import pytest
from loopsafe_db import get_database

seen = set()

{mark}
@pytest.mark.parametrize("turn", range(2))
def test_each_has_a_database_of_its_own(loopsafe_db_committed, turn):
    assert str(loopsafe_db_committed.url) not in seen
    seen.add(str(loopsafe_db_committed.url))
    asyncio.run(get_database().execute("INSERT INTO things (name) VALUES ('x')"))

def test_the_rows_of_the_schema_are_there(loopsafe_db_committed):
    found = asyncio.run(get_database().fetch_val("SELECT count(*) FROM things"))
    assert found == {rows}
"""
# As pytest-forked does it: the child ends all fixtures, its parent's as well.
FORKED = """
import os
import pytest
from _pytest.runner import runtestprotocol

def pytest_configure(config):
    config.addinivalue_line("markers", "forked: run in a child")

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    if not item.get_closest_marker("forked"):
        return None
    if (child := os.fork()) == 0:
        reports = runtestprotocol(item, log=False)
        os._exit(any(report.failed for report in reports))
    assert os.waitpid(child, 0)[1] == 0
    return True
"""
BESIDE_FORKED = """
import asyncio
import os
import pytest
from loopsafe_db import get_database

async def use(number):
    await get_database().execute("INSERT INTO things (id) VALUES (:n)", {"n": number})
    return await get_database().fetch_val("SELECT count(*) FROM things")

def test_before(FIXTURE):
    assert asyncio.run(use(1)) == 1

@pytest.mark.forked
def test_in_a_child(FIXTURE):
    assert asyncio.run(use(1)) == 1

def test_after(FIXTURE):
    assert asyncio.run(use(1)) == 1

@pytest.mark.parametrize("turn", range(2))
def test_while_a_child_ends(FIXTURE, request, turn):
    first = asyncio.run(use(1))
    if (child := os.fork()) == 0:
        try:
            request.session._setupstate.teardown_exact(None)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert (first, asyncio.run(use(2))) == (1, 2)
"""
PLAIN = """
import sys

def test_of_somebody_else():
    assert "asyncpg" not in sys.modules
"""


@pytest.fixture(autouse=True)
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project whose pytest knows nothing of the one that runs it."""
    with skip_without_postgres():
        find_local_binaries()
    for name in ("LOOPSAFE_TEST_URL", "LOOPSAFE_DB_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\naddopts = -p no:asyncio -p no:cacheprovider\n")


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    points = importlib.metadata.entry_points(group="pytest11", name="loopsafe_db")
    plugin = [] if points else ["-p", "loopsafe_db.pytest_plugin"]
    return pytester.runpytest_subprocess(*plugin, *arguments, timeout=110)


def used(pytester: pytest.Pytester) -> list[list[str]]:
    lines = (pytester.path / "used").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines]


def is_gone(folder: str) -> bool:
    """Whether there is neither the server's folder nor the postmaster, in whose command line it is."""
    running = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return not Path(folder).parent.exists() and not any(folder in line for line in running)


def built(pytester: pytest.Pytester) -> list[str]:
    """The templates that were built."""
    return (pytester.path / "built").read_text(encoding="utf-8").split()


# -- pytest-xdist


MEET = """
import asyncio, os, time
import pytest

@pytest.mark.parametrize("n", range(4))
def test_in_company(note, worker_id, n):
    asyncio.run(note())
    open(f"here-{worker_id}", "w").close()
    while sum(name.startswith("here-") for name in os.listdir()) < 4:  # one test for each worker
        time.sleep(0.01)
"""


def test_four_workers_have_a_database_each_on_one_server(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MEET)

    run(pytester, "-n4", "-p", "no:randomly").assert_outcomes(passed=4)

    workers, names, folders, urls = (set(column) for column in zip(*used(pytester), strict=True))
    assert (len(workers), len(names), len(folders), len(urls)) == (4, 4, 1, 1)
    assert len(built(pytester)) == 1
    assert is_gone(folders.pop())


def test_a_killed_worker_takes_nothing_from_the_others(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio, os, signal, time
        import pytest

        @pytest.mark.parametrize("n", range(6))
        def test_one(note, n):
            asyncio.run(note())
            if n == 2:
                while len({line.split()[0] for line in open("used")}) < 2:
                    time.sleep(0.01)  # alone on the server, it would take it along
                os.kill(os.getpid(), signal.SIGKILL)
        """
    )

    run(pytester, "-n2").assert_outcomes(passed=5, failed=1)

    folders = {worker: folder for worker, _, folder, _ in used(pytester)}
    assert len(folders) > 1
    assert len(set(list(folders.values())[:2])) == 1  # a third worker may come when these have left
    wait_until(lambda: all(map(is_gone, folders.values())))


def test_a_killed_run_leaves_no_server(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio, os, signal

        def test_one(note):
            asyncio.run(note())
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    pytester.makeconftest(CONFTEST.replace(", worker_id", "").replace("{worker_id}", "none"))

    assert run(pytester, "-p", "no:xdist").ret == -9

    folder = used(pytester)[0][2]
    wait_until(lambda: is_gone(folder))


@pytest.mark.parametrize("url", ["", "given", "sqlite://"])
@pytest.mark.parametrize("fixture", ["loopsafe_db", "loopsafe_db_committed"])
def test_a_forked_child_that_ends_its_fixtures_takes_nothing_from_its_parent(
    pytester: pytest.Pytester, postgres_server: PostgresServer, url: str, fixture: str
) -> None:
    pytester.makeconftest(CONFTEST + FORKED)
    pytester.makepyfile(BESIDE_FORKED.replace("FIXTURE", fixture))

    url = postgres_server.url if url == "given" else url
    result = run(pytester, "-p", "no:randomly", *([f"--loopsafe-url={url}"] if url else []))

    result.assert_outcomes(passed=4)  # and what the child has run


def test_what_a_killed_worker_has_left_on_a_given_server_is_removed_by_the_next_run(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        killed="""
        import asyncio, os, signal
        import pytest

        def test_one(note):
            asyncio.run(note())
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        plain="""
        import asyncio

        def test_one(note):
            asyncio.run(note())
        """,
    )
    # a server of its own: another run beside this one, of another test, would remove it first
    with skip_without_postgres(), EmbeddedPostgres() as embedded, Run() as living:
        server = GivenPostgres(embedded.url)
        given = f"--loopsafe-url={server.url}"
        beside = GivenPostgres(server.url, living).create_database()
        killed = run(pytester, "-n1", "--max-worker-restart=0", given, "killed.py")
        assert killed.ret != 0
        left = {used(pytester)[0][1], *built(pytester)}
        assert left <= {*databases(server)}

        run(pytester, "-n1", given, "plain.py").assert_outcomes(passed=1)

        there = {*databases(server)}
        assert not there & {*left, *(line[1] for line in used(pytester)), *built(pytester)}
        assert make_url(beside).database in there


# -- cleaning


@pytest.mark.parametrize("url", ["", "sqlite://"])
@pytest.mark.parametrize("more", [(), ("-o", "loopsafe_clean=template"), ("-p", "no:randomly")])
def test_a_committed_test_begins_with_empty_tables(
    pytester: pytest.Pytester, url: str, more: tuple[str, ...]
) -> None:
    pytester.makepyfile(CLEAN)

    run(pytester, "-p", "no:xdist", *more, f"--loopsafe-url={url}").assert_outcomes(passed=3)


@pytest.mark.parametrize("by", ["marker", "ini", "rows of the schema"])
def test_a_test_may_have_a_database_of_its_own(pytester: pytest.Pytester, by: str) -> None:
    mark = '@pytest.mark.loopsafe_clean("template")' if by == "marker" else ""
    rows = 1 if by == "rows of the schema" else 0
    more = ["-o", "loopsafe_clean=template"] if by == "ini" else []
    if rows:
        insert = 'await database.execute("INSERT INTO things (name) VALUES (1)")'
        build = "async def built(database):"
        pytester.makeconftest(CONFTEST.replace(build, f"{build}\n    {insert}"))
    pytester.makepyfile(DIFFERENT.format(mark=mark, rows=rows))

    run(pytester, "--loopsafe-url=sqlite://", *more).assert_outcomes(passed=3)


@pytest.mark.parametrize("mark", ['"sometimes"', ""])
def test_another_way_of_cleaning_is_refused(pytester: pytest.Pytester, mark: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.loopsafe_clean({mark})
        def test_one(loopsafe_db_committed): ...
        """
    )

    result = run(pytester, "--loopsafe-url=sqlite://")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*loopsafe_clean is 'truncate' or 'template', not *"])


# -- which server


@pytest.mark.parametrize("by", ["option", "environment", "ini"])
def test_a_given_server_is_used_and_left_as_it_was(
    pytester: pytest.Pytester,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    server = GivenPostgres(postgres_server.url)
    elsewhere = "postgresql://nobody@127.0.0.1:1/none"
    more = []
    if by == "option":
        more = [f"--loopsafe-url={server.url}"]
        monkeypatch.setenv("LOOPSAFE_TEST_URL", elsewhere)
    elif by == "environment":
        more = ["-o", f"loopsafe_url={elsewhere}"]
        monkeypatch.setenv("LOOPSAFE_TEST_URL", server.url)
    else:
        more = ["-o", f"loopsafe_url={server.url}"]
    pytester.makepyfile(
        """
        import asyncio

        def test_one(note):
            asyncio.run(note())
        """
    )

    run(pytester, *more).assert_outcomes(passed=1)

    assert used(pytester)[0][3] == server.url
    assert not {used(pytester)[0][1], *built(pytester)} & {*databases(server)}


def test_a_run_on_sqlite_has_no_server_to_give(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(loopsafe_postgres): ...")

    result = run(pytester, "--loopsafe-url=sqlite+aiosqlite://", "-rs")

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*this run is on SQLite*"])


def test_workers_share_the_template_of_sqlite(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(CLEAN)

    run(pytester, "-n2", "--loopsafe-url=sqlite://").assert_outcomes(passed=3)

    assert len(built(pytester)) == 1


# -- nobody pays for it


def test_a_project_that_uses_no_fixture_imports_no_driver(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(PLAIN)
    pytester.makeconftest("")

    run(pytester, "-p", "no:xdist").assert_outcomes(passed=1)


def test_a_bad_schema_names_the_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(loopsafe_db_url): ...")
    pytester.makeconftest(CONFTEST.replace("[metadata, built]", "metadata.tables"))

    result = run(pytester, "--loopsafe-url=sqlite://")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the fixture loopsafe_db_schema gave *"])
