"""What people do to workflows from outside: terminate, retry, restart, rerun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reflector_workers.conductor.stand_in.decider import Decider, retry_of
from reflector_workers.conductor.stand_in.records import ENDED_BADLY, Task, Workflow
from reflector_workers.conductor.stand_in.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable


def terminate(decider: Decider, workflow: Workflow, reason: str | None, now: int) -> None:
    """End a workflow whatever it does; nothing changes if it was terminated before."""
    if workflow.status == "COMPLETED":
        raise Refusal(409, "Cannot terminate a COMPLETED workflow.")
    if workflow.status != "TERMINATED":
        decider.end(workflow, "TERMINATED", reason, now)


def retry(decider: Decider, workflow: Workflow, now: int) -> None:
    """Execute again what ended badly, and only that; joins go on where they were."""
    if workflow.status == "RUNNING":
        raise Refusal(404, "Workflow is still running.  status=RUNNING")
    failed = [task for task in workflow.newest() if task.status in ENDED_BADLY]
    if not failed:
        raise Refusal(
            409,
            "There are no retryable tasks! Use restart if you want to attempt entire "
            "workflow execution again.",
        )
    workflow.last_retried_at = now
    for task in failed:
        if task.type == "JOIN":
            task.status = "IN_PROGRESS"
        else:
            decider.queues.put(retry_of(workflow, task, now))
    _resume(decider, workflow, now)


def restart(decider: Decider, workflow: Workflow, now: int) -> None:
    """Forget every task and begin again under the same id."""
    _refuse_if_running(workflow, "restart")
    _forget(workflow, lambda _task: True)
    workflow.output, workflow.created_at = {}, now
    workflow.ended_at = workflow.last_retried_at = 0
    _resume(decider, workflow, now)


def rerun(decider: Decider, workflow: Workflow, request: dict[str, Any], now: int) -> None:
    """Go back to one task, or to the first, and execute from there on.

    Unlike a retry, the task keeps its id: workers must not take ids for new executions.
    """
    _refuse_if_running(workflow, "rerun")
    target = _rerun_target(workflow, request.get("reRunFromTaskId"))
    workflow.input = request.get("workflowInput") or workflow.input
    workflow.failed_references, workflow.failed_names = [], []
    if target is None:
        _forget(workflow, lambda _task: True)
    else:
        _forget(workflow, lambda task: task.seq > target.seq)
        target.input = request.get("taskInput") or target.input
        _schedule_again(target, now)
        decider.queues.put(target)
    _resume(decider, workflow, now)


def _rerun_target(workflow: Workflow, task_id: str | None) -> Task | None:
    if task_id is None:
        return None
    target = next((task for task in workflow.tasks if task.task_id == task_id), None)
    if target is None:
        raise Refusal(400, f"Task {task_id} not found")
    if target.step not in workflow.definition["tasks"] or target.step["type"] != "SIMPLE":
        raise Refusal(400, "The stand-in reruns SIMPLE tasks of the main line only")
    return target


def _schedule_again(task: Task, now: int) -> None:
    task.status, task.output, task.retried = "SCHEDULED", {}, False
    task.scheduled_at = task.ready_at = task.updated_at = now
    task.started_at = task.ended_at = task.poll_count = 0


def _forget(workflow: Workflow, is_forgotten: Callable[[Task], bool]) -> None:
    for task in workflow.tasks:
        if is_forgotten(task):
            task.status = "CANCELED"  # it may still wait in a queue, which drops it then
    workflow.tasks = [task for task in workflow.tasks if not is_forgotten(task)]


def _resume(decider: Decider, workflow: Workflow, now: int) -> None:
    workflow.status, workflow.reason = "RUNNING", None
    decider.advance(workflow, now)


def _refuse_if_running(workflow: Workflow, verb: str) -> None:
    if workflow.status == "RUNNING":
        text = f"Workflow: {workflow.label} is not in terminal state, unable to {verb}."
        raise Refusal(409, text)
