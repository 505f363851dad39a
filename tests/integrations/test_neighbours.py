"""Web servers with processes: the handle of a module, used before a fork, works in each process."""

from __future__ import annotations

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

from tests.docs.test_docs import ROOT
from tests.integrations.neighbours_page import row_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 30.0
# The master runs a query at import, so a fork inherits a warm connection.
APP = """
import asyncio, atexit, itertools, json, os, weakref
from concurrent.futures import ThreadPoolExecutor

from loopsafe_db import get_database

db = get_database()
atexit.register(lambda: open(f"exit-{os.getpid()}", "w").close())
BACKEND = "SELECT pg_backend_pid()"
with ThreadPoolExecutor(1) as thread:  # uvicorn imports this in a loop
    master = {"pid": os.getpid(), "backend": thread.submit(lambda: asyncio.run(db.fetch_val(BACKEND))).result()}


loops, serials = weakref.WeakKeyDictionary(), itertools.count()


async def look():
    backend = await db.fetch_val(BACKEND)
    loop = loops.setdefault(asyncio.get_running_loop(), next(serials))
    return json.dumps({"pid": os.getpid(), "backend": backend, "loop": loop, "master": master}).encode()


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
STARTS = {"pyuwsgi": ("-c", "import pyuwsgi; pyuwsgi.run()")}  # no module in Python


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
    row = row_of(name.split()[0])
    forked = [each for each in answers if each["pid"] != each["master"]["pid"]]
    assert all(each["backend"] != each["master"]["backend"] for each in forked)
    assert row.processes.startswith("forked after your" if forked else "each imports your")
    loops = {(each["pid"], each["loop"]) for each in answers}
    makes_each = row.loop.startswith("a new one per request")
    assert len(loops) == len(answers if makes_each else backends), row.loop
    warm = all(len(of_process) == 1 for of_process in backends.values())
    assert warm is row.connections.startswith("warm"), backends
    exits = {(tmp_path / f"exit-{pid}").exists() for pid in backends}
    assert exits <= row.exit_handlers
