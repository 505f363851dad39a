"""What fails under a fleet at work: every meeting completes, each row is there once, and nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
import pytest
from sqlalchemy import make_url

import reflector_workers
from loopsafe_db import configure, get_database
from loopsafe_db.cli.conductor_checks import check_conductor
from reflector_workers.conductor import ConductorClient
from reflector_workers.conductor.real import RealServer
from reflector_workers.progress import (
    POLL_SECONDS,
    WorkflowState,
    failure_reasons,
    read_state,
)
from reflector_workers.storage.schema import create_schema
from reflector_workers.storage.sessions import sessions_left_open
from tests.workers.conductor.conftest import REAL_MARKS, skip_without_real_server
from tests.workers.running_demo import MARK, environment
from tests.workers.support import row_counts, server_that_keeps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopsafe_db.testing.postgres import EmbeddedPostgres
    from loopsafe_db.testing.servers import PostgresServer
    from tests.workers.conductor.rest import Server

FOLDER = Path(reflector_workers.__file__).parent
MEETINGS = 12
JOBS = 5 * MEETINGS
KINDS_OF_JOBS = 4
ROUNDS = 3
HOW_POSTGRESQL_RESTARTS: tuple[Literal["fast", "immediate", "kill"], ...] = (
    "fast",
    "immediate",
    "kill",
)
HOW_IT_RESTARTS: tuple[Literal["term", "kill"], ...] = ("kill", "term", "kill")  # a round each
PATIENCE = 180.0
UNACKED_SECONDS = 120.0  # in which a Conductor takes up again what it had taken from its own queues when it was killed
RESPONSE_SECONDS = 5  # after which Conductor gives the job of a dead worker to another
END_SECONDS = (
    60.0  # that it took no more than 7 is what the exit code says: nobody had to be killed
)

REAL = pytest.mark.parametrize(
    "conductor", [pytest.param("real", marks=REAL_MARKS)], indirect=True
)  # a stand-in has no state to lose


@pytest.fixture
def application(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What the workers' sessions are called; the example's tables are behind `get_database`."""
    name = f"under-load-{secrets.token_hex(4)}"
    database = configure(url=postgres_url)
    asyncio.run(create_schema())
    named = make_url(postgres_url).update_query_dict({"application_name": name})
    monkeypatch.setenv("LOOPSAFE_DB_URL", named.render_as_string(hide_password=False))
    yield name
    asyncio.run(database.disconnect())


class Fleets:
    """The example's fleet as programs, with every process that they ever had."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        self.programs: list[subprocess.Popen[bytes]] = []
        self.codes: list[int] = []

    def start(self, version: str = "v1") -> None:
        command = [sys.executable, "-m", "reflector_workers", "worker"]
        with (self._folder / f"fleet_{len(self.programs)}.log").open("wb") as log:
            self.programs.append(
                subprocess.Popen(
                    [*command, "--conductor", self._url, "--version", version],
                    env={**environment(), MARK: str(self._folder)},
                    cwd=self._folder,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """End the oldest that runs, by its parent, and see that nobody of it is left; how long it took."""
        began = time.monotonic()
        program = self.programs.pop(0)
        family = [
            psutil.Process(program.pid),
            *psutil.Process(program.pid).children(recursive=True),
        ]
        program.send_signal(number)
        self.codes.append(program.wait(END_SECONDS))
        _, alive = psutil.wait_procs(family, END_SECONDS)
        assert alive == []
        return time.monotonic() - began

    def family_of_the_newest(self) -> set[int]:
        """Its processes."""
        pid = self.programs[-1].pid
        return {each.pid for each in psutil.Process(pid).children(recursive=True)}

    def processes(self) -> list[psutil.Process]:
        """All that are there, those without a parent, too."""
        return [each for each in psutil.process_iter() if self._owns(each)]

    def close(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for program in self.programs:
            program.wait()

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == str(self._folder)
        except psutil.Error:  # it has just ended, or it is another user's
            return False


@pytest.fixture
def fleets(conductor: Server, application: str, tmp_path: Path) -> Iterator[Fleets]:
    """Programs that run the example's fleet; what is left of them is killed after the test."""
    fleets = Fleets(conductor.url, tmp_path)
    yield fleets
    fleets.close()


@pytest.fixture
def client(conductor: Server) -> Iterator[ConductorClient]:
    with ConductorClient(conductor.url) as client:
        yield client


class Meetings:
    """Twelve meetings on their way through a Conductor."""

    def __init__(self, client: ConductorClient, folder: Path, response_seconds: int) -> None:
        self._client = client
        definitions = json.loads((FOLDER / "task_defs.json").read_text())
        self._client.register_task_definitions(
            [{**each, "responseTimeoutSeconds": response_seconds} for each in definitions]
        )
        self._client.put_workflow(json.loads((FOLDER / "workflow.json").read_text()))
        self._given = {"folder": str(folder)}
        self.ids: list[str] = []
        self.states: list[WorkflowState] = []

    def begin(self, number: int = MEETINGS) -> None:
        self.ids += [
            self._client.start_workflow("reflector_diarization", self._given) for _ in range(number)
        ]

    def begin_round(self, fleets: Fleets) -> None:
        """Begin the meetings of one round, and wait until one of the fleet's processes has a job."""
        self.begin(MEETINGS // ROUNDS)
        self.busy(fleets)

    def finish(self, within: float = PATIENCE) -> None:
        """See them to their end."""
        give_up = time.monotonic() + within
        while left := [state for state in self.states if not state.ended] or not self.states:
            assert time.monotonic() < give_up, f"{left}"
            time.sleep(POLL_SECONDS)
            self._look()

    def _look(self) -> None:
        self.states = [read_state(self._client.get_workflow(one)) for one in self.ids]
        for state in self.states:
            if not state.ended:
                self._client.decide_workflow(state.id)  # SQLite looks late by itself

    def busy(self, fleets: Fleets) -> int:
        """A process of the newest fleet that has a job, as soon as there is one."""
        give_up = time.monotonic() + PATIENCE
        while not (found := self._working() & fleets.family_of_the_newest()):
            assert time.monotonic() < give_up, self.states
            self._look()
        return min(found)

    def _working(self) -> set[int]:
        jobs = [job for state in self.states for job in state.jobs if job.status == "IN_PROGRESS"]
        return {int(job.worker_id.split("/")[1]) for job in jobs}


def all_is_well(meetings: Meetings, application: str) -> None:
    """Every meeting has completed, and what they have stored is there once."""
    statuses = [state.status for state in meetings.states]
    assert statuses == ["COMPLETED"] * MEETINGS, failure_reasons(meetings.states)
    counts = row_counts()
    expected = (MEETINGS, 2 * MEETINGS, 3 * MEETINGS)
    assert (counts["meetings"], counts["tracks"], counts["outputs"]) == expected
    assert counts["turns"] == MEETINGS * _turns_of_one()
    assert asyncio.run(sessions_left_open(application)) == 0


def _turns_of_one() -> int:
    query = "SELECT count(*) FROM reflector.turns GROUP BY meeting_id"
    (found,) = {row[0] for row in asyncio.run(get_database().fetch_all(query))}
    return int(found)


@REAL
def test_every_meeting_completes_though_workers_are_killed(
    client: ConductorClient, fleets: Fleets, application: str, short_meeting: Path
) -> None:
    meetings = Meetings(client, short_meeting, RESPONSE_SECONDS)
    fleets.start()
    for _ in range(ROUNDS):
        meetings.begin(MEETINGS // ROUNDS)
        os.kill(meetings.busy(fleets), signal.SIGKILL)
    meetings.finish()
    fleets.stop()

    assert fleets.codes == [0]
    assert fleets.processes() == []
    all_is_well(meetings, application)


@REAL
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_every_meeting_completes_though_the_parent_of_the_fleet_ends(
    number: signal.Signals,
    client: ConductorClient,
    fleets: Fleets,
    application: str,
    short_meeting: Path,
) -> None:
    meetings = Meetings(client, short_meeting, RESPONSE_SECONDS)
    fleets.start()
    for _ in range(ROUNDS):
        meetings.begin(MEETINGS // ROUNDS)
        meetings.busy(fleets)
        fleets.stop(number)
        fleets.start()
    meetings.finish()
    fleets.stop()

    code = 0 if number == signal.SIGTERM else -signal.SIGKILL
    assert fleets.codes == [code] * ROUNDS + [0]
    assert fleets.processes() == []
    all_is_well(meetings, application)


@REAL
def test_a_deploy_under_load_loses_no_job_and_waits_for_no_time_out(
    client: ConductorClient, fleets: Fleets, application: str, short_meeting: Path
) -> None:
    meetings = Meetings(client, short_meeting, response_seconds=3600)
    versions = ("old", "new", "newer", "newest")
    fleets.start(versions[0])
    for old, new in pairwise(versions):
        fleets.start(new)
        _until_both_poll(client.base_url, old, new)
        meetings.begin(MEETINGS // ROUNDS)
        meetings.busy(fleets)
        fleets.stop()
    meetings.finish()
    fleets.stop()

    all_is_well(meetings, application)
    assert fleets.codes == [0] * 4
    assert failure_reasons(meetings.states) == {}  # no attempt has failed, none has timed out
    attempts = [job for state in meetings.states for job in state.jobs]
    assert len(attempts) == JOBS
    assert {job.worker_id.rpartition("/")[2] for job in attempts} >= set(versions[1:])


def _until_both_poll(url: str, old: str, new: str) -> None:
    """Until the doctor says so."""
    give_up = time.monotonic() + PATIENCE
    while True:
        found = check_conductor(url, 2, new)
        named = [each.what for each in found if each.code == "D202"]
        if len(named) == KINDS_OF_JOBS:
            assert all(old in what and new in what for what in named)
            assert any(f"runs version {old}, not {new}" in each.what for each in found)
            return
        assert time.monotonic() < give_up, found


@pytest.fixture
def restartable(postgres_server: PostgresServer) -> Iterator[RealServer]:
    """A real server of this test's own, on PostgreSQL."""
    skip_without_real_server()
    url = postgres_server.create_database()
    with RealServer(database=url) as server:
        yield server
    postgres_server.drop_database(make_url(url).database or "")


@pytest.fixture
def postgresql(application: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedPostgres]:
    with server_that_keeps(application, monkeypatch) as server:
        yield server


@REAL
def test_every_meeting_completes_though_postgresql_restarts(
    client: ConductorClient,
    fleets: Fleets,
    postgresql: EmbeddedPostgres,
    application: str,
    short_meeting: Path,
) -> None:
    meetings = Meetings(client, short_meeting, RESPONSE_SECONDS)
    fleets.start()
    for how in HOW_POSTGRESQL_RESTARTS:
        meetings.begin_round(fleets)
        postgresql.restart(how)
    meetings.finish()
    fleets.stop()

    assert fleets.codes == [0]
    assert fleets.processes() == []
    all_is_well(meetings, application)


@pytest.mark.real_conductor
@pytest.mark.timeout(1800)
def test_every_meeting_completes_though_conductor_restarts(
    restartable: RealServer,
    application: str,
    short_meeting: Path,
    tmp_path: Path,
) -> None:
    fleets = Fleets(restartable.url, tmp_path)
    try:
        with ConductorClient(restartable.url) as client:
            meetings = Meetings(client, short_meeting, RESPONSE_SECONDS)
            fleets.start()
            for how in HOW_IT_RESTARTS:
                meetings.begin_round(fleets)
                restartable.restart(how)
            meetings.finish(PATIENCE + UNACKED_SECONDS)
        fleets.stop()
        assert fleets.processes() == []
    finally:
        fleets.close()

    assert fleets.codes == [0]
    all_is_well(meetings, application)
