"""Celery's tasks on coroutines, in every pool of its own: prefork, threads, solo.

::

    @app.task(acks_late=True)
    def square(number):
        return run_task(lambda job: store(job, number))

There is nothing to set up for a worker or a fork, such as ``worker_process_init``. A soft time limit raises in the task
and ends its loop, a hard one kills its process: either costs this task alone.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from celery import current_task

from loopsafe_db.integrations.repeating import ATTEMPTS, repeatable, run_in_own_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from loopsafe_db.retry import Attempts

T = TypeVar("T")


@dataclass(frozen=True)
class TaskJob:
    """One task, by the only name that is the same for every delivery of it.

    Attributes:
        id: The idempotency key: a retry has it too, and so has what ``acks_late`` delivers again.
        name: Which kind of task it is.
        worker_id: Who does it this time: host and pid.
        is_redelivered: Whether a worker that had it did not acknowledge it.
    """

    id: str
    name: str
    worker_id: str
    is_redelivered: bool


def current_job() -> TaskJob:
    """The task that Celery runs here; one that is called as a function has no id."""
    request = current_task.request
    return TaskJob(
        id=request.id or "",
        name=current_task.name,
        worker_id=f"{socket.gethostname()}/{os.getpid()}",
        is_redelivered=bool((request.delivery_info or {}).get("redelivered")),
    )


def run_task(
    work: Callable[[TaskJob], Coroutine[object, object, T]], attempts: Attempts = ATTEMPTS
) -> T:
    """Do a task in an event loop of its own, in the process or thread that Celery runs it in.

    Args:
        work: Does it; it may be called again, so what it writes is known by the job's `id`.
        attempts: How often it is done here when the database fails; then Celery is told.

    Raises:
        RunningLoopError: An event loop runs in this thread: the task was called, or sent eagerly, by a coroutine.
    """
    job = current_job()
    return run_in_own_loop("run_task", lambda: attempts.run(repeatable, lambda: work(job)))
