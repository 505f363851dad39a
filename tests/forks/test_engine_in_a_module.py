"""An engine and a sessionmaker at module level: every kind of process uses them, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database

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
"""
CELERY = """
import asyncio, os
from celery import Celery
import module

app = Celery("jobs", broker="filesystem://", backend="file://results")
app.conf.broker_transport_options = {
    name: "queue" for name in ("data_folder_in", "data_folder_out", "control_folder")
}
module.work("parent")  # has queried, before the pool of children is forked
module.heard.clear()


@app.task
def echo(token):
    found = asyncio.run(module.ask(token))
    return [found, os.getpid(), module.heard]
"""
RUN_CELERY = """
import subprocess, sys
from jobs import echo

options = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
worker = subprocess.Popen([sys.executable, "-m", "celery", "-A", "jobs", "worker", "-c", "2", *options])
results = [echo.delay(f"token-{n}") for n in range(40)]
for number, result in enumerate(results):
    found, process, heard = result.get(timeout=60)
    assert found == f"token-{number}"
    assert heard == [process], heard
worker.terminate()
assert worker.wait(60) == 0
print("done")
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


@pytest.mark.slow
def test_children_of_celery_use_what_their_parent_has_queried_with(
    folder: Path, postgres_url: str
) -> None:
    pytest.importorskip("celery")
    (folder / "jobs.py").write_text(CELERY)
    for name in ("queue", "results"):
        (folder / name).mkdir()
    command = [sys.executable, "-c", RUN_CELERY]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)
    assert (ran.stdout.split()[-1:], ran.returncode) == (["done"], 0), ran.stderr
    assert sessions(postgres_url) == 0
