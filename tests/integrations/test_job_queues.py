"""The how-tos on job queues and other clients, with each queue's own worker, on a Redis."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from loopsafe_db import Database
from tests.docs.test_docs import ROOT, fences, run_script
from tests.integrations.newer_redis import newer_redis  # noqa: F401  (a fixture)
from tests.integrations.pages import code_of
from tests.integrations.redis_server import redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEND_RQ = """
import os, redis, rq
queue = rq.Queue(connection=redis.Redis.from_url(os.environ["REDIS_URL"]))
for number in range(5):
    print(queue.enqueue("jobs.square", number).id)
"""
SEND_ARQ = """
import asyncio, os
from arq import create_pool
from arq.connections import RedisSettings

async def send():
    redis = await create_pool(RedisSettings.from_dsn(os.environ["REDIS_URL"]))
    for number in range(5):
        await redis.enqueue_job("square", number)
    await redis.aclose()

asyncio.run(send())
"""
RESULTS_RQ = """
import os, redis
from rq.job import Job
connection = redis.Redis.from_url(os.environ["REDIS_URL"])
for id in open("ids").read().split():
    print(Job.fetch(id, connection=connection).return_value())
"""
RUN_CELERY = """
import subprocess, sys
from jobs import square

results = [square.delay(number) for number in range(5)]
options = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
worker = subprocess.Popen(
    [sys.executable, "-m", "celery", "-A", "jobs", "worker", "-c", "2", "-P", sys.argv[1], *options],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
print(*(result.get(timeout=60) for result in results))
worker.terminate()
assert worker.wait(60) == 0
"""
# As the command `dramatiq` does it in each of its processes, but until there is nothing left to do.
DRAMATIQ = """
import dramatiq, jobs
for number in range(5):
    jobs.square.send(number)
    jobs.cube.send(number + 1)
worker = dramatiq.Worker(jobs.broker, worker_threads=4)
worker.start()
jobs.broker.join("default")
worker.join()
worker.stop()
"""


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A Redis of their own."""
    with redis_server() as url:
        yield url


class Program:
    """A folder with the page's `jobs.py`, and what is run there."""

    def __init__(
        self, folder: Path, queue: str, redis_url: str, url: str, *, first: str = ""
    ) -> None:
        pytest.importorskip(queue)
        (folder / "jobs.py").write_text(code_of("job-queues", f"python {queue}"), encoding="utf-8")
        self._folder, self._database = folder, Database(url)
        self._environment = {
            **os.environ,
            "LOOPSAFE_DB_SCOPE": "auto",  # warm connections, whatever this run is about
            "LOOPSAFE_DB_URL": url,
            "REDIS_URL": redis_url,
            "PYTHONPATH": f"{first}:{folder}:{ROOT}",
        }
        self.ask("CREATE TABLE squares (number int PRIMARY KEY, square int NOT NULL)")

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    def ask(self, query: str) -> list[tuple[object, ...]]:
        async def ask() -> list[tuple[object, ...]]:
            async with self._database as database:
                return [tuple(row) for row in await database.fetch_all(query)]

        return asyncio.run(ask())

    @property
    def squares(self) -> list[tuple[object, ...]]:
        return self.ask("SELECT number, square FROM squares WHERE number >= 0 ORDER BY number")


OTHER_CLIENTS = ROOT / "docs/how-to/other-clients.md"
DONE = [(number, number * number) for number in range(5)]
SENT_BY_THE_PAGE = (7, 49)


@pytest.mark.parametrize(
    ("worker", "connections"), [("rq.worker.Worker", 5), ("rq.worker.SimpleWorker", 1)]
)
def test_rq_opens_a_connection_for_each_fork_and_one_without(
    worker: str, connections: int, tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    program = Program(tmp_path, "rq", redis_url, postgres_url)
    (tmp_path / "ids").write_text(program.run("-c", SEND_RQ), encoding="utf-8")
    program.run("-c", code_of("job-queues", "python sends", 0))

    program.run("-m", "rq.cli", "worker", "--burst", "--url", redis_url, "-w", worker)

    assert program.squares == [*DONE, SENT_BY_THE_PAGE]
    assert len({*program.run("-c", RESULTS_RQ).split()}) == connections


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_celery_keeps_connections_warm_in_forks_and_threads(
    pool: str,
    tmp_path: Path,
    redis_url: str,
    newer_redis: str,  # noqa: F811
    postgres_url: str,
) -> None:
    address = redis_url.replace("unix://", "redis+socket://")
    program = Program(tmp_path, "celery", address, postgres_url, first=newer_redis)

    used = program.run("-c", RUN_CELERY, pool).split()

    assert program.squares == DONE
    assert (len(used), len({*used}) <= 2) == (5, True)


def test_dramatiq_has_threads_and_a_loop_share_the_handle(
    tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    program = Program(tmp_path, "dramatiq", redis_url, postgres_url)

    program.run("-c", DRAMATIQ)

    assert program.squares == DONE
    assert program.ask("SELECT count(*) FROM squares") == [(10,)]


def test_arq_runs_jobs_as_tasks(tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    program = Program(tmp_path, "arq", redis_url, postgres_url)
    program.run("-c", SEND_ARQ)
    program.run("-c", code_of("job-queues", "python sends", 1))

    program.run("-m", "arq", "--burst", "jobs.WorkerSettings")

    assert program.squares == [*DONE, SENT_BY_THE_PAGE]


def test_another_client_of_a_loop_is_made_for_each_run(
    tmp_path: Path, redis_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("redis")
    monkeypatch.setenv("REDIS_URL", redis_url)

    done = run_script(code_of("other-clients", "python redis"), tmp_path, postgres_url)

    assert (done.stderr, done.stdout) == ("", fences(OTHER_CLIENTS, "text printed")[0])
