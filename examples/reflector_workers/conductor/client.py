"""What the example asks of a Conductor server, over its REST calls.

conductor-python's own clients build model objects, which lose what their models do not know,
and take definitions as models only. The example has its definitions as JSON and shows answers
as they are, so this speaks JSON, through httpx, which conductor-python brings along.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import httpx

from reflector_workers.conductor.errors import (
    ConductorAnswerError,
    ConductorUnavailableError,
    WorkflowTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

JsonObject = dict[str, Any]

ENDED = frozenset({"COMPLETED", "FAILED", "TIMED_OUT", "TERMINATED"})
_DECIDE_EVERY_SECONDS = 1.0
_UNFINISHED_TASK = frozenset({"SCHEDULED", "IN_PROGRESS"})


class ConductorClient:
    """A Conductor server at a URL. For one thread; nothing is connected before the first call.

    Args:
        base_url: What the SDK calls ``server_api_url``, e.g. ``http://127.0.0.1:8080/api``.
        timeout: Seconds for each call.
    """

    def __init__(self, base_url: str, *, timeout: float = 30.0) -> None:
        self.base_url = base_url.rstrip("/")
        # A proxy from the environment would swallow calls to loopback servers.
        self._http = httpx.Client(timeout=timeout, trust_env=False)

    def register_task_definitions(self, definitions: Iterable[Mapping[str, Any]]) -> None:
        """Register task definitions, replacing those of the same names.

        Args:
            definitions: e.g. ``{"name": "detect_speech", "retryCount": 3,
                "retryDelaySeconds": 1, "responseTimeoutSeconds": 60}``.
        """
        self._call("POST", "/metadata/taskdefs", json=[dict(each) for each in definitions])

    def put_workflow(self, definition: Mapping[str, Any]) -> None:
        """Register a workflow definition, replacing the same version of it."""
        self._call("PUT", "/metadata/workflow", json=[dict(definition)])

    def start_workflow(
        self,
        name: str,
        given: Mapping[str, Any],
        *,
        version: int | None = None,
        correlation_id: str | None = None,
    ) -> str:
        """Start a workflow; returns its id.

        Args:
            name: Name of a registered definition.
            given: The workflow's input.
            version: Version of the definition, the newest if None.
            correlation_id: Any text, shown with the workflow and its tasks.
        """
        request = {"name": name, "version": version, "input": dict(given)}
        request["correlationId"] = correlation_id
        return self._call("POST", "/workflow", json=request).text

    def get_workflow(self, workflow_id: str) -> JsonObject:
        """A workflow with all its tasks, as the server tells it."""
        return self._object("GET", f"/workflow/{workflow_id}", params={"includeTasks": "true"})

    def wait_for_workflow(
        self,
        workflow_id: str,
        *,
        timeout: float,
        on_progress: Callable[[JsonObject], None] | None = None,
        interval: float = 0.1,
    ) -> JsonObject:
        """Wait until a workflow has ended, well or badly, and return it.

        Asks the server to decide once a second. On SQLite the real server looks for overdue
        tasks of a workflow once, and then not again for a minute or two; unasked, the second
        worker that dies in one workflow would hold it up that long.

        Args:
            workflow_id: What to wait for.
            timeout: Seconds until `WorkflowTimeoutError`.
            on_progress: Called with the workflow at each look, the last one included.
            interval: Seconds between two looks.
        """
        started = decided = time.monotonic()
        while True:
            workflow = self.get_workflow(workflow_id)
            if on_progress is not None:
                on_progress(workflow)
            if workflow["status"] in ENDED:
                return workflow
            now = time.monotonic()
            if now - started > timeout:
                raise WorkflowTimeoutError(workflow_id, timeout, _unfinished(workflow))
            if now - decided > _DECIDE_EVERY_SECONDS:
                self.decide_workflow(workflow_id)
                decided = now
            time.sleep(interval)

    def decide_workflow(self, workflow_id: str) -> None:
        """Have the server look now for what is due in a workflow, overdue tasks above all."""
        self._call("PUT", f"/workflow/decide/{workflow_id}")

    def terminate_workflow(self, workflow_id: str, reason: str | None = None) -> None:
        """End a workflow and cancel its tasks. Refused (409) if it completed."""
        params = {} if reason is None else {"reason": reason}
        self._call("DELETE", f"/workflow/{workflow_id}", params=params)

    def retry_workflow(self, workflow_id: str) -> None:
        """Execute again what ended badly, and only that. Refused (409) if nothing did."""
        self._call("POST", f"/workflow/{workflow_id}/retry")

    def restart_workflow(self, workflow_id: str) -> None:
        """Begin an ended workflow again under the same id: all tasks are new."""
        self._call("POST", f"/workflow/{workflow_id}/restart")

    def rerun_workflow(self, workflow_id: str, from_task_id: str) -> None:
        """Go back to a task, which keeps its id, and execute from there."""
        request = {"reRunFromTaskId": from_task_id}
        self._call("POST", f"/workflow/{workflow_id}/rerun", json=request)

    def poll_data(self, task_type: str) -> list[JsonObject]:
        """Who polled last for a task type: ``workerId`` and ``lastPollTime``, per domain."""
        rows: list[JsonObject] = self._call(
            "GET", "/tasks/queue/polldata", params={"taskType": task_type}
        ).json()
        return rows

    def version(self) -> str:
        """The server's version; the stand-in's says that it is one."""
        return self._call("GET", "/version").text

    def check(self) -> None:
        """Return if a Conductor answers, raise `ConductorError` if not."""
        # Not /health: it is a constant, and up before the server can work.
        self._call("GET", "/metadata/taskdefs")

    def close(self) -> None:
        """Close the connections. Twice is fine."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ConductorClient {self.base_url}>"

    def _object(self, method: str, path: str, **options: Any) -> JsonObject:
        answer: JsonObject = self._call(method, path, **options).json()
        return answer

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, f"{self.base_url}{path}", **options)
        except httpx.HTTPError as error:
            raise _no_answer(self.base_url, error) from error
        if response.is_success:
            return response
        raise ConductorAnswerError(response.status_code, f"{method} {path}", _message(response))


def worker_ids(workflow: Mapping[str, Any]) -> Counter[str]:
    """How many tasks of a workflow each worker executed: who did it, ghosts included."""
    return Counter(task["workerId"] for task in workflow["tasks"] if task.get("workerId"))


def _unfinished(workflow: JsonObject) -> tuple[str, ...]:
    tasks = [task for task in workflow["tasks"] if task["status"] in _UNFINISHED_TASK]
    return tuple(f"{task['referenceTaskName']}: {task['status']}" for task in tasks)


def _no_answer(url: str, error: httpx.HTTPError) -> ConductorUnavailableError:
    return ConductorUnavailableError(
        f"no Conductor answers at {url} ({type(error).__name__}: {error})\n"
        "HINT: is the server running, and is the URL its API's, as in http://host:8080/api ?"
    )


def _message(response: httpx.Response) -> str:
    """The server's words, with the faults of a definition if there are any."""
    try:
        body = response.json()
        faults = [fault["message"] for fault in body.get("validationErrors") or []]
        return " ".join([str(body["message"]), *faults])
    except (ValueError, KeyError, TypeError, AttributeError):  # some proxy's page
        return response.text[:500]
