"""How far the workflows are, as Conductor sees them."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reflector_workers.conductor.client import ENDED, ConductorClient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

POLL_SECONDS = 0.25
_DECIDE_EVERY_SECONDS = 2.0
_OWN_TASKS = {"FORK", "FORK_JOIN_DYNAMIC", "JOIN"}  # Conductor does these itself
_FAILED = {"FAILED", "FAILED_WITH_TERMINAL_ERROR", "TIMED_OUT"}


@dataclass(frozen=True)
class JobState:
    """One attempt at a job."""

    job_type: str
    status: str
    reason: str
    worker_id: str

    @property
    def failed(self) -> bool:
        return self.status in _FAILED


@dataclass(frozen=True)
class WorkflowState:
    """One run of the workflow, with every attempt at every job."""

    id: str
    status: str
    reason: str
    jobs: tuple[JobState, ...]
    output: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def completed(self) -> bool:
        return self.status == "COMPLETED"

    @property
    def failures(self) -> list[JobState]:
        return [job for job in self.jobs if job.failed]


def watch(
    conductor: ConductorClient,
    workflow_ids: Sequence[str],
    seconds: float,
    on_look: Callable[[list[WorkflowState]], None],
) -> list[WorkflowState]:
    """Look at the workflows again and again until all have ended or the time is over.

    Asks the server to decide from time to time: on SQLite it forgets to, under many workers.

    Args:
        conductor: Whom to ask.
        workflow_ids: Which workflows.
        seconds: The time.
        on_look: Called with what each look showed.

    Returns:
        What the last look showed.
    """
    decided = time.monotonic()
    deadline = decided + seconds
    while True:
        states = [read_state(conductor.get_workflow(one)) for one in workflow_ids]
        on_look(states)
        if all(state.ended for state in states) or time.monotonic() > deadline:
            return states
        if time.monotonic() > decided + _DECIDE_EVERY_SECONDS:
            _decide(conductor, states)
            decided = time.monotonic()
        time.sleep(POLL_SECONDS)


def _decide(conductor: ConductorClient, states: Sequence[WorkflowState]) -> None:
    for state in states:
        if not state.ended:
            conductor.decide_workflow(state.id)


def read_state(workflow: Mapping[str, Any]) -> WorkflowState:
    """Pick from a workflow of the REST API what the demo shows."""
    return WorkflowState(
        id=workflow["workflowId"],
        status=workflow["status"],
        reason=workflow.get("reasonForIncompletion") or "",
        jobs=tuple(_job_states(workflow.get("tasks", []))),
        output=workflow.get("output") or {},
    )


def _job_states(tasks: Sequence[Mapping[str, Any]]) -> list[JobState]:
    return [
        JobState(
            job_type=task["taskDefName"],
            status=task["status"],
            reason=task.get("reasonForIncompletion") or "",
            worker_id=task.get("workerId") or "",
        )
        for task in tasks
        if task["taskType"] not in _OWN_TASKS
    ]


def done_by_type(states: Sequence[WorkflowState]) -> Counter[str]:
    """How many jobs of each type are done."""
    return Counter(
        job.job_type for state in states for job in state.jobs if job.status == "COMPLETED"
    )


def failure_reasons(states: Sequence[WorkflowState]) -> Counter[str]:
    """How often each reason was given for a failed attempt."""
    return Counter(job.reason or job.status for state in states for job in state.failures)
