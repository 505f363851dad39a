"""Servers and queues beside those with a how-to: the handle of a module, used before a fork, works in each process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db import Database
from tests.docs.test_docs import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 30.0
# The master runs a query at import, so a fork inherits a warm connection.
APP = """
import asyncio, atexit, json, os
from concurrent.futures import ThreadPoolExecutor

from loopsafe_db import get_database

db = get_database()
atexit.register(lambda: open(f"exit-{os.getpid()}", "w").close())
BACKEND = "SELECT pg_backend_pid()"
with ThreadPoolExecutor(1) as thread:  # uvicorn imports this in a loop
    master = {"pid": os.getpid(), "backend": thread.submit(lambda: asyncio.run(db.fetch_val(BACKEND))).result()}


async def look():
    backend = await db.fetch_val(BACKEND)
    return json.dumps({"pid": os.getpid(), "backend": backend, "master": master}).encode()


def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [asyncio.run(look())]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = await look()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""
# It kills a worker that has not ended by then; see the page.
UWSGI = (
    "--http-socket {address} --master --processes 2 --die-on-term --worker-reload-mercy 2 "
    "--module app:wsgi"
)
SERVERS = {
    "gunicorn": ("gunicorn", "--preload --workers 2 --bind {address} app:wsgi"),
    "gunicorn and threads": (
        "gunicorn",
        "--preload --workers 2 --threads 3 --bind {address} app:wsgi",
    ),
    "hypercorn": ("hypercorn", "--workers 2 --bind {address} app:asgi"),
    "granian": ("granian", "--interface asgi --workers 2 --host 127.0.0.1 --port {port} app:asgi"),
    "uvicorn": ("uvicorn", "--workers 2 --host 127.0.0.1 --port {port} app:asgi"),
    "uWSGI": ("pyuwsgi", UWSGI),
}
IMPORTS_IN_THE_MASTER = {"gunicorn", "pyuwsgi"}
STARTS = {"pyuwsgi": ("-c", "import pyuwsgi; pyuwsgi.run()")}  # no module in Python
PROCRASTINATE = """
import asyncio, json
import procrastinate
from loopsafe_db import get_database

db = get_database()
url = db.url.set(drivername="postgresql").render_as_string(hide_password=False)
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))


@app.task
async def square(number):
    async with db.transaction():
        await db.execute("INSERT INTO squares VALUES (:n, :s)", {"n": number, "s": number * number})


async def main():
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for number in range(5):
            await square.defer_async(number=number)
        await app.run_worker_async(wait=False, concurrency=3, install_signal_handlers=False)


asyncio.run(main())
"""
PGQUEUER = """
import asyncio
import asyncpg
from pgqueuer import AsyncpgDriver, PgQueuer, Queries
from pgqueuer.types import QueueExecutionMode
from loopsafe_db import get_database

db = get_database()


async def square(job):
    number = int(job.payload)
    async with db.transaction():
        await db.execute("INSERT INTO squares VALUES (:n, :s)", {"n": number, "s": number * number})


async def main():
    connection = await asyncpg.connect(db.url.set(drivername="postgresql").render_as_string(hide_password=False))
    driver = AsyncpgDriver(connection)
    queries = Queries(driver)
    await queries.install()
    numbers = range(5)
    await queries.enqueue(["square"] * 5, [str(number).encode() for number in numbers], [0] * 5)
    queue = PgQueuer(driver)
    queue.entrypoint("square")(square)
    await queue.run(mode=QueueExecutionMode.drain)
    await connection.close()


asyncio.run(main())
"""
TASKIQ = """
import asyncio
from taskiq import InMemoryBroker
from loopsafe_db import get_database

db = get_database()
broker = InMemoryBroker()


@broker.task
async def square(number: int) -> None:
    async with db.transaction():
        await db.execute("INSERT INTO squares VALUES (:n, :s)", {"n": number, "s": number * number})


async def main():
    await broker.startup()
    for sent in [await square.kiq(number) for number in range(5)]:
        assert not (await sent.wait_result(timeout=30)).is_err
    await broker.shutdown()


asyncio.run(main())
"""


@pytest.fixture
def environment(tmp_path: Path, postgres_url: str) -> dict[str, str]:
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    return {
        **os.environ,
        "LOOPSAFE_DB_URL": postgres_url,
        "LOOPSAFE_DB_SCOPE": "auto",
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
    }


@contextmanager
def served(
    command: list[str], port: int, folder: Path, environment: dict[str, str]
) -> Iterator[str]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield f"http://127.0.0.1:{port}/"
        process.terminate()
        process.wait(PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)


def ask(url: str, folder: Path) -> dict[str, Any]:
    give_up = time.monotonic() + PATIENCE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(url, timeout=PATIENCE) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except OSError:  # it is not up yet
            assert time.monotonic() < give_up, (folder / "log").read_text()


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_with_processes_uses_the_handle_of_the_module(
    name: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    module, arguments = SERVERS[name]
    pytest.importorskip(module)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = arguments.format(address=f"127.0.0.1:{port}", port=port).split()
    command = [sys.executable, *STARTS.get(module, ("-m", module)), *words]

    with served(command, port, tmp_path, environment) as url:
        answers = [ask(url, tmp_path) for _ in range(20)]
        # Granian 2 loses a SIGTERM that comes to a worker while it starts.
        give_up = time.monotonic() + PATIENCE
        while len({each["pid"] for each in answers}) < 2 and time.monotonic() < give_up:
            answers.append(ask(url, tmp_path))

    backends: dict[int, set[int]] = {}
    for each in answers:
        backends.setdefault(each["pid"], set()).add(each["backend"])
    assert not set.intersection(*backends.values()) or len(backends) == 1
    forked = [each for each in answers if each["pid"] != each["master"]["pid"]]
    assert all(each["backend"] != each["master"]["backend"] for each in forked)
    assert bool(forked) is (module in IMPORTS_IN_THE_MASTER)
    exits = {(tmp_path / f"exit-{pid}").exists() for pid in backends}
    assert exits <= exit_handlers(name)


def exit_handlers(name: str) -> set[bool]:
    """Tell whether the table of neighbours says that the processes of a server run what was given to ``atexit``."""
    page = (ROOT / "docs/reference/neighbours.md").read_text(encoding="utf-8")
    rows = ([cell.strip() for cell in line.split("|")] for line in page.splitlines())
    (said,) = {row[5] for row in rows if len(row) == 9 and name.split()[0] in row[1]}
    return {"run": {True}, "not run": {False}, "not always run": {True, False}}[said]


@pytest.mark.parametrize(
    ("package", "code"),
    [("pgqueuer", PGQUEUER), ("procrastinate", PROCRASTINATE), ("taskiq", TASKIQ)],
)
def test_a_queue_uses_the_handle_of_the_module(
    package: str, code: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    pytest.importorskip(package)
    (tmp_path / "jobs.py").write_text(code, encoding="utf-8")
    asyncio.run(_make_table(environment["LOOPSAFE_DB_URL"]))

    done = subprocess.run(
        [sys.executable, "jobs.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr
    rows = asyncio.run(_rows(environment["LOOPSAFE_DB_URL"]))
    assert rows == [(number, number * number) for number in range(5)]


async def _make_table(url: str) -> None:
    async with Database(url) as database:
        await database.execute("CREATE TABLE squares (number int PRIMARY KEY, square int)")


async def _rows(url: str) -> list[tuple[object, ...]]:
    async with Database(url) as database:
        return [tuple(row) for row in await database.fetch_all("SELECT * FROM squares ORDER BY 1")]
