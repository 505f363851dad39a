"""A job: what Conductor delivers to a worker, at least once, and how it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conductor.client.context.task_context import get_task_context
from conductor.client.worker.exception import NonRetryableException

from loopsafe_db.integrations.conductor.boundary import JSONObject, sendable
from loopsafe_db.integrations.repeating import ATTEMPTS, repeatable, run_in_own_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from loopsafe_db.retry import Attempts

    Work = Callable[["Job"], Coroutine[Any, Any, JSONObject]]


@dataclass(frozen=True)
class Job:
    """One job, by the only name that is the same for every delivery of it.

    Attributes:
        workflow_instance_id: The run of the workflow.
        reference_task_name: The step of that run; with the former it is the idempotency key
            (a retry has a new task id, a rerun has the old one).
        job_type: Which kind of worker does it.
        worker_id: Who does it this time.
    """

    workflow_instance_id: str
    reference_task_name: str
    job_type: str
    worker_id: str

    @property
    def key(self) -> dict[str, str]:
        """The idempotency key, as values of a query."""
        return {
            "workflow_instance_id": self.workflow_instance_id,
            "reference_task_name": self.reference_task_name,
        }


def current_job() -> Job:
    """The job that this thread, or this asyncio task, was given by Conductor."""
    context = get_task_context()
    return Job(
        workflow_instance_id=context.task.workflow_instance_id,
        reference_task_name=context.task.reference_task_name,
        job_type=context.task.task_def_name,
        worker_id=context.task_result.worker_id or "unknown",
    )


def run_job(
    work: Work, *, terminal: tuple[type[Exception], ...] = (), attempts: Attempts = ATTEMPTS
) -> JSONObject:
    """Do the job of a sync worker in an event loop of its own, in the thread that the SDK calls it in.

    Args:
        work: Does it; it may be called again, so what it writes is known by the job's `key`.
        terminal: Errors that a second try would find again: Conductor is told not to make one.
        attempts: How often it is done here when the database fails.

    Raises:
        InvalidOutput: The server, or the SDK, would lose the result or refuse it.
        NonRetryableException: One of the `terminal` errors, which is its cause.
        RunningLoopError: An event loop runs in this thread: an async worker awaits `do_job`.
    """
    return run_in_own_loop("run_job", lambda: do_job(work, terminal=terminal, attempts=attempts))


async def do_job(
    work: Work, *, terminal: tuple[type[Exception], ...] = (), attempts: Attempts = ATTEMPTS
) -> JSONObject:
    """Do the job of an async worker, in the loop that runs; else as `run_job`."""
    job = current_job()
    try:
        # Here, not by Conductor: a branch that fails once can end a JOIN that should have waited for its retry.
        return sendable(await attempts.run(repeatable, lambda: work(job)))
    except terminal as error:
        raise NonRetryableException(str(error)) from error
