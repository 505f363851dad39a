"""A fleet of the library on a Conductor: it starts in every way, and its end loses no job."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from typing import TYPE_CHECKING, Any, ClassVar

import psutil
import pytest
from conductor.client.configuration.configuration import Configuration
from conductor.client.http.api.task_resource_api import TaskResourceApi

from loopsafe_db import Database
from loopsafe_db.cli.conductor_checks import check_conductor
from loopsafe_db.integrations.conductor import process as process_module
from loopsafe_db.integrations.conductor import read_logs, read_reports
from loopsafe_db.integrations.conductor.process import FleetTerms, WorkerProcess
from loopsafe_db.integrations.reports import ProcessReport
from tests.docs.test_docs import ROOT
from tests.integrations.pages import code_of
from tests.workers.conductor.conftest import REAL_MARKS
from tests.workers.conductor.rest import PATIENCE, by_reference, simple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from tests.workers.conductor.rest import Server

KINDS = ("in_thread", "in_loop")
SHARED = (
    0.6  # of a spawned worker's own memory is too much for one that was forked from what is loaded
)
LAST_POLL_SECONDS = 0.3  # in which a poll whose process was killed may still be given a job
JOBS_OF_A_PROCESS = 3
GIVE_UP_SECONDS = 15.0
START_METHODS = ("spawn", "forkserver", "fork")
ON_THE_STAND_IN = pytest.mark.parametrize(
    "conductor", ["stand_in"], indirect=True
)  # no matter of the server
MAIN = """
from pathlib import PosixPath
import sys
from conductor.client.configuration.settings.metrics_settings import MetricsSettings
from loopsafe_db.integrations.conductor import run_workers
if __name__ == "__main__":
    sys.exit(run_workers({url!r}, {modules!r}, {options}))
"""

HOLDS = """
import asyncio, contextvars, os, pathlib
from conductor.client.worker.worker_task import worker_task
from loopsafe_db import Database, PoolLimits
from loopsafe_db.integrations.conductor import JSONObject, checked, do_job

db = Database(os.environ["LOOPSAFE_DB_URL"], pool=PoolLimits(max_connections=1))

async def hold(job):
    async with db.connection():
        waiter = asyncio.create_task(db.fetch_val("SELECT 1"), context=contextvars.Context())
        while not pathlib.Path(os.environ["FLEET_NOTES"], "go").exists():
            await asyncio.sleep(0.02)
    return {"value": await waiter}

@worker_task(task_definition_name="in_loop", poll_interval_millis=20)
@checked
async def in_loop(seconds: float) -> JSONObject:
    return await do_job(hold)
"""


class Code(str):
    """A keyword's value, as code."""

    __slots__ = ()
    __repr__ = str.__str__


@dataclass
class Program:
    """A program that runs a fleet, and what it leaves."""

    process: subprocess.Popen[str]
    folder: Path

    def begun(self, workflow: str, times: int = 1) -> list[int]:
        """Wait until a job of a workflow has begun; by which processes."""
        give_up = time.monotonic() + PATIENCE
        while len(found := list(self.folder.glob(f"{workflow}.begun.*"))) < times:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < give_up, f"{workflow} has not begun"
            time.sleep(0.02)
        return [int(path.suffix[1:]) for path in found]

    def pids(self, what: str) -> set[str]:
        """Those of the processes that have begun, or ended, a job."""
        return {path.suffix for path in self.folder.glob(f"*.{what}.*")}

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE)


@pytest.fixture
def start(conductor: Server, postgres_url: str, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start programs that run a fleet; what is left of one is killed after the test."""
    started: list[subprocess.Popen[str]] = []
    database = Database(postgres_url)
    asyncio.run(database.execute("CREATE TABLE done (workflow text PRIMARY KEY)"))

    def start(
        *,
        before: tuple[str, ...] = (),
        modules: tuple[str, ...] = ("tests.workers.fleet_jobs",),
        main: str = MAIN,
        **options: object,
    ) -> Program:
        path = tmp_path / f"fleet_{len(started)}.py"
        keywords = ", ".join(f"{name}={value!r}" for name, value in options.items())
        path.write_text(main.format(url=conductor.url, modules=modules, options=keywords))
        process = subprocess.Popen(
            [*before, sys.executable, str(path)],
            env=os.environ
            | {
                "LOOPSAFE_DB_URL": postgres_url,
                "FLEET_NOTES": str(tmp_path),
                "PYTHONPATH": f"{ROOT}",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return Program(process, tmp_path)

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    time.sleep(LAST_POLL_SECONDS)  # the next test's first job would be lost


class Jobs:
    """Workflows of one job."""

    def __init__(self, conductor: Server) -> None:
        self._conductor, self._suffix = conductor, secrets.token_hex(4)
        for kind in KINDS:
            conductor.register(kind, retryCount=1, retryDelaySeconds=0, responseTimeoutSeconds=60)
            conductor.define(
                f"{kind}_{self._suffix}",
                [simple(kind, "only", seconds="${workflow.input.seconds}")],
            )

    def begin(self, kind: str, seconds: float) -> str:
        return self._conductor.start(f"{kind}_{self._suffix}", seconds=seconds)

    def end(self, workflow: str) -> dict[str, object]:
        """The one attempt at the job, which must have been enough."""
        ended = self._conductor.ended(workflow)
        assert ended["status"] == "COMPLETED", ended
        assert len(ended["tasks"]) == 1, ended
        task: dict[str, object] = by_reference(ended)["only"]
        return task


@pytest.fixture
def jobs(conductor: Server) -> Jobs:
    return Jobs(conductor)


@ON_THE_STAND_IN
@pytest.mark.parametrize("method", START_METHODS)
def test_every_way_to_start_has_the_same_names_reports_and_end(
    method: str, start: Callable[..., Program], jobs: Jobs, tmp_path: Path
) -> None:
    program = start(start_method=method, version="v7", folder=tmp_path)
    done = [jobs.end(jobs.begin(kind, 0)) for kind in KINDS]

    assert program.stop() == 0

    reports = {report.worker_id: report for report in read_reports(tmp_path)}
    assert {str(task["workerId"]) for task in done} == set(reports)
    for worker_id, report in reports.items():
        assert worker_id.endswith(f"/{report.pid}/v7")
        assert (report.ended, report.loops, report.stats.opened) == (True, 1, 1)
        assert not psutil.pid_exists(report.pid)


def test_no_report_replaces_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = FleetTerms(os.getpid(), Configuration(), "v7", 1.0, tmp_path)
    process = WorkerProcess(terms, "v7", "in_thread")
    looking, go_on, look = threading.Event(), threading.Event(), ProcessReport.of_this_process

    def look_slowly(*of: Any, ended: bool) -> ProcessReport:
        if not ended:
            looking.set()
            go_on.wait(PATIENCE)
        return look(*of, ended=ended)

    monkeypatch.setattr(ProcessReport, "of_this_process", look_slowly)
    with ThreadPoolExecutor() as threads:
        usual = threads.submit(process.report, ended=False)
        looking.wait(PATIENCE)
        last = threads.submit(process.report, ended=True)
        wait([last], timeout=0.2)
        go_on.set()
        usual.result()
        last.result()
    process.report(ended=False)

    assert [report.ended for report in read_reports(tmp_path)] == [True]


class _SlowConductor(BaseHTTPRequestHandler):
    """Answers nobody until all jobs are on their way back."""

    all_are_here = threading.Barrier(JOBS_OF_A_PROCESS)
    given_back: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.all_are_here.wait(GIVE_UP_SECONDS)
        self.given_back.append(f"{job['taskId']} {job['status']} {job['callbackAfterSeconds']}")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """No word on standard error."""


def test_the_jobs_of_a_process_are_given_back_all_at_once() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _SlowConductor) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = Configuration(server_api_url=f"http://127.0.0.1:{server.server_address[1]}/api")
        terms = FleetTerms(os.getpid(), there, "v7", 1.0, None)
        process = WorkerProcess(terms, "v7", "in_thread")
        for number in range(JOBS_OF_A_PROCESS):
            process.begin(f"task_{number}", "workflow")

        process.hand_back()
        server.shutdown()

    assert sorted(_SlowConductor.given_back) == [
        f"task_{number} IN_PROGRESS 0" for number in range(JOBS_OF_A_PROCESS)
    ]


def test_a_server_that_is_silent_keeps_no_process_that_is_to_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        there = Configuration(server_api_url=f"http://127.0.0.1:{silent.getsockname()[1]}/api")
        process = WorkerProcess(FleetTerms(os.getpid(), there, "v7", 1.0, None), "v7", "in_thread")
        process.begin("task", "workflow")
        giving_back = threading.Thread(target=process.hand_back, daemon=True)
        giving_back.start()
        giving_back.join(GIVE_UP_SECONDS)
        assert not giving_back.is_alive()


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> WorkerProcess:
    """A worker process whose stop was asked for long ago; this one is taken for it."""
    monkeypatch.setattr(process_module, "_SETTLE_SECONDS", 0.05)
    terms = FleetTerms(os.getpid(), Configuration(), "v7", 0.0, None)
    leaving = WorkerProcess(terms, "v7", "in_thread")
    leaving.asked_at = time.monotonic() - 1.0
    return leaving


def test_a_job_that_waits_for_a_thread_keeps_its_process(leaving: WorkerProcess) -> None:
    free = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(free.wait)
        threads.submit(lambda: None)  # a poll has brought it; it has not begun yet
        assert leaving.must_not_poll()
        time.sleep(0.1)
        assert leaving.must_not_poll()
        free.set()
    with pytest.raises(SystemExit):
        leaving.must_not_poll()


async def test_a_job_that_waits_for_the_loop_keeps_its_process(leaving: WorkerProcess) -> None:
    leaving.must_not_poll()
    leaving.polled()
    time.sleep(0.1)  # noqa: ASYNC251  (the processor goes to others before the job's task can begin)
    job = asyncio.create_task(asyncio.sleep(0))

    assert leaving.must_not_poll()

    await job
    await asyncio.sleep(0.1)
    with pytest.raises(SystemExit):
        leaving.must_not_poll()


def test_a_job_that_the_last_report_brings_goes_back_before_the_process_ends(
    monkeypatch: pytest.MonkeyPatch, leaving: WorkerProcess
) -> None:
    left: list[str] = []
    monkeypatch.setattr(os, "_exit", lambda _code: left.append("the process"))

    def send(_api: object, result: Any) -> None:
        time.sleep(0.1)
        left.append(result.task_id)

    monkeypatch.setattr(TaskResourceApi, "update_task", send)
    leaving.done("the_last")
    with ThreadPoolExecutor(1) as threads:
        ending = threads.submit(leaving.give_up)
        time.sleep(0.1)  # its report is answered: by the next job
        with pytest.raises(asyncio.CancelledError):
            leaving.begin("the_next", "workflow")
        ending.result()

    assert left == ["the_next", "the process"]


@ON_THE_STAND_IN
def test_a_forkserver_imports_the_workers_once_and_freezes_them(
    start: Callable[..., Program], jobs: Jobs
) -> None:
    program = start(start_method="forkserver", preload=["tests.workers.fleet_jobs"])
    outputs = [jobs.end(jobs.begin(kind, 0))["outputData"] for kind in KINDS]

    assert program.stop() == 0

    assert all(output["frozen"] > 10_000 for output in outputs)  # type: ignore[index]


@ON_THE_STAND_IN
@pytest.mark.skipif(sys.platform != "linux", reason="what is shared is told by Linux")
def test_workers_of_a_forkserver_share_what_was_preloaded(
    start: Callable[..., Program], jobs: Jobs, tmp_path: Path
) -> None:
    def own_bytes(name: str, **options: object) -> int:
        program = start(folder=tmp_path / name, **options)
        for kind in KINDS:
            jobs.end(jobs.begin(kind, 0))
        workers = [psutil.Process(report.pid) for report in read_reports(tmp_path / name)]
        own = [worker.memory_full_info().uss for worker in workers]
        assert (program.stop(), len(own)) == (0, len(KINDS))
        return sum(own)

    spawned = own_bytes("spawned", start_method="spawn")
    preloaded = own_bytes(
        "preloaded", start_method="forkserver", preload=["tests.workers.fleet_jobs"]
    )

    assert preloaded < SHARED * spawned, (preloaded, spawned)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_in_flight_is_finished_and_reported_when_the_fleet_stops(
    kind: str, start: Callable[..., Program], jobs: Jobs
) -> None:
    program = start(grace=20.0)
    workflow = jobs.begin(kind, 2.0)
    (pid,) = program.begun(workflow)

    assert program.stop() == 0

    assert f"/{pid}/" in str(jobs.end(workflow)["workerId"])


@ON_THE_STAND_IN
def test_no_process_that_ends_as_it_was_told_is_warned_of(
    start: Callable[..., Program], jobs: Jobs
) -> None:
    program = start(grace=20.0)
    jobs.end(jobs.begin("in_loop", 0))
    workflow = jobs.begin("in_thread", 6.0)  # the SDK looks after its processes every five seconds
    program.begun(workflow)

    assert program.stop() == 0

    assert "Worker process" not in "".join(program.process.communicate())


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_does_not_end_in_time_goes_to_the_next_fleet_at_once(
    kind: str, start: Callable[..., Program], jobs: Jobs
) -> None:
    old = start(grace=0.3, version="old")
    workflow = jobs.begin(kind, 3.0)
    old.begun(workflow)

    assert old.stop() == 0

    new = start(version="new", grace=20.0)
    task = jobs.end(workflow)  # one attempt, though the response timeout is a minute
    assert str(task["workerId"]).endswith("/new")
    assert len(new.begun(workflow, 2)) == 2
    assert "is given back" in old.process.communicate()[0]


@pytest.mark.parametrize(
    "conductor", ["stand_in", pytest.param("durable", marks=REAL_MARKS)], indirect=True
)
def test_a_busy_fleet_of_fifteen_processes_ends_by_itself_and_loses_no_job(
    start: Callable[..., Program], jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = start(processes={"in_thread": 8, "in_loop": 7}, version="old")
    workflows = keep_busy(busy, jobs, processes=15)
    family = psutil.Process(busy.process.pid).children(recursive=True)
    assert len(family) > 15

    began = time.monotonic()
    code = busy.stop()
    took = time.monotonic() - began

    with capsys.disabled():
        print(f"\n15 processes at work have ended after {took:.1f} s")
    assert code == 0, busy.process.communicate()  # nobody had to be killed
    assert psutil.wait_procs(family, PATIENCE)[1] == []
    start(version="new")
    for workflow in workflows:
        jobs.end(workflow)  # at the first attempt


@ON_THE_STAND_IN
def test_what_a_poll_brings_after_the_end_was_asked_for_is_done_or_given_back(
    start: Callable[..., Program], jobs: Jobs
) -> None:
    old = start(processes={"in_thread": 1, "in_loop": 4}, version="old", grace=20.0)
    for kind in KINDS:
        jobs.end(jobs.begin(kind, 0))

    old.process.terminate()
    workflows = []
    for _ in range(8):  # a poll that found nothing waits for a tenth of a second
        time.sleep(0.02)
        workflows += [jobs.begin(kind, 0) for kind in KINDS]

    assert old.process.wait(PATIENCE) == 0
    start(version="new")
    for workflow in workflows:
        jobs.end(workflow)  # at the first attempt


def keep_busy(program: Program, jobs: Jobs, processes: int) -> list[str]:
    """Have more jobs than the fleet can do at once, until each process has had one; all that were begun."""
    workflows: list[str] = []
    kinds, give_up = cycle(KINDS), time.monotonic() + 3 * PATIENCE
    while len(program.pids("begun")) < processes:
        assert time.monotonic() < give_up, program.pids("begun")
        if len(workflows) - len(list(program.folder.glob("*.ended.*"))) < 3 * processes:
            workflows.append(jobs.begin(next(kinds), 1.0))
        else:
            time.sleep(0.02)
    return workflows


@ON_THE_STAND_IN
def test_top_shows_what_a_running_fleet_waits_for_and_who_has_its_connections(
    start: Callable[..., Program], jobs: Jobs, tmp_path: Path
) -> None:
    (tmp_path / "holds.py").write_text(HOLDS)
    reports = tmp_path / "reports"
    program = start(modules=("holds",), folder=reports)
    workflow = jobs.begin("in_loop", 0)

    give_up = time.monotonic() + PATIENCE
    while not any(report.stats.waiting for report in read_reports(reports)):
        assert program.process.poll() is None, program.process.communicate()
        assert time.monotonic() < give_up, "nobody waits"
        time.sleep(0.02)
    meanwhile = top(reports)
    (tmp_path / "go").touch()
    jobs.end(workflow)
    assert program.stop() == 0

    assert row(meanwhile, 0)[1:] == ["in_loop", "1", "1", "1", "0", "1", "1"]
    name, task, _, place = row(meanwhile, 2)
    assert name == row(meanwhile, 0)[0]
    assert task.startswith("Task-")
    assert place == f"{tmp_path / 'holds.py'}:10"
    done = top(reports)
    requests, waits, wait_ms, *rest = row(done, 1)[1:]
    assert (requests, waits, int(wait_ms) > 0) == ("2", "1", True)
    peak, errors, reused, connects, connect_ms, connect_errors, lost = rest
    assert (peak, errors, reused, connects) == ("1", "0", "1", "1")
    assert (connect_ms.isdigit(), connect_errors, lost) == (True, "0", "0")


def top(folder: Path) -> list[list[list[str]]]:
    """What ``loopsafe-db top`` shows: cells by table and row."""
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "from loopsafe_db.cli import main; main()",
            *("top", str(folder), "--once"),
        ],
        env={**os.environ, "COLUMNS": "300"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [
        [[cell.strip() for cell in line.strip("│").split("│")] for line in table]
        for table in (re.findall(r"^│.*│$", part, re.MULTILINE) for part in shown.split("┏")[1:])
    ]


def row(tables: list[list[list[str]]], number: int) -> list[str]:
    """The only row of a table."""
    (only,) = tables[number]
    return only


@ON_THE_STAND_IN
@pytest.mark.parametrize("method", START_METHODS)
def test_a_fleet_whose_parent_is_killed_ends_too(
    method: str, start: Callable[..., Program], jobs: Jobs, tmp_path: Path
) -> None:
    program = start(start_method=method, grace=0.3, folder=tmp_path)
    for kind in KINDS:
        jobs.end(jobs.begin(kind, 0))
    left = psutil.Process(program.process.pid).children(recursive=True)

    program.process.kill()
    _, alive = psutil.wait_procs(left, timeout=PATIENCE)

    assert alive == []
    assert all(report.ended for report in read_reports(tmp_path))


@ON_THE_STAND_IN
def test_a_fleet_tells_its_health_and_the_metrics_of_the_sdk_and_leaves_neither_behind(
    start: Callable[..., Program], jobs: Jobs, tmp_path: Path, http: httpx.Client
) -> None:
    health, metrics = free_port(), free_port()
    settings = f"MetricsSettings(directory={str(tmp_path)!r}, http_port={metrics})"
    program = start(health_port=health, metrics=Code(settings), grace=0.3)
    done = [jobs.end(jobs.begin(kind, 0)) for kind in KINDS]

    assert http.get(f"http://127.0.0.1:{health}/").status_code == 200
    counted = http.get(f"http://127.0.0.1:{metrics}/metrics").text
    assert all(f'taskType="{kind}"' in counted for kind in KINDS)
    os.kill(int(str(done[0]["workerId"]).split("/")[1]), signal.SIGKILL)
    while http.get(f"http://127.0.0.1:{health}/").status_code != 503:
        assert program.process.poll() is None
    left = psutil.Process(program.process.pid).children(recursive=True)
    program.process.kill()
    _, alive = psutil.wait_procs(left, timeout=PATIENCE)
    assert alive == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@ON_THE_STAND_IN
def test_the_fleet_of_the_page_does_the_jobs_of_the_page(
    start: Callable[..., Program],
    conductor: Server,
    postgres_url: str,
    tmp_path: Path,
    http: httpx.Client,
) -> None:
    asyncio.run(
        Database(postgres_url).execute("CREATE TABLE squares (number int PRIMARY KEY, square int)")
    )
    (tmp_path / "jobs.py").write_text(code_of("conductor", "python conductor"), encoding="utf-8")
    health = free_port()
    page = code_of("conductor", "python fleet")
    for shown, ours in (
        ("http://127.0.0.1:8080/api", conductor.url),
        ("health_port=8081", f"health_port={health}"),
    ):
        assert shown in page
        page = page.replace(shown, ours)
    program = start(main=page.replace("{", "{{").replace("}", "}}"))
    for kind in ("square", "square_async"):
        conductor.register(kind)
        conductor.define(kind, [simple(kind, "only", number="${workflow.input.number}")])

    done = [conductor.ended(conductor.start(kind, number=7)) for kind in ("square", "square_async")]

    assert [workflow["status"] for workflow in done] == ["COMPLETED"] * 2
    assert http.get(f"http://127.0.0.1:{health}/").status_code == 200
    assert program.stop() == 0
    rows = asyncio.run(Database(postgres_url).fetch_all("SELECT number, square FROM squares"))
    assert [tuple(row) for row in rows] == [(7, 49)]


@ON_THE_STAND_IN
def test_a_process_that_does_not_end_is_killed_and_the_exit_code_says_so(
    start: Callable[..., Program], jobs: Jobs
) -> None:
    program = start(grace=0.3)
    workflow = jobs.begin("in_thread", 60.0)
    (pid,) = program.begun(workflow)

    os.kill(pid, signal.SIGSTOP)

    assert program.stop() == 1
    assert not psutil.pid_exists(pid)
    assert f"pid {pid}, had to be killed" in program.process.communicate()[1]


@ON_THE_STAND_IN
def test_a_line_of_a_worker_is_on_the_output_of_the_program_at_once_and_says_whose_it_is(
    start: Callable[..., Program], jobs: Jobs
) -> None:
    program = start()
    workflow = jobs.begin("in_thread", 60.0)  # it prints, without a flush, and goes on
    (pid,) = program.begun(workflow)

    assert program.process.stdout is not None
    marked = f"[in_thread {pid}] {workflow} has begun\n"
    assert any(line == marked for line in program.process.stdout)


@ON_THE_STAND_IN
def test_a_worker_that_is_killed_again_and_again_ends_the_fleet_with_code_1(
    start: Callable[..., Program], jobs: Jobs
) -> None:
    program = start(restarts=0)
    workflow = jobs.begin("in_thread", 60.0)
    (pid,) = program.begun(workflow)

    os.kill(pid, signal.SIGKILL)

    assert program.process.wait(PATIENCE) == 1


def test_doctor_names_both_versions_that_share_the_jobs(
    conductor: Server, start: Callable[..., Program], jobs: Jobs
) -> None:
    start(version="old")
    jobs.end(jobs.begin("in_loop", 0))
    start(version="new")
    while {str(task["workerId"])[-3:] for task in _some(jobs)} != {"old", "new"}:
        pass

    found = {each.what: each for each in check_conductor(conductor.url, 8, "new")}

    assert any("in_loop: 2 versions of the code share its jobs: new, old" in what for what in found)
    assert any("/old polls and runs version old, not new" in what for what in found)


TWIN = (
    *("unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *("sh", "-c", 'hostname twin && exec "$@"', "sh"),
)


@ON_THE_STAND_IN
def test_two_containers_of_one_name_are_told_that_their_ids_collide(
    start: Callable[..., Program], jobs: Jobs, tmp_path: Path
) -> None:
    if os.geteuid() != 0 or subprocess.run([*TWIN, "true"], capture_output=True).returncode:
        pytest.skip("ONLY ROOT, ON LINUX, MAY MAKE CONTAINERS: SO NOTHING IS PROVED HERE")
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    start(before=TWIN, version="v1", folder=first)
    for kind in KINDS:
        jobs.end(jobs.begin(kind, 0))

    start(before=TWIN, version="v1", folder=second)

    give_up = time.monotonic() + PATIENCE
    while "somebody else polls as twin/" not in read_logs(second):
        assert time.monotonic() < give_up, read_logs(second)
        time.sleep(0.1)
    assert "somebody else" not in read_logs(first)


DEPLOYED = """
from conductor.client.worker.worker_task import worker_task

@worker_task(task_definition_name="in_thread", poll_interval_millis=20)
def in_thread(seconds: float) -> dict:
    return {}
"""


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    """A package of workers, a repository of its own with the tag v1.4."""
    folder = tmp_path / "deployed"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "jobs.py").write_text(DEPLOYED)
    (folder / ".gitignore").write_text("__pycache__\n")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init",), ("add", "."), ("commit", "-m", "one"), ("tag", "v1.4")):
        subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)
    return folder


@pytest.fixture
def askers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the process that has asked git, for each time that one did."""
    path, program = tmp_path / "askers", tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho $PPID >>{path}\nexec {shutil.which("git")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return path


@ON_THE_STAND_IN
def test_git_is_asked_once_in_a_fleet_and_a_process_with_other_code_has_another_version(
    deployed: Path, askers: Path, start: Callable[..., Program], tmp_path: Path
) -> None:
    reports = tmp_path / "reports"
    program = start(modules=("deployed.jobs",), processes={"in_thread": 3}, folder=reports)
    names = worker_ids(reports, 3)
    assert {name.rpartition("/")[2] for name in names} == {"v1.4"}

    (deployed / "jobs.py").write_text(f"{DEPLOYED}\n# changed\n")
    os.kill(int(min(names).split("/")[1]), signal.SIGKILL)
    (replacement,) = worker_ids(reports, 4) - names

    assert re.fullmatch("[0-9a-f]{8}", replacement.rpartition("/")[2])
    assert set(askers.read_text().split()) == {str(program.process.pid)}


def worker_ids(reports: Path, number: int) -> set[str]:
    """Those of all processes that there ever were, once there are so many."""
    give_up = time.monotonic() + PATIENCE
    while len(found := {report.worker_id for report in read_reports(reports)}) < number:
        assert time.monotonic() < give_up, found
        time.sleep(0.1)
    return found


def _some(jobs: Jobs) -> list[dict[str, object]]:
    return [jobs.end(each) for each in [jobs.begin("in_loop", 0.1) for _ in range(8)]]
