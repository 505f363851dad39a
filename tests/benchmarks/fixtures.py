"""What a database costs a test: fixtures of the plugin beside those that people write.

Those of a suite take turns: what slows the machine down for a while slows all of them. What writes files has a suite
of its own, for it slows the others down. A time is that of a whole test, set-up and tear-down included, less that of
a test without a database.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from tests.benchmarks.affinity import one_cpu, postmaster_of
from tests.benchmarks.children import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS = "`loopsafe_db`, rolled back"
KEPT = "such a handle, nothing undone"
NOTHING = "no database"

_IN_A_ROW = 10  # tests of one fixture, as in most suites: what others do leaves the caches cold
_TABLES = ["things", *(f"more_{number}" for number in range(9))]
_CONFTEST = f"""
import asyncio, json, os, random, time
from collections import defaultdict
import asyncpg, pytest
from sqlalchemy import make_url

PERIODS = defaultdict(list)
if cpu := os.environ.get("BENCH_CPU"):
    os.sched_setaffinity(0, {{int(cpu)}})

def pytest_collection_modifyitems(items):
    def place(item):
        number = item.callspec.params["number"]
        return number // {_IN_A_ROW}, random.Random(f"{{number // {_IN_A_ROW}}} {{item.originalname}}").random(), number
    items.sort(key=place)

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    began = time.perf_counter()
    done = yield
    PERIODS[item.originalname].append(time.perf_counter() - began)
    return done

def pytest_sessionfinish():
    with open(os.environ["BENCH_OUTPUT"], "w") as output:
        json.dump(PERIODS, output)

@pytest.fixture(scope="session")
def loopsafe_db_schema():
    async def create(database):
        for table in {_TABLES}:
            await database.execute(f"CREATE TABLE {{table}} (id int PRIMARY KEY)")
    return create

@pytest.fixture(scope="session")
def url_of(loopsafe_db_url):
    def url_of(database):
        return make_url(loopsafe_db_url).set(database=database).render_as_string(hide_password=False)
    return url_of

@pytest.fixture(scope="session", autouse=True)
def bare(loopsafe_db_url, url_of):
    async def copy():  # while nobody is connected to the original
        server = await asyncpg.connect(url_of("postgres"))
        await server.execute("DROP DATABASE IF EXISTS bare")
        await server.execute(f"CREATE DATABASE bare TEMPLATE {{make_url(loopsafe_db_url).database}}")
        await server.close()
    asyncio.run(copy())
"""
_HEAD = """
import asyncpg
import pytest
import pytest_asyncio
from loopsafe_db import Database
"""
_STYLE = """
$fixture
@pytest.mark.parametrize("number", range($tests))
$mark
async def test_$name($name, number):
    db = $name
    if db is not None:
        await db.execute("INSERT INTO things VALUES (1) ON CONFLICT DO NOTHING")
        fetch = db.fetch if hasattr(db, "fetch") else db.fetch_all
        assert len(await fetch("SELECT id FROM things")) == 1
"""
_NO_DATABASE = """
@pytest.fixture
def nothing():
    return None
"""
_HANDLE = """
@pytest.fixture(scope="session")
def kept(loopsafe_db_url):
    return Database(loopsafe_db_url)
"""
_CONNECTION_PER_TEST = """
@pytest_asyncio.fixture
async def $name(loopsafe_db_url):
    connection = await asyncpg.connect(loopsafe_db_url)
    $before
    yield connection
    $after
    await connection.close()
"""
_OWN_DATABASE = """
@pytest.fixture
def own(loopsafe_db_committed):
    return loopsafe_db_committed
"""
_BARE_DATABASE = """
@pytest_asyncio.fixture
async def bare_one(url_of):
    server = await asyncpg.connect(url_of("postgres"))
    await server.execute("CREATE DATABASE own TEMPLATE bare")
    connection = await asyncpg.connect(url_of("own"))
    yield connection
    await connection.close()
    await server.execute("DROP DATABASE own")
    await server.close()
"""


@dataclass(frozen=True)
class _Style:
    """A fixture.

    Attributes:
        name: That of the fixture; it is made by `source`, or one of the plugin's.
    """

    title: str
    name: str
    source: str = ""
    mark: str = ""

    def write(self, tests: int) -> str:
        """Give the source of its tests."""
        parts = {"fixture": self.source, "name": self.name, "mark": self.mark, "tests": tests}
        return Template(_STYLE).substitute(parts)


def _connection(title: str, name: str, before: str, after: str) -> _Style:
    source = Template(_CONNECTION_PER_TEST).substitute(name=name, before=before, after=after)
    return _Style(title, name, source)


_LIGHT = (
    _Style(NOTHING, "nothing", _NO_DATABASE),
    _Style(OURS, "loopsafe_db"),
    _Style(KEPT, "kept", _HANDLE),
    _connection(
        "a connection for each test, rolled back",
        "rolled_back",
        "transaction = connection.transaction(); await transaction.start()",
        "await transaction.rollback()",
    ),
)
_HEAVY = (
    _Style("`loopsafe_db_committed`, emptied", "loopsafe_db_committed"),
    _connection(
        "a connection for each test, `TRUNCATE` of all tables (as with pytest-databases)",
        "truncated",
        "pass",
        f'await connection.execute("TRUNCATE {", ".join(_TABLES)}")',
    ),
    _Style(
        "`loopsafe_db_committed`, a database for each test",
        "own",
        _OWN_DATABASE,
        '@pytest.mark.loopsafe_clean("template")',
    ),
    _Style(
        "a database for each test, from a template (as pytest-postgresql)",
        "bare_one",
        _BARE_DATABASE,
    ),
)
STYLES = (*_LIGHT, *_HEAVY)


@dataclass(frozen=True)
class Cost:
    """What a style of fixture costs a test.

    Attributes:
        milliseconds: Median over the tests.
        ratio: To ours.
    """

    style: str
    milliseconds: float
    ratio: float


def compare(url: str, tests: int) -> list[Cost]:
    """Run `tests` tests with each fixture.

    Args:
        url: A server whose user may create databases.
    """
    periods = {}
    with one_cpu(postmaster_of(url)) as settings:
        for styles in (_LIGHT, _HEAVY):
            periods.update(_run(styles, url, tests, settings))
    settled = {
        style.title: statistics.median(periods[f"test_{style.name}"][tests // 5 :])
        for style in STYLES
    }
    ours = settled[OURS] - settled[NOTHING]
    return [
        Cost(title, (whole - settled[NOTHING]) * 1000, (whole - settled[NOTHING]) / ours)
        for title, whole in settled.items()
        if title != NOTHING
    ]


def section(costs: Sequence[Cost]) -> str:
    """Write the costs as a section of the page."""
    took = {one.style: one.milliseconds for one in costs}
    head = (
        "### What a database costs a test",
        "",
        "A test inserts a row and reads it, in a database of ten tables. The time is that of the whole test, what "
        "comes before and after it included, less that of a test without a database. Fixtures take turns on one "
        f"server. So undoing it all costs {took[OURS] - took[KEPT]:.2f} ms: the first line less the second.",
        "",
        "| fixture | median | ÷ `loopsafe_db` |",
        "| --- | ---: | ---: |",
    )
    rows = (f"| {one.style} | {one.milliseconds:.2f} ms | {one.ratio:.1f} |" for one in costs)
    return "\n".join([*head, *rows])


def _run(
    styles: Sequence[_Style], url: str, tests: int, settings: dict[str, str]
) -> dict[str, list[float]]:
    """Give the seconds of each test, by test function, in order."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "conftest.py").write_text(_CONFTEST, encoding="utf-8")
        suite = "".join([_HEAD, *(style.write(tests) for style in styles)])
        (folder / "test_it.py").write_text(suite, encoding="utf-8")
        output = folder / "output.json"
        loops = ("-oasyncio_mode=auto", "-oasyncio_default_fixture_loop_scope=function")
        options = (*loops, "-oloopsafe_clean=truncate", "--loopsafe-url", url)
        plain = ("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist", "-q")
        command = [sys.executable, "-m", "pytest", *plain, *options, str(folder)]
        settings = {**settings, "BENCH_OUTPUT": str(output), "PYTHONPATH": str(ROOT)}
        environment = {**os.environ, **settings}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the suite failed:\n{done.stdout[-2000:]}")
        periods: dict[str, list[float]] = json.loads(output.read_text(encoding="utf-8"))
    return periods
