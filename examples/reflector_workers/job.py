"""A job: what Conductor delivers to a worker, at least once."""

from __future__ import annotations

from dataclasses import dataclass

from conductor.client.context.task_context import get_task_context


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
