"""Tasks that wait for a worker, one queue per task type, and who polled last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reflector_workers.conductor.stand_in.records import now_ms

if TYPE_CHECKING:
    from reflector_workers.conductor.stand_in.records import Task


class Queues:
    """First in, first out among the tasks that are due. Not locked: the engine that owns it is."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Task]] = {}
        self._pollers: dict[tuple[str, str | None], dict[str, Any]] = {}

    def put(self, task: Task) -> None:
        """Let a scheduled task wait for a worker, from its `ready_at` on."""
        self._waiting.setdefault(task.type, []).append(task)

    def take(self, task_type: str, count: int, now: int) -> list[Task]:
        """Remove and return up to `count` tasks that are due."""
        # Cancelled while they waited: forgotten here, so that whoever cancels need not know us.
        waiting = [t for t in self._waiting.get(task_type, []) if t.status == "SCHEDULED"]
        due = [task for task in waiting if task.ready_at <= now][:count]
        self._waiting[task_type] = [task for task in waiting if task not in due]
        return due

    def next_due(self, task_type: str) -> int | None:
        """When the next task of a type falls due, in milliseconds; None if none waits."""
        return min((task.ready_at for task in self._waiting.get(task_type, [])), default=None)

    def note_poll(self, task_type: str, domain: str | None, worker_id: str | None) -> None:
        """Remember the poll: one row per type and domain, the last poller wins."""
        self._pollers[task_type, domain] = {
            "queueName": task_type,
            "domain": domain,
            "workerId": worker_id,
            "lastPollTime": now_ms(),
        }

    def poll_data(self, task_type: str | None) -> list[dict[str, Any]]:
        """Who polled last for a task type, or for every one."""
        rows = self._pollers.values()
        return [row for row in rows if task_type is None or row["queueName"] == task_type]
