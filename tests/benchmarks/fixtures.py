"""What a database costs a test: fixtures of the plugin beside those that people write, in suites of the same tests.

Each suite is a pytest of its own; they take turns. A time is that of a whole test, set-up and tear-down included,
less that of a test without a database.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from tests.benchmarks.children import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS = "`loopsafe_db`, rolled back"
KEPT = "the same handle, nothing undone"
NOTHING = "no database"

_CONFTEST = """
import json, os, statistics, time
import pytest

PERIODS = []

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    began = time.perf_counter()
    done = yield
    PERIODS.append(time.perf_counter() - began)
    return done

def pytest_sessionfinish():
    settled = PERIODS[len(PERIODS) // 5:]  # without what is started once
    with open(os.environ["BENCH_OUTPUT"], "w") as output:
        json.dump(statistics.median(settled), output)

@pytest.fixture(scope="session")
def loopsafe_db_schema():
    async def create(database):
        await database.execute("CREATE TABLE things (id int PRIMARY KEY)")
        for number in range(9):
            await database.execute(f"CREATE TABLE more_{number} (id int PRIMARY KEY)")
    return create

"""
_TEST = """
import pytest

@pytest.mark.parametrize("number", range($tests))
async def test_it(db, number):
    if db is not None:
        await db.execute("INSERT INTO things VALUES (1) ON CONFLICT DO NOTHING")
        fetch = db.fetch if hasattr(db, "fetch") else db.fetch_all
        assert len(await fetch("SELECT id FROM things")) == 1
"""
_CONNECTION_PER_TEST = """
import asyncpg
import pytest_asyncio

@pytest_asyncio.fixture
async def db(loopsafe_db_url):
    connection = await asyncpg.connect(loopsafe_db_url)
    $before
    yield connection
    $after
    await connection.close()
"""
_DATABASE_PER_TEST = """
import asyncpg
import pytest_asyncio
from sqlalchemy import make_url

@pytest_asyncio.fixture
async def db(loopsafe_db_url):
    template = make_url(loopsafe_db_url)
    def url(name):
        return template.set(database=name).render_as_string(hide_password=False)
    server = await asyncpg.connect(url("postgres"))
    await server.execute(f"CREATE DATABASE own TEMPLATE {template.database}")
    connection = await asyncpg.connect(url("own"))
    yield connection
    await connection.close()
    await server.execute("DROP DATABASE own")
    await server.close()
"""
_TABLES = ", ".join(["things", *(f"more_{number}" for number in range(9))])
_PLUGIN = """
@pytest.fixture
def db({fixture}):
    return {fixture}
"""


def _connection_per_test(before: str, after: str) -> str:
    return Template(_CONNECTION_PER_TEST).substitute(before=before, after=after)


STYLES = {
    NOTHING: "@pytest.fixture\ndef db():\n    return None\n",
    OURS: _PLUGIN.format(fixture="loopsafe_db"),
    KEPT: _PLUGIN.format(fixture="loopsafe_db_handle"),
    "`loopsafe_db_committed`, emptied": _PLUGIN.format(fixture="loopsafe_db_committed"),
    "`loopsafe_db_committed`, a database for each test": _PLUGIN.format(
        fixture="loopsafe_db_committed"
    ),
    "a connection for each test, rolled back": _connection_per_test(
        "transaction = connection.transaction(); await transaction.start()",
        "await transaction.rollback()",
    ),
    "a connection for each test, `TRUNCATE` of all tables (as with pytest-databases)": (
        _connection_per_test("pass", f'await connection.execute("TRUNCATE {_TABLES}")')
    ),
    "a database for each test, from a template (as pytest-postgresql)": _DATABASE_PER_TEST,
}
_OPTIONS = {
    "`loopsafe_db_committed`, a database for each test": ("-oloopsafe_clean=template",),
}


@dataclass(frozen=True)
class Cost:
    """What a style of fixture costs a test.

    Attributes:
        milliseconds: Median over the rounds.
        ratio: To ours, in the same round; median over the rounds.
    """

    style: str
    milliseconds: float
    ratio: float


def compare(url: str, rounds: int, tests: int) -> list[Cost]:
    """Run every suite `rounds` times, in an order that changes.

    Args:
        url: A server whose user may create databases.
    """
    seconds: list[dict[str, float]] = []
    for _ in range(rounds):
        order = random.sample(list(STYLES), len(STYLES))
        whole = {style: _run(style, url, tests) for style in order}
        seconds.append({style: whole[style] - whole[NOTHING] for style in STYLES})
    return [
        Cost(
            style,
            statistics.median(one[style] for one in seconds) * 1000,
            statistics.median(one[style] / one[OURS] for one in seconds),
        )
        for style in STYLES
        if style != NOTHING
    ]


def section(costs: Sequence[Cost]) -> str:
    """Write the costs as a section of the page."""
    took = {one.style: one.milliseconds for one in costs}
    head = (
        "### What a database costs a test",
        "",
        "A test inserts a row and reads it, in a database of ten tables. The time is that of the whole test, what "
        "comes before and after it included, less that of a test without a database; all suites are on one server. "
        f"So undoing it all costs {took[OURS] - took[KEPT]:.2f} ms: the first line less the second.",
        "",
        "| fixture | median | ÷ `loopsafe_db` |",
        "| --- | ---: | ---: |",
    )
    rows = (f"| {one.style} | {one.milliseconds:.2f} ms | {one.ratio:.1f} |" for one in costs)
    return "\n".join([*head, *rows])


def _run(style: str, url: str, tests: int) -> float:
    """Give the median time of one test, in seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "conftest.py").write_text(_CONFTEST + STYLES[style], encoding="utf-8")
        (folder / "test_it.py").write_text(Template(_TEST).substitute(tests=tests), "utf-8")
        output = folder / "output.json"
        options = ("-oasyncio_mode=auto", "-oasyncio_default_fixture_loop_scope=function")
        plain = ("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist", "-q")
        environment = {**os.environ, "BENCH_OUTPUT": str(output), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pytest", *plain, *options, *_OPTIONS.get(style, ())]
        done = subprocess.run(
            [*command, "--loopsafe-url", url, str(folder)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the suite for {style!r} failed:\n{done.stdout[-2000:]}")
        median: float = json.loads(output.read_text(encoding="utf-8"))
        return median
