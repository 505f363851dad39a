"""Workflows and tasks as the stand-in keeps them, and as the REST calls show them."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

UNFINISHED = frozenset({"SCHEDULED", "IN_PROGRESS"})
ENDED_BADLY = frozenset({"FAILED", "FAILED_WITH_TERMINAL_ERROR", "TIMED_OUT", "CANCELED"})

# Wall time at start plus a monotonic count: a corrected clock must not turn durations negative.
_EPOCH = time.time() - time.monotonic()


def now_ms() -> int:
    """Milliseconds since 1970 that never go back."""
    return int((_EPOCH + time.monotonic()) * 1000)


@dataclass(slots=True, kw_only=True)
class Task:
    """One execution of one step of a workflow."""

    reference: str
    type: str
    status: str
    seq: int
    workflow_id: str
    workflow_type: str
    input: dict[str, Any]
    step: dict[str, Any]
    definition: dict[str, Any] = field(default_factory=dict)
    correlation_id: str | None = None
    task_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    output: dict[str, Any] = field(default_factory=dict)
    worker_id: str | None = None
    reason: str | None = None
    retry_count: int = 0
    retried: bool = False
    retried_task_id: str | None = None
    poll_count: int = 0
    scheduled_at: int = 0
    ready_at: int = 0
    started_at: int = 0
    updated_at: int = 0
    ended_at: int = 0
    start_delay: int = 0
    callback_after: int = 0

    @property
    def response_timeout(self) -> int:
        """Seconds without a word from the worker after which the task is given away."""
        return int(self.definition.get("responseTimeoutSeconds", 0))

    @property
    def deadline(self) -> int:
        """When a task in progress times out, in milliseconds; each sign of life moves it."""
        return self.updated_at + self.response_timeout * 1000

    def in_scope(self) -> dict[str, Any]:
        """What ``${reference...}`` sees of this task."""
        return self.as_json() | {"input": self.input, "output": self.output}

    def as_json(self) -> dict[str, Any]:
        """The task as polled and as listed in its workflow."""
        return {
            "taskType": self.type,
            "status": self.status,
            "inputData": self.input,
            "outputData": self.output,
            "referenceTaskName": self.reference,
            "taskDefName": self.type,
            "retryCount": self.retry_count,
            "retried": self.retried,
            "retriedTaskId": self.retried_task_id,
            "seq": self.seq,
            "pollCount": self.poll_count,
            "scheduledTime": self.scheduled_at,
            "startTime": self.started_at,
            "endTime": self.ended_at,
            "updateTime": self.updated_at,
            "queueWaitTime": max(self.started_at - self.scheduled_at, 0),
            "startDelayInSeconds": self.start_delay,
            "callbackAfterSeconds": self.callback_after,
            "responseTimeoutSeconds": self.response_timeout,
            "workflowInstanceId": self.workflow_id,
            "workflowType": self.workflow_type,
            "correlationId": self.correlation_id,
            "taskId": self.task_id,
            "workerId": self.worker_id,
            "reasonForIncompletion": self.reason,
            "workflowTask": self.step,
            "taskDefinition": self.definition or None,
            "domain": None,
            "iteration": 0,
            "workflowPriority": 0,
        }


@dataclass(slots=True, kw_only=True)
class Workflow:
    """One run of a workflow definition: the definition as it was at the start, and its tasks."""

    definition: dict[str, Any]
    input: dict[str, Any]
    correlation_id: str | None = None
    workflow_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "RUNNING"
    output: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    tasks: list[Task] = field(default_factory=list)
    created_at: int = field(default_factory=now_ms)
    updated_at: int = 0
    ended_at: int = 0
    last_retried_at: int = 0
    failed_references: list[str] = field(default_factory=list)
    failed_names: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the definition."""
        return str(self.definition["name"])

    @property
    def label(self) -> str:
        """How error messages of the real server call a workflow."""
        return f"{self.name}.{self.definition['version']}/{self.workflow_id}.{self.status}"

    def latest(self, reference: str) -> Task | None:
        """The newest execution of a step: retries supersede what they retry."""
        return next((task for task in reversed(self.tasks) if task.reference == reference), None)

    def newest(self) -> Iterator[Task]:
        """The newest execution of each step."""
        return iter({task.reference: task for task in self.tasks}.values())

    def scope(self) -> dict[str, Any]:
        """What expressions of this workflow see."""
        return {task.reference: task.in_scope() for task in self.tasks} | {
            "workflow": self.as_json(with_tasks=False)
            | {"workflowType": self.name, "version": self.definition["version"]}
        }

    def as_json(self, *, with_tasks: bool) -> dict[str, Any]:
        """The workflow as ``GET /workflow/{id}`` shows it."""
        return {
            "workflowId": self.workflow_id,
            "workflowName": self.name,
            "workflowVersion": self.definition["version"],
            "workflowDefinition": self.definition,
            "status": self.status,
            "input": self.input,
            "output": self.output,
            "tasks": [task.as_json() for task in self.tasks] if with_tasks else [],
            "correlationId": self.correlation_id,
            "reasonForIncompletion": self.reason,
            "failedReferenceTaskNames": self.failed_references,
            "failedTaskNames": self.failed_names,
            "createTime": self.created_at,
            "startTime": self.created_at,
            "updateTime": self.updated_at,
            "endTime": self.ended_at,
            "lastRetriedTime": self.last_retried_at,
            "variables": {},
            "taskToDomain": {},
            "priority": 0,
        }
