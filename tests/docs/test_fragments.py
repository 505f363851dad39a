"""Code blocks that are no programs: each runs with what stands around it in a program of a reader's.

A fence of ``python`` alone is such a block, and has an entry in `FRAGMENTS`, or says in a comment of the page why it
does not run: ``<!-- not run: it needs an account at Azure -->``. A fence ``python something`` is run by a test that
names it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from tests.docs.test_docs import PAGES, ROOT, fences, name_of

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```python(?P<kind>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# As `python -m asyncio` does: `await` wherever a reader would have it in a coroutine of his own.
RUN = """
import ast, asyncio, inspect, sys

async def run(code):
    if inspect.isawaitable(done := eval(code, {"__name__": "__main__"})):
        await done

with open(sys.argv[1]) as page:
    code = compile(page.read(), sys.argv[1], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
asyncio.run(run(code))
"""
DATABASE = """
import asyncio, contextvars, json, os
from decimal import Decimal
from functools import partial
from loopsafe_db import Database, LoopLocal, Timeouts, Token, configure, get_database

url = os.environ["LOOPSAFE_DB_URL"]
db = get_database()
"""
TABLES = (
    DATABASE
    + """
for table in ("meetings", "rooms"):
    await db.execute(f"DROP TABLE IF EXISTS {table}")
    await db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY)")
rows = [(1,), (2,)]
"""
)
HTTP = """
import asyncio, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
import aiohttp, httpx
from loopsafe_db import LoopLocal

class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_): pass

server = HTTPServer(("127.0.0.1", 0), Answers)
threading.Thread(target=server.serve_forever, daemon=True).start()
answers = []
"""


@dataclass(frozen=True)
class Fragment:
    """What makes a program of a block.

    Attributes:
        before: Code in front of it.
        after: Code behind it, which looks at what it has done.
        instead: What stands for words of the page that are of the reader's own world.
        wants: Packages without which it is skipped.
    """

    before: str = DATABASE
    after: str = ""
    instead: dict[str, str] = field(default_factory=dict)
    wants: tuple[str, ...] = ()


FRAGMENTS = {
    ("README.md", 0): Fragment(
        """
import datetime, httpx
from dataclasses import dataclass
from loopsafe_db import Database

@dataclass
class Meeting:
    id: int
    title: str
    day: str

day = "2026-11-02"
make_client, close_client = httpx.AsyncClient, httpx.AsyncClient.aclose
values = {"title": "Stand-up", "day": day}
told = []

async def transfer():
    return await Database("sqlite:///meetings.db").fetch_val("SELECT count(*) FROM meetings")

async def make_tables():
    async with Database("sqlite:///meetings.db") as first:
        await first.execute("CREATE TABLE meetings (id INTEGER PRIMARY KEY, title text, day text)")

await make_tables()
""",
        "assert await db.fetch_val('SELECT count(*) FROM meetings') == 3; http.get()",
        wants=("aiosqlite",),
    ),
    ("docs/tutorial/first-steps.md", 0): Fragment(""),
    ("docs/explanation/reliability.md", 0): Fragment(
        after="assert await db.fetch_val('SELECT 1') == 1"
    ),
    ("docs/reference/settings.md", 0): Fragment(
        DATABASE + "import boto3\nHOST, USER = 'db.example', 'app'",
        "assert HOST in password().value and repr(db)",
        wants=("boto3",),
    ),
    ("docs/reference/settings.md", 1): Fragment(
        DATABASE + "db = Database('sqlite:///meetings.db')",
        "assert os.path.exists('backups/meetings.db')",
        {"/backups/": "backups/"},
        wants=("aiosqlite",),
    ),
    ("docs/reference/errors.md", 0): Fragment(after="await job()"),
    ("docs/reference/errors.md", 1): Fragment(
        TABLES
        + "async def store(db, row): await db.execute('INSERT INTO rooms VALUES (:n)', {'n': row[0]})",
        "assert await db.fetch_val('SELECT count(*) FROM rooms') == 2",
    ),
    ("docs/reference/errors.md", 2): Fragment(
        TABLES + "from asyncpg.exceptions import UniqueViolationError as UniqueViolation\n"
        "await db.execute('INSERT INTO rooms VALUES (1)')",
        "assert await db.fetch_val('SELECT count(*) FROM meetings') == 1",
    ),
    ("docs/reference/errors.md", 3): Fragment(
        TABLES, "assert await db.fetch_val('SELECT count(*) FROM meetings') == 2"
    ),
    ("docs/reference/errors.md", 4): Fragment(
        DATABASE + "seen = []\n"
        "async def audit(): seen.append(await db.fetch_val('SELECT 1'))\n"
        "def report(): seen.append(asyncio.run(db.fetch_val('SELECT 2')))\n",
        "while len(seen) < 2: await asyncio.sleep(0.01)",
    ),
    ("docs/reference/urls.md", 0): Fragment(
        after="assert await db.fetch_val('''SELECT jsonb '{\"a\": 1}' ''') == {'a': 1}"
    ),
    ("docs/reference/urls.md", 1): Fragment(
        after="assert await db.fetch_val('SELECT jsonb \\'1.5\\'') == Decimal('1.5')"
    ),
    ("docs/how-to/from-sqlalchemy.md", 0): Fragment(
        after="assert create_async_engine.__module__.startswith('loopsafe_db')"
    ),
    ("docs/how-to/from-psycopg-pool.md", 0): Fragment(
        DATABASE + "from psycopg_pool import AsyncConnectionPool\nconninfo = url",
        "await pool.close(); assert await db.fetch_val('SELECT 1') == 1",
        {"postgresql+psycopg://user:password@host/name": "{psycopg}"},
        wants=("psycopg_pool",),
    ),
    ("docs/how-to/from-asyncpg-pool.md", 0): Fragment(
        DATABASE + "import asyncpg\ndsn = url",
        "await pool.close(); assert await db.fetch_val('SELECT 1') == 1",
    ),
    ("docs/how-to/monitoring.md", 0): Fragment(
        after="assert await db.fetch_val('SELECT 1') == 1", wants=("opentelemetry.instrumentation",)
    ),
    ("docs/how-to/monitoring.md", 1): Fragment(
        DATABASE + "dsn = 'http://key@127.0.0.1:1/1'",
        "assert await db.fetch_val('SELECT 1') == 1",
        wants=("sentry_sdk",),
    ),
    ("docs/how-to/run-a-transaction-again.md", 0): Fragment(after="await transfer(1, 2, 3)"),
    ("docs/how-to/other-clients.md", 0): Fragment(
        HTTP,
        "assert answer.status == 204; await (await session.aget()).close(); await http.get().aclose()",
        {"https://example.org": "{http}"},
        wants=("aiohttp", "httpx"),
    ),
    ("docs/how-to/pgbouncer.md", 0): Fragment(after="assert 'pgbouncer' in repr(db)"),
    ("docs/how-to/from-databases.md", 0): Fragment(
        after="assert DatabaseURL('sqlite:///a.db').database == 'a.db'"
    ),
    ("docs/how-to/passwords-and-tls.md", 0): Fragment(
        "import os", "assert HOST in password().value", wants=("boto3",)
    ),
}


def blocks(page: Path) -> list[re.Match[str]]:
    """Give the fences of a page that are no whole programs."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [block for block in found if not block["kind"]]


ALL = {
    (name_of(page), number): block for page in PAGES for number, block in enumerate(blocks(page))
}


def test_each_block_runs_in_a_test_or_says_why_not() -> None:
    run_elsewhere = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )
    kinds = {
        block["kind"]
        for page in PAGES
        for block in BLOCK.finditer(page.read_text(encoding="utf-8"))
    }

    assert {place for place, block in ALL.items() if not block["reason"]} == FRAGMENTS.keys()
    for kind in kinds - {""}:
        quoted = (f'"python{kind}"', f'"{kind.strip()}"')
        assert any(each in run_elsewhere for each in quoted), kind


@pytest.mark.parametrize(("page", "number"), FRAGMENTS)
def test_a_block_does_what_its_page_says(
    page: str, number: int, postgres_url: str, tmp_path: Path
) -> None:
    fragment, text = FRAGMENTS[page, number], ALL[page, number]["text"]
    for package in fragment.wants:
        pytest.importorskip(package)
    for words, stand_in in fragment.instead.items():
        assert words in text
        text = text.replace(words, stand_in)
    text = text.replace("{psycopg}", postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    text = text.replace('"{http}"', 'f"http://127.0.0.1:{server.server_port}"')
    (tmp_path / "backups").mkdir()
    program = tmp_path / "block.py"
    program.write_text("\n".join((fragment.before, text, fragment.after)), encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-c", RUN, str(program)],
        cwd=tmp_path,
        env={
            **os.environ,
            "LOOPSAFE_DB_URL": postgres_url,
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "eu-central-1",
        },
        input="\n",
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_the_suite_of_a_driver_runs_as_its_page_says(mariadb_url: str, tmp_path: Path) -> None:
    page = ROOT / "docs/how-to/write-a-driver.md"
    ((beside, suite),) = zip(
        fences(page, "python beside"), fences(page, "python suite"), strict=True
    )
    driver = "from loopsafe_db.drivers.generic import GenericDriver\nDRIVER = GenericDriver('mysql+aiomysql')"
    url = make_url(mariadb_url).set(drivername="mysql+mydriver")
    named = "mysql+mydriver://user:password@127.0.0.1/test"
    assert named in suite
    (tmp_path / "conftest.py").write_text(beside, encoding="utf-8")
    (tmp_path / "mydriver.py").write_text(driver, encoding="utf-8")
    (tmp_path / "test_mydriver.py").write_text(
        suite.replace(named, url.render_as_string(hide_password=False)), encoding="utf-8"
    )

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--timeout",
            "60",
            "-p",
            "no:randomly",
            "-k",
            "rows or exit",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout
