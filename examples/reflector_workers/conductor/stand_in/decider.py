"""What happens next in a workflow: steps scheduled, forks joined, failures retried, the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reflector_workers.conductor.stand_in.expressions import resolve
from reflector_workers.conductor.stand_in.forks import Branch, ForkInputError, branches_of
from reflector_workers.conductor.stand_in.records import UNFINISHED, Task, Workflow

if TYPE_CHECKING:
    from reflector_workers.conductor.stand_in.definitions import Definitions
    from reflector_workers.conductor.stand_in.queues import Queues

RETRIED_BY_ITSELF = frozenset({"FAILED", "TIMED_OUT"})
WORKFLOW_STATUS_AFTER = {"TIMED_OUT": "TIMED_OUT", "CANCELED": "TERMINATED"}


@dataclass(frozen=True, slots=True)
class Decider:
    """Moves workflows on. Holds no state of its own and takes no lock."""

    definitions: Definitions
    queues: Queues

    def advance(self, workflow: Workflow, now: int) -> None:
        """Schedule what can run now; end the workflow if nothing is left to run."""
        workflow.updated_at = now
        for step in workflow.definition["tasks"]:
            task = workflow.latest(step["taskReferenceName"])
            try:
                task = task or self._schedule(workflow, step, now)
            except ForkInputError as error:
                self.end(workflow, "FAILED", str(error), now)
                return
            if task.type == "JOIN":
                _collect(workflow, task, now)
            if task.status != "COMPLETED":
                return
        self.end(workflow, "COMPLETED", None, now)

    def task_failed(self, workflow: Workflow, task: Task, now: int) -> None:
        """Retry a task as its definition allows, else end the workflow."""
        if task.status in RETRIED_BY_ITSELF and task.retry_count < task.definition["retryCount"]:
            self.queues.put(_retry_after_delay(workflow, task, now))
            return
        status = WORKFLOW_STATUS_AFTER.get(task.status, "FAILED")
        reason = f"'{'null' if task.reason is None else task.reason}'"
        text = f"Task {task.task_id} failed with status: {status} and reason: {reason}"
        self.end(workflow, status, text, now)

    def end(self, workflow: Workflow, status: str, reason: str | None, now: int) -> None:
        """Give a workflow its last status and output; what still runs is cancelled."""
        for task in workflow.tasks:
            if task.status in UNFINISHED:
                task.status, task.ended_at = "CANCELED", now
        workflow.status, workflow.reason, workflow.ended_at = status, reason, now
        workflow.updated_at = now
        workflow.output = _output_of(workflow)
        failed = [t for t in workflow.tasks if t.status.startswith("FAILED")]
        workflow.failed_references = list(dict.fromkeys(task.reference for task in failed))
        workflow.failed_names = list(dict.fromkeys(task.type for task in failed))

    def _schedule(self, workflow: Workflow, step: dict[str, Any], now: int) -> Task:
        given = resolve(step["inputParameters"], workflow.scope())
        if step["type"] == "FORK_JOIN_DYNAMIC":
            return self._fork(workflow, step, given, now)
        if step["type"] == "JOIN":
            return _add_join(workflow, step, step["joinOn"], now)
        return self._add_simple(workflow, step, Branch(step["name"], "", given), now)

    def _add_simple(
        self, workflow: Workflow, step: dict[str, Any], branch: Branch, now: int
    ) -> Task:
        task = _add(
            workflow,
            step,
            type=branch.name,
            status="SCHEDULED",
            input=branch.input,
            definition=self.definitions.task_or_defaults(branch.name),
            scheduled_at=now,
            ready_at=now,
        )
        self.queues.put(task)
        return task

    def _fork(
        self, workflow: Workflow, step: dict[str, Any], given: dict[str, Any], now: int
    ) -> Task:
        """Complete the fork at once, schedule its branches, and set up the join that follows."""
        join = _step_after(workflow, step)
        is_second = any(task.type == "FORK" for task in workflow.tasks)
        prefix = f"{step['taskReferenceName']}_" if is_second else ""
        branches = branches_of(step, given, prefix)
        references = [branch.reference for branch in branches]
        seen = {"forkedTasks": references, "forkedTaskDefs": _definitions_of(branches)}
        fork = _add(workflow, step, type="FORK", status="COMPLETED", input=given | seen)
        fork.scheduled_at = fork.started_at = fork.updated_at = fork.ended_at = now
        for branch in branches:
            branch_step = {"name": branch.name, "taskReferenceName": branch.reference}
            self._add_simple(workflow, branch_step | {"type": "SIMPLE"}, branch, now)
        _add_join(workflow, join, references, now)
        return fork


def _add(workflow: Workflow, step: dict[str, Any], **fields: Any) -> Task:
    task = Task(
        reference=step["taskReferenceName"],
        seq=max((task.seq for task in workflow.tasks), default=0) + 1,
        workflow_id=workflow.workflow_id,
        workflow_type=workflow.name,
        correlation_id=workflow.correlation_id,
        step=step,
        **fields,
    )
    workflow.tasks.append(task)
    return task


def _add_join(workflow: Workflow, step: dict[str, Any], references: list[str], now: int) -> Task:
    task = _add(workflow, step, type="JOIN", status="IN_PROGRESS", input={"joinOn": references})
    task.scheduled_at = task.started_at = task.updated_at = now
    return task


def _collect(workflow: Workflow, join: Task, now: int) -> None:
    """Take over outputs of branches as they complete: in that order, empty ones left out."""
    if join.status != "IN_PROGRESS":
        return
    branches = [workflow.latest(reference) for reference in join.input["joinOn"]]
    done = [task for task in branches if task is not None and task.status == "COMPLETED"]
    new = {t.reference: t.output for t in done if t.output and t.reference not in join.output}
    join.output = join.output | new
    if len(done) == len(branches):
        join.status, join.ended_at = "COMPLETED", now


def _step_after(workflow: Workflow, step: dict[str, Any]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = workflow.definition["tasks"]
    following = steps[steps.index(step) + 1 :][:1]
    if not following or following[0]["type"] != "JOIN":
        raise ForkInputError(
            "Dynamic join definition is not followed by a join task.  "
            "Check the workflow definition."
        )
    return following[0]


def _definitions_of(branches: list[Branch]) -> list[dict[str, Any]]:
    return [
        {
            "name": b.name,
            "taskReferenceName": b.reference,
            "type": "SIMPLE",
            "inputParameters": b.input,
        }
        for b in branches
    ]


def retry_of(workflow: Workflow, task: Task, now: int) -> Task:
    """A new execution of a step that ended badly, added to the workflow."""
    task.retried = True
    fresh = _add(
        workflow,
        task.step,
        type=task.type,
        status="SCHEDULED",
        input=task.input,
        definition=task.definition,
        scheduled_at=now,
        ready_at=now,
    )
    fresh.retry_count, fresh.retried_task_id = task.retry_count + 1, task.task_id
    return fresh


def _retry_after_delay(workflow: Workflow, task: Task, now: int) -> Task:
    fresh = retry_of(workflow, task, now)
    delay = _delay_seconds(task)
    fresh.start_delay = fresh.callback_after = delay
    fresh.ready_at = now + delay * 1000
    fresh.reason = task.reason  # the real server shows why, until the retry has ended
    return fresh


def _delay_seconds(task: Task) -> int:
    delay, logic = int(task.definition["retryDelaySeconds"]), task.definition["retryLogic"]
    if logic == "EXPONENTIAL_BACKOFF":
        return delay * (1 << task.retry_count)
    if logic == "LINEAR_BACKOFF":
        return delay * int(task.definition["backoffScaleFactor"]) * (task.retry_count + 1)
    return delay


def _output_of(workflow: Workflow) -> dict[str, Any]:
    """What the definition's ``outputParameters`` say, else the newest task's output."""
    if not workflow.tasks:
        return {}
    wanted: dict[str, Any] = workflow.definition["outputParameters"]
    resolved: dict[str, Any] = resolve(wanted, workflow.scope())
    return resolved or workflow.tasks[-1].output
