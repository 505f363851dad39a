"""Celery's pools, time limits, replaced children and late acknowledgements, on a Redis, with `run_task`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db import Database
from loopsafe_db.errors import RunningLoopError
from tests.docs.test_docs import ROOT
from tests.integrations.newer_redis import newer_redis  # noqa: F401  (a fixture)
from tests.integrations.test_job_queues import redis_url  # noqa: F401  (a fixture)

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("celery")

from celery import Celery

from loopsafe_db.integrations.celery import run_task

TASKS = """
import asyncio, os, signal

from celery import Celery

from loopsafe_db import get_database, snapshot
from loopsafe_db.integrations.celery import run_task

address = os.environ["REDIS_URL"].replace("unix://", "redis+socket://")
app = Celery("tasks", broker=address, backend=address)
db = get_database()
KEEP = "INSERT INTO kept VALUES (:id, :pid) ON CONFLICT DO NOTHING"


async def keep(job):
    async with db.transaction():
        await db.execute(KEEP, {"id": job.id, "pid": os.getpid()})
        backend = await db.fetch_val("SELECT pg_backend_pid()")
        return {"backend": backend, "pid": os.getpid(), "opened": snapshot().opened}


async def keep_and_hang(job):
    async with db.transaction():
        await db.execute(KEEP, {"id": job.id, "pid": os.getpid()})
        await db.fetch_val("SELECT pg_sleep(60)")


async def die_once(job):
    if not await db.fetch_val("SELECT count(*) FROM kept WHERE id = :id", {"id": job.id}):
        await db.execute(KEEP, {"id": job.id, "pid": os.getpid()})
        os.kill(os.getpid(), signal.SIGKILL)
    return await keep(job)


@app.task
def fine():
    return run_task(keep)

@app.task(soft_time_limit=1)
def hangs_softly():
    return run_task(keep_and_hang)

@app.task(time_limit=1)
def hangs():
    return run_task(keep_and_hang)

@app.task(acks_late=True, reject_on_worker_lost=True)
def dies_once():
    return run_task(die_once)
"""
RUN = """
import json, subprocess, sys
import tasks
from tasks import *

worker = subprocess.Popen(
    [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--loglevel", "WARNING", "--without-gossip",
     "--without-mingle", "--without-heartbeat", *sys.argv[2:]],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
def outcome(sent):
    try:
        return sent.get(timeout=60)
    except Exception as error:
        return type(error).__name__
try:
    print(json.dumps([outcome(getattr(tasks, name).delay()) for name in sys.argv[1].split(",")]))
finally:
    worker.terminate()
    sys.stderr.write(str(worker.wait(60)))
"""


@pytest.fixture
def run(tmp_path: Path, redis_url: str, newer_redis: str, postgres_url: str) -> Any:  # noqa: F811
    """Send tasks one after another to a worker with some options; what each gave, or the name of its error."""
    (tmp_path / "tasks.py").write_text(TASKS, encoding="utf-8")
    environment = {
        **os.environ,
        "LOOPSAFE_DB_SCOPE": "auto",
        "LOOPSAFE_DB_URL": postgres_url,
        "REDIS_URL": redis_url,
        "PYTHONPATH": f"{newer_redis}:{tmp_path}:{ROOT}",
    }

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    database = Database(postgres_url)
    asyncio.run(database.execute("CREATE TABLE kept (id text PRIMARY KEY, pid int)"))

    def run(tasks: str, *options: str) -> tuple[list[Any], int]:
        outcomes = json.loads(python("-c", RUN, tasks, *options))
        return outcomes, asyncio.run(database.fetch_val("SELECT count(*) FROM kept"))

    return run


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_each_process_of_a_pool_keeps_its_connection_from_task_to_task(pool: str, run: Any) -> None:
    outcomes, kept = run("fine,fine,fine,fine", "-P", pool, "-c", "1")

    assert kept == 4
    assert len({each["backend"] for each in outcomes}) == 1
    assert outcomes[-1]["opened"] == 1


@pytest.mark.parametrize(
    ("task", "error", "same_process"),
    [("hangs_softly", "SoftTimeLimitExceeded", True), ("hangs", "TimeLimitExceeded", False)],
)
def test_a_time_limit_costs_the_task_that_it_strikes(
    task: str,
    error: str,
    same_process: bool,  # noqa: FBT001
    run: Any,
) -> None:
    (first, struck, last), kept = run(f"fine,{task},fine", "-P", "prefork", "-c", "1")

    assert struck == error
    assert kept == 2  # what the struck one had written is undone
    assert (first["pid"] == last["pid"]) is same_process


def test_children_that_are_replaced_leave_nothing_to_set_up(run: Any) -> None:
    outcomes, kept = run("fine,fine,fine", "-c", "1", "--max-tasks-per-child", "1")

    assert (kept, len({each["pid"] for each in outcomes})) == (3, 3)


def test_a_task_that_is_delivered_again_has_the_same_id_and_is_stored_once(run: Any) -> None:
    (outcome,), kept = run("dies_once", "-c", "1")

    assert kept == 1
    assert outcome["backend"]


def test_a_task_that_a_coroutine_calls_eagerly_says_how_to_send_it() -> None:
    app = Celery("eager")
    app.conf.update(task_always_eager=True, task_eager_propagates=True)

    async def work(job: object) -> int:
        return 4711

    @app.task  # type: ignore[untyped-decorator]
    def answer() -> int:
        return run_task(work)

    async def endpoint() -> object:
        with pytest.raises(RunningLoopError, match=r"LDB116.*\n.*to_thread"):
            answer.delay()
        return (await asyncio.to_thread(answer.delay)).get()

    assert asyncio.run(endpoint()) == 4711
