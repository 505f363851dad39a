"""Conductor's REST calls as the contract tests make them: raw answers, nothing interpreted."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

JsonObject = dict[str, Any]
PATIENCE = 60.0  # seconds for something that takes milliseconds; never a sleep
ENDED = ("COMPLETED", "FAILED", "TIMED_OUT", "TERMINATED")


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of one call; the body is JSON, text, or None if empty."""

    status: int
    body: Any


class Server:
    """A Conductor server, whichever it is."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url = url
        self._http = http

    def call(
        self, method: str, path: str, body: object = None, *, raw: bytes | None = None
    ) -> Answer:
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        response = self._http.request(method, self.url + path, content=content, headers=headers)
        try:
            return Answer(response.status_code, response.json())
        except ValueError:
            return Answer(response.status_code, response.text or None)

    def register(self, name: str, **settings: object) -> None:
        definition = {"name": name, "retryCount": 1, "retryDelaySeconds": 0}
        definition |= {"responseTimeoutSeconds": 60} | settings
        assert self.call("POST", "/metadata/taskdefs", [definition]).status == 200

    def define(self, name: str, steps: list[JsonObject], **settings: object) -> None:
        definition = {"name": name, "version": 1, "ownerEmail": "a@example.org", "tasks": steps}
        answer = self.call("PUT", "/metadata/workflow?overwrite=true", [definition | settings])
        assert answer.status == 200, answer

    def start(self, name: str, **given: object) -> str:
        answer = self.call("POST", "/workflow", {"name": name, "version": 1, "input": given})
        assert answer.status == 200, answer
        return str(answer.body)

    def workflow(self, workflow_id: str) -> JsonObject:
        answer = self.call("GET", f"/workflow/{workflow_id}?includeTasks=true")
        assert answer.status == 200, answer
        return dict(answer.body)

    def poll(self, task_type: str, *, worker: str = "tester", wait_ms: int = 0) -> list[JsonObject]:
        path = f"/tasks/poll/batch/{task_type}?workerid={worker}&count=1&timeout={wait_ms}"
        answer = self.call("GET", path)
        assert answer.status == 200, answer
        return list(answer.body)

    def take(self, task_type: str, *, worker: str = "tester") -> JsonObject:
        """The next task of a type, waited for."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            if tasks := self.poll(task_type, worker=worker, wait_ms=1000):
                return tasks[0]
        raise AssertionError(f"no task of type {task_type} came within {PATIENCE} s")

    def report(self, task: JsonObject, status: str, **result: object) -> Answer:
        return self.call("POST", "/tasks", task_result(task, status, **result))

    def finish(self, task: JsonObject, **output: object) -> None:
        answer = self.report(task, "COMPLETED", outputData=output)
        assert (answer.status, answer.body) == (200, task["taskId"])

    def fail(self, task: JsonObject, reason: str, status: str = "FAILED") -> None:
        assert self.report(task, status, reasonForIncompletion=reason).status == 200

    def until(
        self, workflow_id: str, is_so: Callable[[JsonObject], bool], *, within: float = PATIENCE
    ) -> JsonObject:
        """The workflow as soon as something is so; the real server joins a little later."""
        give_up = time.monotonic() + within
        while not is_so(workflow := self.workflow(workflow_id)):
            assert time.monotonic() < give_up, f"it never became so within {within} s: {workflow}"
        return workflow

    def ended(self, workflow_id: str, *, within: float = PATIENCE) -> JsonObject:
        """The workflow when it has ended."""
        return self.until(workflow_id, lambda workflow: workflow["status"] in ENDED, within=within)


def task_result(task: JsonObject, status: str, **result: object) -> JsonObject:
    """What a worker sends about a task."""
    return {
        "workflowInstanceId": task["workflowInstanceId"],
        "taskId": task["taskId"],
        "workerId": task["workerId"],
        "status": status,
        "outputData": {},
        "extendLease": False,
    } | result


def simple(task_type: str, reference: str, **given: object) -> JsonObject:
    """A SIMPLE step of a workflow definition."""
    step = {"name": task_type, "taskReferenceName": reference, "type": "SIMPLE"}
    return step | {"inputParameters": given}


def fork(reference: str, given: JsonObject, **parameters: str) -> list[JsonObject]:
    """A dynamic fork and its join, called ``<reference>_join``."""
    step = {"name": "fork", "taskReferenceName": reference, "type": "FORK_JOIN_DYNAMIC"}
    join = {"name": "join", "taskReferenceName": f"{reference}_join", "type": "JOIN"}
    return [step | {"inputParameters": given} | parameters, join]


def by_reference(workflow: JsonObject) -> dict[str, JsonObject]:
    """The newest execution of each step."""
    return {task["referenceTaskName"]: task for task in workflow["tasks"]}


def statuses(workflow: JsonObject) -> list[tuple[str, str]]:
    """Reference and status of every execution, in the order in which they were scheduled."""
    return [(task["referenceTaskName"], task["status"]) for task in workflow["tasks"]]
