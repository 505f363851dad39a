"""The life of one worker process: its name, its jobs, and an end that loses none of them.

conductor-python gives worker processes SIGTERM's default action (the jobs in flight are abandoned, nothing is
closed), the host's name as worker id, and a life of their own once the parent was killed. It has two places for code
of ours in each of them: the worker object that it polls for, and event listeners.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures.thread import _threads_queues
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conductor.client.http.api.task_resource_api import TaskResourceApi
from conductor.client.http.api_client import ApiClient
from conductor.client.http.models.task_result import TaskResult
from conductor.client.worker.worker import Worker

from loopsafe_db.integrations.conductor.logs import redirect_output
from loopsafe_db.integrations.reports import REPORT_SECONDS, ProcessReport, write_if_there

if TYPE_CHECKING:
    from types import FrameType

    from conductor.client.configuration.configuration import Configuration
    from conductor.client.event.task_runner_events import (
        PollCompleted,
        TaskExecutionCompleted,
        TaskExecutionFailure,
        TaskExecutionStarted,
    )

_LOOK_SECONDS = 0.1
_GIT_SECONDS = 5.0
_NAMESAKE_SECONDS = 1.0  # in which a worker that is alive polls
_SETTLE_SECONDS = 0.2  # what a poll has brought has begun by then
_REPORT_SECONDS = 0.5  # in which the report of a job is answered, perhaps by another job
_LAST_SECONDS = 1.0  # for all that is still on its way when the grace is over

_log = logging.getLogger("loopsafe_db.conductor")


@dataclass
class FleetTerms:
    """What a fleet tells each of its worker processes.

    Attributes:
        fleet_pid: The process that starts them.
        configuration: Of the SDK: where Conductor is.
        version: Of the code, if somebody gave one.
        grace: Seconds that jobs in flight have when the fleet stops.
        folder: For logs and reports.
        logger_pid: The SDK's log process, which would outlive a killed parent.
        versions: What git says of the code, by its hash: asked once, when the fleet starts.
    """

    fleet_pid: int
    configuration: Configuration
    version: str | None
    grace: float
    folder: Path | None
    logger_pid: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def version_in_this_process(self, module: str) -> str:
        """The version in a worker's id; a hash where the code is not what it was when the fleet started."""
        if self.version:
            return self.version
        letters = _hashed(_code_of(module)[1])
        return self.versions.get(letters, letters)


class FleetWorker(Worker):  # type: ignore[misc]
    """The SDK's worker, named after its process, and asked before each poll whether to go on."""

    terms: FleetTerms | None = None

    def get_task_definition_name(self) -> str:
        """The kind of job; a runner asks for it before anything else, so the process begins its life here."""
        self._process()
        name: str = super().get_task_definition_name()
        return name

    def get_identity(self) -> str:
        """Host, pid and version of the code."""
        process = self._process()
        identity: str = super().get_identity() if process is None else process.worker_id
        return identity

    @property
    def paused(self) -> bool:
        """Whether not to poll: both runners look before they do."""
        process = self._process()
        return self._paused or (process is not None and process.must_not_poll())

    @paused.setter
    def paused(self, value: bool) -> None:
        self._paused = value

    def _process(self) -> WorkerProcess | None:
        terms = self.terms
        if terms is None or os.getpid() == terms.fleet_pid:
            return None
        return _enter(terms, self.execute_function, str(self.task_definition_name))


class JobWatch:
    """An event listener that knows which jobs this process has."""

    def on_poll_completed(self, event: PollCompleted) -> None:
        """Note that jobs are here, which begin soon."""
        if _here is not None and event.tasks_received:
            _here.polled()

    def on_task_execution_started(self, event: TaskExecutionStarted) -> None:
        """Note a job; refuse it if the process is about to end."""
        if _here is not None:
            _here.begin(event.task_id, event.workflow_instance_id)

    def on_task_execution_completed(self, event: TaskExecutionCompleted) -> None:
        """Note that a job is done, and about to be reported."""
        if _here is not None:
            _here.done(event.task_id)

    def on_task_execution_failure(self, event: TaskExecutionFailure) -> None:
        """Note that a job has failed, and is about to be reported."""
        if _here is not None:
            _here.done(event.task_id)


@dataclass
class _Delivery:
    """A job that is here. It is done before Conductor knows: `task` ends after that, a thread's job does not say."""

    workflow_id: str
    task: asyncio.Task[Any] | None
    done: bool = False

    @property
    def is_in_the_way(self) -> bool:
        return not self.done if self.task is None else not self.task.done()


class WorkerProcess:
    """This process, as a worker of a fleet."""

    def __init__(self, terms: FleetTerms, version: str, job_type: str) -> None:
        self.worker_id: str = f"{socket.gethostname()}/{os.getpid()}/{version}"
        self._terms, self._job_type = terms, job_type
        self._jobs: dict[str, _Delivery] = {}
        self._parent_pid = os.getppid()
        self.asked_at: float | None = (
            None  # when to stop; no Event: a signal handler must not take its lock
        )
        self._quiet_since: float | None = None  # since when no poll has brought jobs, as polls tell
        self._done_at = 0.0  # when a job was last done: its report may bring another
        self._returning: set[str] = set()  # jobs on their way back
        self._reporting, self._has_ended = threading.Lock(), False

    def begin_life(self) -> None:
        """Take over what the SDK leaves to chance: output, SIGTERM, the parent's death."""
        redirect_output(self._terms.folder, self._job_type)
        Finalize(self, self._end_life, exitpriority=0)  # atexit is for spawned children only
        signal.signal(signal.SIGTERM, self._on_sigterm)
        threading.Thread(target=self._watch, name="loopsafe-worker-watch", daemon=True).start()
        self._look_for_a_namesake()

    def _end_life(self) -> None:
        self.report(ended=True)
        gc.freeze()  # what ends with the process need not be collected: a quarter of a second of CPU in each

    def polled(self) -> None:
        """Note that a poll has brought jobs, in the thread that polls."""
        self._quiet_since = None

    def begin(self, task_id: str, workflow_id: str) -> None:
        """Note a job, in the thread or the task that does it.

        A poll that was under way brings jobs though the process is to end, and so does the report of one that is
        done: they go back.
        """
        if self.asked_at is not None:
            self._hand_back(task_id, workflow_id)
            raise asyncio.CancelledError  # no Exception, which the SDK would swallow
        self._jobs[task_id] = _Delivery(workflow_id, _current_task())

    def done(self, task_id: str) -> None:
        """Note that a job is done."""
        self._done_at = time.monotonic()
        if task_id in self._jobs:
            self._jobs[task_id].done = True
        for other, delivery in self._jobs.copy().items():
            if other != task_id and not delivery.is_in_the_way:
                self._jobs.pop(other, None)

    def must_not_poll(self) -> bool:
        """Whether the process is to end. Ends it, between two polls, once no job is in the way."""
        if self.asked_at is None:
            return False
        if threading.current_thread() is threading.main_thread():
            # Counted from a look on, not from the poll: tasks that were made before a look have begun at the next.
            self._quiet_since = self._quiet_since or time.monotonic()
            settled = time.monotonic() - self._quiet_since > _SETTLE_SECONDS
            if settled and not self._in_flight() and not _is_work_queued():
                raise SystemExit(0)
        return True

    def _look_for_a_namesake(self) -> None:
        """Say so if somebody polls by this process's id, which has not polled yet.

        Containers with one host name have equal pids too. An id that only was used moves on no more.
        """
        first = self._last_poll()
        if first is None:
            return
        time.sleep(_NAMESAKE_SECONDS)
        if self._last_poll() != first:
            _log.warning(
                "somebody else polls as %s: two containers of one host name. Give each its own, "
                "or nobody can tell who did a job",
                self.worker_id,
            )

    def _last_poll(self) -> object:
        """When Conductor was last asked for such jobs by this id; None if never, or if it is away."""
        try:
            rows = TaskResourceApi(
                ApiClient(configuration=self._terms.configuration)
            ).get_poll_data(self._job_type)
        except Exception:  # noqa: BLE001  (the polls that follow will say so)
            return None
        polls = [row.last_poll_time for row in rows if row.worker_id == self.worker_id]
        return max(polls, default=None)

    def _in_flight(self) -> dict[str, _Delivery]:
        return {id: job for id, job in self._jobs.copy().items() if job.is_in_the_way}

    def _on_sigterm(self, _signal: int, _frame: FrameType | None) -> None:
        if self.asked_at is None:
            self.asked_at = time.monotonic()

    def _watch(self) -> None:
        reported = 0.0
        while True:
            time.sleep(_LOOK_SECONDS)
            if is_orphan(self._parent_pid):
                self._leave_with_the_parent()
            if self.asked_at is not None and time.monotonic() > self.asked_at + self._terms.grace:
                self.give_up()
            if time.monotonic() > reported + REPORT_SECONDS:
                reported = time.monotonic()
                self.report(ended=False)

    def _leave_with_the_parent(self) -> None:
        if self.asked_at is None:
            self.asked_at = time.monotonic()
            if self._terms.logger_pid:
                with suppress(ProcessLookupError):
                    os.kill(self._terms.logger_pid, signal.SIGTERM)

    def give_up(self) -> None:
        """End at once, as the grace is over; what is here goes back, and what is on its way has a moment."""
        until = time.monotonic() + _LAST_SECONDS
        self.hand_back()
        while time.monotonic() < min(until, self._done_at + _REPORT_SECONDS) or (
            self._returning and time.monotonic() < until
        ):
            time.sleep(_LOOK_SECONDS / 10)
        self.report(ended=True)
        with suppress(ValueError, OSError):
            sys.stdout.flush()
        os._exit(0)

    def hand_back(self) -> None:
        """Give back the jobs that are still here, all at once, in a second: a process that takes long to end is killed.

        Those of a thread may be reported already: that changes nothing.
        """
        until = time.monotonic() + _LAST_SECONDS
        left = [
            threading.Thread(target=self._hand_back, args=(task_id, job.workflow_id), daemon=True)
            for task_id, job in self._jobs.copy().items()
            if job.task is None or not job.task.done()
        ]
        for each in left:
            each.start()
        for each in left:  # a server that is silent would hold them for two minutes
            each.join(max(0.0, until - time.monotonic()))

    def _hand_back(self, task_id: str, workflow_id: str) -> None:
        """Have Conductor deliver a job again at once; its tries are not spent."""
        result = TaskResult(
            task_id=task_id,
            workflow_instance_id=workflow_id,
            worker_id=self.worker_id,
            status="IN_PROGRESS",
            callback_after_seconds=0,
        )
        self._returning.add(task_id)
        try:
            TaskResourceApi(ApiClient(configuration=self._terms.configuration)).update_task(result)
        except Exception:  # noqa: BLE001  (the server is away, or refuses: the response timeout is left)
            _log.warning(
                "job %s of workflow %s could not be given back", task_id, workflow_id, exc_info=True
            )
        else:
            _log.warning(
                "job %s of workflow %s is given back: this worker ends", task_id, workflow_id
            )
        finally:
            self._returning.discard(task_id)

    def report(self, *, ended: bool) -> None:
        """Write how this process is; nothing more once it has `ended`."""
        with self._reporting:
            if self._has_ended:
                return  # the thread that watches goes on for as long as the interpreter takes to end
            self._has_ended = ended
            report = ProcessReport.of_this_process(
                self.worker_id, self._job_type, len(self._in_flight()), ended=ended
            )
            write_if_there(report, self._terms.folder)


_here: WorkerProcess | None = None
_pid_here = 0


def _enter(terms: FleetTerms, function: Any, job_type: str) -> WorkerProcess:
    """This process's life, which begins with the first question in it."""
    global _here, _pid_here
    if _here is None or _pid_here != os.getpid():
        _pid_here = os.getpid()
        _here = WorkerProcess(terms, terms.version_in_this_process(function.__module__), job_type)
        _here.begin_life()
    return _here


def is_orphan(parent_pid: int) -> bool:
    """Tell whether this process has lost the parent that it began with."""
    # Forked siblings hold the pipe that tells of the parent's end; a forkserver is everybody's parent.
    parent = multiprocessing.parent_process()
    return os.getppid() != parent_pid or (parent is not None and not parent.is_alive())


def code_version(module: str) -> str:
    """Tells an old worker from a new one: what ``git describe`` says, else eight letters that change with the code.

    Git is asked where it knows the module's package and has it as it is here, without a change. Of the letters, each
    file of the package has its part.
    """
    return hash_and_version(module)[1]


def hash_and_version(module: str) -> tuple[str, str]:
    """Eight letters that change with the code, and its version."""
    folders, files = _code_of(module)
    letters = _hashed(files)
    return letters, _described([*map(str, folders or files)], str(files[0])) or letters


def _code_of(module: str) -> tuple[list[Path], list[Path]]:
    """The folders of a module's package, and its files; a module without a package has one file."""
    top = sys.modules[module.partition(".")[0]]
    folders = [Path(folder) for folder in getattr(top, "__path__", [])]
    found = (path for folder in folders for path in folder.rglob("*.py"))
    files = sorted(path for path in found if path.is_file())  # editors lock by links to nowhere
    return folders, files or [Path(str(top.__file__))]


def _hashed(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def _described(paths: list[str], one_file: str) -> str:
    try:
        _git(one_file, "ls-files", "--error-unmatch", "--", one_file)
        if _git(one_file, "status", "--porcelain", "--", *paths):
            return ""
        return _git(one_file, "describe", "--always", "--tags")
    except (
        OSError,
        subprocess.SubprocessError,
    ):  # there is no git, or it knows nothing of the code
        return ""


def _git(beside: str, *words: str) -> str:
    command = ["git", "-C", str(Path(beside).parent), *words]
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=_GIT_SECONDS,
    )
    return done.stdout.strip()


def _is_work_queued() -> bool:
    """Whether work waits for a thread of a pool. The SDK ends its pool at the process's end: what waits is lost."""
    queues = [_threads_queues.get(thread) for thread in threading.enumerate()]
    return any(not queue.empty() for queue in queues if queue is not None)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None
