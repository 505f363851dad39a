"""The worker processes: which there are, how they start, and that they end."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from conductor.client.automator.task_handler import TaskHandler, get_registered_workers
from conductor.client.configuration.configuration import Configuration
from conductor.client.worker.worker import Worker

from reflector_workers.lifecycle import WorkerLifecycle
from reflector_workers.workers import (  # noqa: F401  (importing them registers them)
    detect_speech,
    finalize,
    merge_turns,
    prepare_meeting,
)

if TYPE_CHECKING:
    from pathlib import Path

PROCESSES = {"detect_speech": 2}  # the model keeps the interpreter lock: threads do not help
STOP_SECONDS = 6.0

WorkerClass = Callable[..., Worker]


@contextmanager
def running_fleet(
    conductor_url: str, folder: Path, worker_class: WorkerClass = Worker
) -> Iterator[TaskHandler]:
    """Worker processes for the length of a ``with`` block; afterwards there is none.

    Args:
        conductor_url: The server's API, ``http://host:port/api``.
        folder: Where the processes leave logs and reports; see `lifecycle`.
        worker_class: Makes the SDK's worker of a worker function.
    """
    lifecycle = WorkerLifecycle(folder)
    handler = None
    try:
        with _ctrl_c_is_not_for_children():
            handler = TaskHandler(
                workers=make_workers(worker_class),
                configuration=Configuration(server_api_url=conductor_url, log_level="WARNING"),
                scan_for_annotated_workers=False,
                event_listeners=[lifecycle],
                restart_max_attempts=3,
            )
            lifecycle.logger_pid = handler.logger_process.pid or 0
            handler.start_processes()
        yield handler
    finally:
        _stop(handler)


@contextmanager
def _ctrl_c_is_not_for_children() -> Iterator[None]:
    """A terminal sends Ctrl-C to every process; the SDK's ignore it once they have imported.

    Until then they would die of it with a traceback. What a parent ignores, its children ignore.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def make_workers(worker_class: WorkerClass = Worker) -> list[Worker]:
    """One entry per process; each has the thread count that its decorator says."""
    return [
        worker_class(
            task_definition_name=worker.task_definition_name,
            execute_function=worker.execute_function,
            poll_interval=worker.poll_interval,
            thread_count=worker.thread_count,
            lease_extend_enabled=worker.lease_extend_enabled,
        )
        for worker in own_workers()
        for _ in range(PROCESSES.get(worker.task_definition_name, 1))
    ]


def own_workers() -> list[Worker]:
    """The workers of this example; the SDK keeps those of a whole process in one place."""
    return [
        worker
        for worker in get_registered_workers()
        if worker.execute_function.__module__.startswith("reflector_workers.workers.")
    ]


def _stop(handler: TaskHandler | None) -> None:
    children = multiprocessing.active_children()
    for child in children:
        if handler is None or child is not handler.logger_process:
            child.terminate()  # all at once: the SDK asks one, waits for it, and asks the next
    if handler is not None:
        handler.stop_processes()
    for child in children:  # also what a Ctrl-C during the start has left
        child.terminate()
        child.join(STOP_SECONDS)
        if child.is_alive():
            child.kill()
            child.join()
