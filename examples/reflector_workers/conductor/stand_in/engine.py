"""The stand-in's state behind one lock: what each REST call reads and changes.

It has no thread of its own. Response timeouts are noticed by whoever calls next, with the time
at which they fell due: as nobody can look without calling, nobody can tell the difference.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from reflector_workers.conductor.stand_in import recovery
from reflector_workers.conductor.stand_in.decider import Decider
from reflector_workers.conductor.stand_in.definitions import Definitions
from reflector_workers.conductor.stand_in.queues import Queues
from reflector_workers.conductor.stand_in.records import UNFINISHED, Task, Workflow, now_ms
from reflector_workers.conductor.stand_in.refusals import Refusal, invalid, unknown_workflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONGEST_POLL_MS = 5000
RESULT_STATUSES = ("CANCELED", "COMPLETED", "FAILED_WITH_TERMINAL_ERROR", "FAILED", "IN_PROGRESS")


class Engine:
    """Definitions, workflows and queues. Every method may be called from any thread."""

    def __init__(self) -> None:
        self.definitions = Definitions()
        self.queues = Queues()
        self.changed = threading.Condition(threading.RLock())
        self._decider = Decider(self.definitions, self.queues)
        self._workflows: dict[str, Workflow] = {}
        self._in_progress: dict[str, Task] = {}
        self._is_closed = False

    def close(self) -> None:
        """End every long poll that waits."""
        with self.changed:
            self._is_closed = True
            self.changed.notify_all()

    def start(self, request: dict[str, Any]) -> str:
        """Start a workflow from a start request; returns its id."""
        name, version, given = request.get("name"), request.get("version"), request.get("input")
        if not name:
            raise invalid("startWorkflow.name", "Workflow name cannot be null or empty")
        if request.get("taskToDomain") or request.get("workflowDef"):
            raise Refusal(400, "The stand-in has no task domains and no inline definitions")
        if not isinstance(given, dict | None):
            raise Refusal(500, "JSON parse error: Cannot deserialize the input: not a map")
        with self.changed:
            definition = self.definitions.workflow(name, version)
            if definition is None:
                text = f"No such workflow defined. name={name}, version={version}"
                raise Refusal(404, text)
            workflow = Workflow(
                definition=definition,
                input=given or {},
                correlation_id=request.get("correlationId"),
            )
            self._workflows[workflow.workflow_id] = workflow
            self._decider.advance(workflow, now_ms())
            self.changed.notify_all()
            return workflow.workflow_id

    def workflow(self, workflow_id: str, *, with_tasks: bool) -> dict[str, Any]:
        """A workflow as JSON."""
        with self.changed:
            self._notice_timeouts()
            return self._known(workflow_id).as_json(with_tasks=with_tasks)

    def running(self, name: str) -> list[str]:
        """The ids of the workflows of a name that run."""
        with self.changed:
            self._notice_timeouts()
            running = [each for each in self._workflows.values() if each.status == "RUNNING"]
            return [each.workflow_id for each in running if each.definition["name"] == name]

    def task(self, task_id: str) -> dict[str, Any]:
        """A task as JSON."""
        with self.changed:
            self._notice_timeouts()
            tasks = (t for each in self._workflows.values() for t in each.tasks)
            found = next((task for task in tasks if task.task_id == task_id), None)
            if found is None:
                raise Refusal(404, f"Task not found for taskId: {task_id}")
            return found.as_json()

    def terminate(self, workflow_id: str, reason: str | None) -> None:
        """End a workflow and cancel its tasks."""
        self._recover(workflow_id, lambda d, w, now: recovery.terminate(d, w, reason, now))

    def retry(self, workflow_id: str) -> None:
        """Execute again what ended badly."""
        self._recover(workflow_id, recovery.retry)

    def restart(self, workflow_id: str) -> None:
        """Begin again under the same id."""
        self._recover(workflow_id, recovery.restart)

    def rerun(self, workflow_id: str, request: dict[str, Any]) -> None:
        """Go back to a task and execute from there."""
        self._recover(workflow_id, lambda d, w, now: recovery.rerun(d, w, request, now))

    def poll(
        self, task_type: str, worker_id: str | None, domain: str | None, count: int, wait_ms: int
    ) -> list[dict[str, Any]]:
        """Hand up to `count` tasks to a worker; waits for the first, not for the rest."""
        if wait_ms > LONGEST_POLL_MS:
            raise Refusal(400, "Long Poll Timeout value cannot be more than 5 seconds")
        give_up = now_ms() + wait_ms
        with self.changed:
            self.queues.note_poll(task_type, domain, worker_id)
            if domain is not None:
                return []  # nothing is ever scheduled for a domain: `start` refuses them
            while True:
                self._notice_timeouts()
                now = now_ms()
                taken = self.queues.take(task_type, count, now)
                if taken or now >= give_up or self._is_closed:
                    return [self._hand_over(task, worker_id, now) for task in taken]
                self.changed.wait((self._next_event(task_type, give_up) - now) / 1000 + 0.001)

    def update(self, result: dict[str, Any]) -> str:
        """Take a worker's word about a task; returns the task's type.

        A task that has ended, by a timeout for one, stays as it is: the late result is dropped.
        """
        status = result.get("status")
        if status is not None and status not in RESULT_STATUSES:
            text = f'from String "{status}": not one of {", ".join(RESULT_STATUSES)}'
            raise Refusal(500, f"JSON parse error: Cannot deserialize TaskResult$Status {text}")
        with self.changed:
            self._notice_timeouts()
            workflow = self._known(result["workflowInstanceId"])
            task = next((t for t in workflow.tasks if t.task_id == result["taskId"]), None)
            if task is None:
                raise Refusal(404, f"No such task found by id: {result['taskId']}")
            if task.status in UNFINISHED:
                self._apply(workflow, task, result, now_ms())
                self.changed.notify_all()
            return task.type

    def _apply(self, workflow: Workflow, task: Task, result: dict[str, Any], now: int) -> None:
        task.worker_id = result.get("workerId") or task.worker_id
        if result.get("extendLease"):
            task.updated_at = now
            return
        task.reason = result.get("reasonForIncompletion")
        task.output = result.get("outputData") or {}
        self._in_progress.pop(task.task_id, None)
        if result.get("status") == "IN_PROGRESS":  # the worker wants to be asked again
            task.status, task.updated_at = "SCHEDULED", now
            task.callback_after = int(result.get("callbackAfterSeconds") or 0)
            task.ready_at = now + task.callback_after * 1000
            self.queues.put(task)
        else:
            task.status, task.ended_at = result["status"], now
            self._decide(workflow, task, now)

    def _decide(self, workflow: Workflow, task: Task, now: int) -> None:
        if task.status == "COMPLETED":
            self._decider.advance(workflow, now)
        else:
            self._decider.task_failed(workflow, task, now)

    def _hand_over(self, task: Task, worker_id: str | None, now: int) -> dict[str, Any]:
        task.status, task.worker_id, task.updated_at = "IN_PROGRESS", worker_id, now
        task.started_at = task.started_at or now
        task.poll_count += 1
        task.callback_after = 0
        self._in_progress[task.task_id] = task
        return task.as_json()

    def _notice_timeouts(self) -> None:
        for task in list(self._overdue(now_ms())):
            due = task.deadline
            self._in_progress.pop(task.task_id)
            task.status, task.ended_at = "TIMED_OUT", due
            task.reason = (
                f"responseTimeout: {task.response_timeout} exceeded for the taskId: "
                f"{task.task_id} with Task Definition: {task.type}"
            )
            self._decider.task_failed(self._workflows[task.workflow_id], task, due)

    def _overdue(self, now: int) -> Iterator[Task]:
        for task in sorted(self._in_progress.values(), key=lambda task: task.deadline):
            if task.status != "IN_PROGRESS":  # cancelled with its workflow
                self._in_progress.pop(task.task_id)
            elif task.deadline <= now:
                yield task

    def _next_event(self, task_type: str, give_up: int) -> int:
        """When a poll has to look again: at its end, a task falling due, or a timeout."""
        deadlines = [task.deadline for task in self._in_progress.values()]
        due = self.queues.next_due(task_type)
        return min([give_up, *deadlines, *([] if due is None else [due])])

    def _recover(self, workflow_id: str, act: Callable[[Decider, Workflow, int], None]) -> None:
        with self.changed:
            self._notice_timeouts()
            act(self._decider, self._known(workflow_id), now_ms())
            self.changed.notify_all()

    def _known(self, workflow_id: str) -> Workflow:
        if workflow_id not in self._workflows:
            raise unknown_workflow(workflow_id)
        return self._workflows[workflow_id]
