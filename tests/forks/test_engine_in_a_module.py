"""An engine and a sessionmaker at module level: every kind of process uses them, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database
from tests.integrations.redis_server import redis_server
from tests.integrations.test_neighbours import ask, served

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

MODULE = """
import asyncio, os

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import async_sessionmaker

from loopsafe_db import create_async_engine

engine = create_async_engine(os.environ["ENGINE_URL"], pool_size=2, max_overflow=0)
SessionLocal = async_sessionmaker(engine, expire_on_commit=False)
heard = []


@sa.event.listens_for(engine.sync_engine, "connect")
def connected(connection, record):
    heard.append(os.getpid())


async def ask(token):
    async with SessionLocal() as session:
        return (await session.execute(sa.text("SELECT CAST(:it AS text)"), {"it": token})).scalar_one()


def work(first):
    for number in range(20):
        token = f"{os.getpid()}-{first}-{number}"
        assert asyncio.run(ask(token)) == token


def in_child():
    heard.clear()
    work("child")
    assert heard == [os.getpid()], heard


async def report(token):
    found = await ask(token)
    return {"token": found, "pid": os.getpid(), "heard": heard}


def note_parent(name):
    # Who asks, and on which connection.
    async def backend():
        async with SessionLocal() as session:
            return (await session.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one()

    with open(name, "w") as file:
        file.write(f"{os.getpid()} {asyncio.run(backend())}")
    heard.clear()
"""
# In each, the parent has queried before its children are forked, and does so again after them.
CELERY = """
import asyncio, multiprocessing
from celery import Celery
from celery.signals import worker_init, worker_shutdown
import module

app = Celery("jobs", broker="filesystem://", backend="file://results")
app.conf.broker_transport_options = {
    name: "queue" for name in ("data_folder_in", "data_folder_out", "control_folder")
}
worker_init.connect(lambda **_: module.note_parent("before"), weak=False)
worker_shutdown.connect(lambda **_: module.note_parent("after"), weak=False)


@app.task
def echo(token):
    return asyncio.run(module.report(token))
"""
RUN_CELERY = """
import json, subprocess, sys
from jobs import echo

options = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
command = [sys.executable, "-m", "celery", "-A", "jobs", "worker", "-c", "2", *options]
worker = subprocess.Popen(command, stdout=subprocess.DEVNULL)
results = [echo.delay(f"token-{n}") for n in range(40)]
print(json.dumps([result.get(timeout=60) for result in results]))
worker.terminate()
assert worker.wait(60) == 0
"""
RQ = """
import asyncio
import module

def echo(token):
    return asyncio.run(module.report(token))
"""
RUN_RQ = """
import json, sys
import redis, rq
import jobs, module

module.note_parent("before")
connection = redis.Redis.from_url(sys.argv[1])
queue = rq.Queue(connection=connection)
sent = [queue.enqueue(jobs.echo, f"token-{n}") for n in range(20)]
rq.Worker([queue], connection=connection).work(burst=True, logging_level="WARNING")  # one fork for each
print(json.dumps([job.return_value(refresh=True) for job in sent]))
module.note_parent("after")
"""
CONDUCTOR = """
import asyncio, os, signal, threading
from conductor.client.automator.task_handler import TaskHandler
from conductor.client.configuration.configuration import Configuration
from conductor.client.worker.worker_task import worker_task
import module


@worker_task("sync", thread_count=4, poll_interval_millis=20)
def in_a_thread(token: str) -> dict:
    return asyncio.run(module.report(token))


@worker_task("async", thread_count=4, poll_interval_millis=20)
async def in_a_loop(token: str) -> dict:
    return await module.report(token)


if __name__ == "__main__":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    module.note_parent("before")
    configuration = Configuration(server_api_url=os.environ["CONDUCTOR"])
    with TaskHandler(configuration=configuration, scan_for_annotated_workers=True) as handler:
        handler.start_processes()
        stop.wait()
    module.note_parent("after")
"""
APP = """
import json
import module

module.note_parent("before")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    told = json.dumps(await module.report(scope["path"].strip("/"))).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": told})
"""
GUNICORN = """
import module

worker_class, workers, preload_app = "uvicorn.workers.UvicornWorker", 2, True
on_exit = lambda server: module.note_parent("after")
"""


@pytest.fixture
def folder(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module, and the processes' way to the server."""
    # Not by the environment: a fork server may run already.
    text = MODULE.replace('os.environ["ENGINE_URL"]', repr(postgres_url))
    (tmp_path / "module.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def module(folder: Path) -> Any:
    """The module, imported anew."""
    import module  # type: ignore[import-not-found]

    yield module
    del sys.modules["module"]


def sessions(postgres_url: str) -> int:
    """Count the sessions of others on the database, once those that end have ended."""
    name = sa.make_url(postgres_url).database
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND pid != pg_backend_pid()"
    )

    async def count() -> int:
        found = 1
        async with Database(postgres_url) as database:
            for _ in range(100):
                if not (found := await database.fetch_val(query, {"name": name})):
                    break
                await asyncio.sleep(0.05)
        return int(found)

    return asyncio.run(count())


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_children_of_each_kind_use_it_and_its_listeners(
    module: ModuleType, postgres_url: str, method: str
) -> None:
    context: Any = multiprocessing.get_context(method)
    module.work("before")
    children = [context.Process(target=module.in_child) for _ in range(3)]
    for child in children:
        child.start()
    module.work("meanwhile")
    for child in children:
        child.join()
    module.work("after")
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert module.heard == [os.getpid()]
    asyncio.run(module.engine.dispose())
    assert sessions(postgres_url) == 0


def test_a_thousand_loops_share_a_connection(module: ModuleType, postgres_url: str) -> None:
    for _ in range(50):  # of 20 each
        module.work("loop")
    assert module.heard == [os.getpid()]
    asyncio.run(module.engine.dispose())
    assert sessions(postgres_url) == 0


def test_eight_threads_share_two_connections(module: ModuleType, postgres_url: str) -> None:
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            module.work(first)
        except BaseException as error:  # noqa: BLE001 (told by the test's own thread)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(module.heard) <= 2
    asyncio.run(module.engine.dispose())
    assert sessions(postgres_url) == 0


def run(folder: Path, *command: str) -> list[dict[str, Any]]:
    """Run a program, which prints what its children have told."""
    ran = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=110
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    told: list[dict[str, Any]] = json.loads(ran.stdout)
    return told


def check(folder: Path, told: list[dict[str, Any]], postgres_url: str) -> None:
    """Each child had its own token and heard of its connections; the parent kept its own, and nobody left one."""
    parent = (folder / "before").read_text()
    assert (folder / "after").read_text() == parent
    assert [each["token"] for each in told] == [f"token-{n}" for n in range(len(told))]
    assert int(parent.split()[0]) not in {each["pid"] for each in told}
    for each in told:
        assert each["heard"] in ([each["pid"]], [each["pid"]] * 2)  # pool_size is 2
    assert sessions(postgres_url) == 0


@pytest.mark.slow
def test_children_of_celery_use_what_their_parent_has_queried_with(
    folder: Path, postgres_url: str
) -> None:
    pytest.importorskip("celery")
    (folder / "jobs.py").write_text(CELERY)
    for name in ("queue", "results"):
        (folder / name).mkdir()
    check(folder, run(folder, "-c", RUN_CELERY), postgres_url)


@pytest.mark.slow
def test_work_horses_of_rq_use_what_their_parent_has_queried_with(
    folder: Path, postgres_url: str
) -> None:
    pytest.importorskip("rq")
    (folder / "jobs.py").write_text(RQ)
    with redis_server() as url:
        told = run(folder, "-c", RUN_RQ, url)
    assert len({each["pid"] for each in told}) == len(told)
    check(folder, told, postgres_url)


@pytest.mark.slow
def test_uvicorns_workers_use_what_gunicorn_has_preloaded(folder: Path, postgres_url: str) -> None:
    pytest.importorskip("gunicorn")
    pytest.importorskip("uvicorn")
    (folder / "app.py").write_text(APP)
    (folder / "conf.py").write_text(GUNICORN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "gunicorn", "-c", "conf.py", "--bind", f"127.0.0.1:{port}", "app:app"]
    with (
        served([sys.executable, *words], port, folder, dict(os.environ)) as url,
        ThreadPoolExecutor(8) as threads,
    ):
        tokens = [f"token-{n}" for n in range(40)]
        told = list(threads.map(lambda token: ask(f"{url}{token}", folder), tokens))
    assert "Traceback" not in (folder / "log").read_text()
    check(folder, told, postgres_url)


@pytest.mark.slow
def test_workers_of_conductor_use_what_their_parent_has_queried_with(
    folder: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("conductor")
    httpx = pytest.importorskip("httpx")
    from reflector_workers.conductor import StandInServer
    from tests.workers.conductor.rest import Server, by_reference, simple

    (folder / "fleet.py").write_text(CONDUCTOR)
    steps = [simple(("sync", "async")[n % 2], f"step{n}", token=f"token-{n}") for n in range(20)]
    with StandInServer() as stand_in, httpx.Client(timeout=30, trust_env=False) as http:
        conductor = Server(stand_in.url, http)
        for name in ("sync", "async"):
            conductor.register(name)
        conductor.define("all", steps)
        monkeypatch.setenv("CONDUCTOR", conductor.url)
        with served([sys.executable, "fleet.py"], 0, folder, dict(os.environ)):
            workflow = conductor.ended(conductor.start("all"))
    log = (folder / "log").read_text()
    assert workflow["status"] == "COMPLETED", log
    assert "Traceback" not in log
    outputs = by_reference(workflow)
    check(folder, [outputs[f"step{n}"]["outputData"] for n in range(20)], postgres_url)
