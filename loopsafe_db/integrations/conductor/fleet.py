"""The worker processes: which there are, how they start, and that they end."""

from __future__ import annotations

import importlib
import inspect
import logging
import multiprocessing
import os
import select
import signal
import threading
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Self

from conductor.client.automator import task_handler
from conductor.client.automator.task_handler import TaskHandler, get_registered_workers
from conductor.client.configuration.configuration import Configuration
from conductor.client.worker.worker import Worker

from loopsafe_db.integrations.conductor.health import health_server
from loopsafe_db.integrations.conductor.metrics import provide_metrics
from loopsafe_db.integrations.conductor.process import (
    FleetTerms,
    FleetWorker,
    JobWatch,
    hash_and_version,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

    from conductor.client.configuration.settings.metrics_settings import MetricsSettings

StartMethod = Literal["spawn", "forkserver", "fork"]

KILL_SECONDS = 2.0
"""How much longer than its grace a process may take to end."""

_LOOK_SECONDS = 0.5
_log = logging.getLogger("loopsafe_db.conductor")
_WORKER_FIELDS = [name for name in inspect.signature(Worker.__init__).parameters if name != "self"]


class Fleet:
    """Worker processes for the length of a ``with`` block; afterwards there is none.

    Should live as long as your program does. Each process has the worker id ``host/pid/version``; when the fleet
    stops, jobs in flight have `grace` to end, and those that do not go back to Conductor at once.
    """

    def __init__(
        self,
        server: str | Configuration,
        modules: Sequence[str] = (),
        *,
        version: str | None = None,
        processes: Mapping[str, int] | None = None,
        grace: float = 5.0,
        folder: Path | None = None,
        start_method: StartMethod | None = None,
        preload: Sequence[str] = (),
        restarts: int = 10,
        metrics: MetricsSettings | None = None,
        worker_class: type[FleetWorker] = FleetWorker,
    ) -> None:
        """Say which processes there will be; `start` starts them.

        Args:
            server: Conductor's API, ``http://host:port/api``, or the SDK's configuration.
            modules: Those of the workers, imported here. Without any, all workers that are registered.
            version: Of your code; ``None`` takes what `code_version` says of its package when the fleet starts.
            processes: How many a worker has, by the name of its task; one if it does not say.
            grace: Seconds that jobs in flight have when the fleet stops; 2 s later what still lives is killed.
            folder: Made if need be. Each process writes ``PID.log`` and ``PID.json``: `read_logs`, `read_reports`.
                Without one, the lines of all of them are on standard output, marked.
            start_method: How they are made. ``None`` leaves it to the SDK, which takes ``spawn`` if nobody has
                chosen.
            preload: Modules that a forkserver imports, once, for all of them.
            restarts: How often a process that died is replaced, each.
            metrics: Of the SDK.
            worker_class: Makes the SDK's worker of a worker function.
        """
        for module in modules:
            importlib.import_module(module)
        is_url = isinstance(server, str)
        self.configuration: Configuration = (
            Configuration(server_api_url=server, log_level="WARNING") if is_url else server
        )
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._terms = FleetTerms(os.getpid(), self.configuration, version, grace, folder)
        self.workers: list[FleetWorker] = make_workers(modules, processes or {}, worker_class)
        for worker in self.workers:
            worker.terms = self._terms
        self._start_method, self._preload = start_method, preload
        self._restarts, self._metrics = restarts, metrics
        self._handler: TaskHandler | None = None
        self._mine: set[multiprocessing.process.BaseProcess] = set()
        self.killed: int = 0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the processes."""
        if self._start_method is not None:
            multiprocessing.set_start_method(self._start_method, force=True)
        if self._preload:
            multiprocessing.set_forkserver_preload(
                [*self._preload, "loopsafe_db.integrations.freeze"]
            )
        if not self._terms.version:
            self._terms.versions = self._versions()
        before = set(multiprocessing.active_children())
        try:
            with _ctrl_c_is_not_for_children():
                self._handler = TaskHandler(
                    workers=self.workers,
                    configuration=self.configuration,
                    metrics_settings=self._metrics,
                    scan_for_annotated_workers=False,
                    event_listeners=[JobWatch()],
                    restart_on_failure=self._restarts > 0,
                    restart_max_attempts=self._restarts,
                )
                if self._metrics is not None:
                    self._handler.metrics_provider_process = multiprocessing.Process(
                        target=provide_metrics, args=(self._metrics,)
                    )
                self._terms.logger_pid = self._handler.logger_process.pid or 0
                self._handler.start_processes()
        finally:
            self._mine = set(multiprocessing.active_children()) - before

    def stop(self) -> None:
        """End all processes, at once; twice is fine."""
        handler, self._handler = self._handler, None
        children = self._mine  # the log process alone, if the start got no further
        if handler is not None:
            handler.restart_on_failure = False
            children = set(handler.task_runner_processes)  # those of now: some may be replacements
        with _no_alarm():
            self.killed += _end(children, self._terms.grace + KILL_SECONDS)
        if handler is not None:
            handler.stop_processes()
            _end({handler.logger_process}, KILL_SECONDS)
        self._mine = set()

    def _versions(self) -> dict[str, str]:
        """Of the workers' packages, by the hash of each: git is not asked in each process again."""
        modules = (worker.execute_function.__module__ for worker in self.workers)
        packages = {module.partition(".")[0] for module in modules}
        return dict(map(hash_and_version, packages))

    @property
    def process_count(self) -> int:
        """How many worker processes there are."""
        return len(self.workers)

    def status(self) -> list[dict[str, Any]]:
        """Each worker process: ``worker``, ``pid``, ``alive``, ``exitcode``, ``restart_count``."""
        handler = self._handler
        status: list[dict[str, Any]] = (
            [] if handler is None else handler.get_worker_process_status()
        )
        return status

    @property
    def is_healthy(self) -> bool:
        """Whether every worker process lives."""
        status = self.status()
        return bool(status) and all(each["alive"] for each in status)

    @property
    def has_given_up(self) -> bool:
        """Whether a worker has died so often that it is not replaced any more."""
        return any(
            not each["alive"]
            and each["exitcode"] is not None
            and each["restart_count"] >= self._restarts
            for each in self.status()
        )


def run_workers(
    server: str | Configuration,
    modules: Sequence[str] = (),
    *,
    health_port: int | None = None,
    **options: Any,
) -> int:
    """Run a fleet until SIGTERM or Ctrl-C; the program's whole work, in its main thread.

    Args:
        server: As for `Fleet`.
        modules: As for `Fleet`.
        health_port: Where ``GET /`` answers 200 while every worker process lives, else 503.
        **options: The others of `Fleet`.

    Returns:
        An exit code: 0 if it was told to stop and all processes have ended by themselves, 1 if one had to be killed,
        or has died too often.
    """
    with _stop_signals() as asked:
        with Fleet(server, modules, **options) as fleet:
            with nullcontext() if health_port is None else health_server(fleet, health_port):
                while not asked(_LOOK_SECONDS) and not fleet.has_given_up:
                    pass
            has_given_up = fleet.has_given_up
        return 1 if has_given_up or fleet.killed else 0


def make_workers(
    modules: Sequence[str],
    processes: Mapping[str, int],
    worker_class: type[FleetWorker] = FleetWorker,
) -> list[FleetWorker]:
    """One entry per process."""
    return [
        worker_class(**{name: getattr(worker, name) for name in _WORKER_FIELDS})
        for worker in get_registered_workers()
        if not modules or worker.execute_function.__module__ in modules
        for _ in range(processes.get(worker.task_definition_name, 1))
    ]


def _end(children: set[multiprocessing.process.BaseProcess], patience: float) -> int:
    """Ask all processes at once to end; how many had to be killed."""
    until = time.monotonic() + patience
    alive = {child for child in children if child.pid is not None and child.is_alive()}
    while alive and time.monotonic() < until:
        for child in alive:
            child.terminate()  # again and again: one that has just begun may have missed it
        _wait_for_one(alive, min(_LOOK_SECONDS, until - time.monotonic()))
        alive = {child for child in alive if child.is_alive()}
    for child in alive:
        _log.warning("%s, pid %s, had to be killed: it did not end in time", child.name, child.pid)
        child.kill()
    for child in alive:
        child.join()
    return len(alive)


def _wait_for_one(children: set[multiprocessing.process.BaseProcess], seconds: float) -> None:
    multiprocessing.connection.wait([child.sentinel for child in children], max(seconds, 0))


@contextmanager
def _no_alarm() -> Iterator[None]:
    """The SDK goes on looking after its processes: of one that was asked to end it would warn that it crashes."""
    logger: logging.Logger = task_handler.logger
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _ctrl_c_is_not_for_children() -> Iterator[None]:
    """A terminal sends Ctrl-C to every process; the SDK's ignore it once they have imported.

    Until then they would die of it with a traceback. What a parent ignores, its children ignore.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _stop_signals() -> Iterator[Any]:
    """A function that waits for SIGTERM or SIGINT, and says whether one has come."""
    pid = os.getpid()
    reading, writing = os.pipe()

    def note(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != pid:  # a forked child that has not begun its own life yet
            raise SystemExit(128 + number)
        os.write(writing, b"!")

    def asked(seconds: float) -> bool:
        return bool(select.select([reading], [], [], seconds)[0])

    before = [(each, signal.signal(each, note)) for each in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield asked
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)
