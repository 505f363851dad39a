"""Queues and frameworks that run jobs, each with its own worker: what became of them is what the table says.

The programs are in ``neighbours/``. Each imports ``work``, uses its handle at import, and stores five squares by it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from loopsafe_db import Database
from tests.docs.test_docs import ROOT
from tests.integrations.neighbours_page import row_of
from tests.integrations.newer_redis import newer_redis  # noqa: F401  (a fixture)
from tests.integrations.test_job_queues import redis_url  # noqa: F401  (a fixture)

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS = ROOT / "tests/integrations/neighbours"
JOBS = 5
TABLE = "CREATE TABLE squares (number int PRIMARY KEY, square int, pid int, session int, loop int)"


@dataclass(frozen=True)
class Neighbour:
    """A program of ``neighbours/``, and its row of the table.

    Attributes:
        row: The first cell of the row.
        package: What has to be installed for it.
        command: The program, and what it is told.
        flavour: What a part of a cell is about, in a row that has more than one.
        at_once: How many jobs of a process may be under way together.
    """

    row: str
    package: str
    command: str
    flavour: str = ""
    at_once: int = 1

    def __str__(self) -> str:
        return f"{self.row} {self.flavour}".replace("`", "").strip()


NEIGHBOURS = [
    Neighbour("Conductor", "conductor", "conductor_run square", "`def`"),
    Neighbour("Conductor", "conductor", "conductor_run square_async", "`async def`"),
    Neighbour("Celery `--pool prefork`", "celery", "celery_run prefork"),
    Neighbour("Celery `--pool threads`", "celery", "celery_run threads"),
    Neighbour("Celery `--pool threads`", "celery", "celery_run solo", "`--pool solo`"),
    Neighbour("RQ `Worker`", "rq", "rq_run Worker"),
    Neighbour("RQ `SimpleWorker`", "rq", "rq_run SimpleWorker"),
    Neighbour("Dramatiq", "dramatiq", "dramatiq_run square", "`def`"),
    Neighbour("Dramatiq", "dramatiq", "dramatiq_run square_async", "`async def`"),
    Neighbour("arq", "arq", "arq_run", at_once=2),
    Neighbour("procrastinate", "procrastinate", "procrastinate_jobs", at_once=3),
    Neighbour("pgqueuer", "pgqueuer", "pgqueuer_jobs"),
    Neighbour("taskiq `InMemoryBroker`", "taskiq", "taskiq_jobs"),
    Neighbour("taskiq `worker`", "taskiq", "taskiq_run"),
    Neighbour("Huey `-k process`", "huey", "huey_run process"),
    Neighbour("Huey `-k thread`", "huey", "huey_run thread"),
    Neighbour("Luigi, `workers=1`", "luigi", "luigi_jobs 1"),
    Neighbour("Luigi, `workers=2`", "luigi", "luigi_jobs 2"),
    Neighbour("Hatchet", "hatchet_sdk", "hatchet_run square", "`def`"),
    Neighbour("Hatchet", "hatchet_sdk", "hatchet_run square_async", "`async def`"),
    Neighbour("Dask", "distributed", "dask_jobs square", "`def`"),
    Neighbour("Dask", "distributed", "dask_jobs square_async", "`async def`", at_once=JOBS),
    Neighbour("Ray", "ray", "ray_jobs square", "`def`"),
    Neighbour("Ray", "ray", "ray_jobs square_async", "`async def`"),
    Neighbour("Jupyter", "ipykernel", "jupyter_run"),
    Neighbour("Streamlit", "streamlit", "streamlit_run"),
]


ON_NEWER_REDIS = {"celery_run", "taskiq_run"}
ON_REDIS = {"rq_run", "dramatiq_run", "arq_run"} | ON_NEWER_REDIS


@dataclass(frozen=True)
class Job:
    """What ``work.square`` has stored."""

    number: int
    square: int
    pid: int
    session: int
    loop: int


@pytest.mark.timeout(300)  # Hatchet's SDK takes seconds to import, three times
@pytest.mark.parametrize("neighbour", NEIGHBOURS, ids=str)
def test_jobs_run_as_the_table_says(
    neighbour: Neighbour, tmp_path: Path, postgres_url: str, request: pytest.FixtureRequest
) -> None:
    package = neighbour.package
    pytest.importorskip(package, reason=f"NO {package.upper()}, SO NOTHING IS PROVED HERE")
    environment = {"LOOPSAFE_DB_URL": postgres_url}
    path = [str(PROGRAMS), str(ROOT), str(ROOT / "examples")]
    program = neighbour.command.split()[0]
    if program in ON_REDIS:
        environment["REDIS_URL"] = request.getfixturevalue("redis_url")
    if program in ON_NEWER_REDIS:
        path.insert(0, request.getfixturevalue("newer_redis"))
    environment["PYTHONPATH"] = os.pathsep.join(path)
    asyncio.run(_make_table(postgres_url))

    _run(neighbour.command, tmp_path, environment)

    first, *jobs = asyncio.run(_jobs(postgres_url))
    assert [(job.number, job.square) for job in jobs] == [(n, n * n) for n in range(JOBS)]
    sessions = {
        pid: {job.session for job in (first, *jobs) if job.pid == pid}
        for pid in {job.pid for job in (first, *jobs)}
    }
    assert sum(map(len, sessions.values())) == len(set.union(*sessions.values())), sessions
    row = row_of(neighbour.row)
    processes = {job.pid for job in jobs}
    assert (processes == {first.pid}) is row.processes.startswith("none"), row.processes
    loops = {(job.pid, job.loop) for job in jobs}
    said = row.about("loop", neighbour.flavour)
    assert len(loops) == (JOBS if said.startswith("a new one") else len(processes)), said
    if row.connections.startswith("warm"):
        assert len(processes) < JOBS  # else each has a job, and nothing to keep warm
        assert max(map(len, sessions.values())) <= neighbour.at_once, sessions
    else:
        assert {job.session for job in jobs}.isdisjoint(sessions[first.pid])
        assert len({job.session for job in jobs}) == JOBS
    assert {(tmp_path / f"exit-{pid}").exists() for pid in processes} <= row.exit_handlers


def _run(command: str, folder: Path, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split()],
        cwd=folder,
        # Warm connections, whatever this run is about.
        env={**os.environ, **environment, "LOOPSAFE_DB_SCOPE": "auto"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        with suppress(ProcessLookupError):  # a program that fails may leave its workers
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output


async def _make_table(url: str) -> None:
    async with Database(url) as database:
        await database.execute(TABLE)


async def _jobs(url: str) -> list[Job]:
    async with Database(url) as database:
        return [Job(*row) for row in await database.fetch_all("SELECT * FROM squares ORDER BY 1")]
