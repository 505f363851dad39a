"""The REST calls: which method and path does what, and what each answers with."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from reflector_workers.conductor.stand_in.refusals import Refusal, invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflector_workers.conductor.stand_in.engine import Engine

    Handler = Callable[[Engine, "Request"], "Answer"]

VERSION = "3.32.3-stand-in"
UPDATE_V2_WAIT_MS = 100


@dataclass(frozen=True, slots=True)
class Request:
    """One call: path parameters by name, the query, and the body as it came."""

    path: dict[str, str]
    query: dict[str, str]
    raw_body: bytes

    def json(self) -> Any:
        """The body, refused as the real server refuses what is not JSON (NaN is not)."""
        try:
            return json.loads(self.raw_body or b"null", parse_constant=_refuse_constant)
        except ValueError as error:
            raise Refusal(500, f"JSON parse error: {error}") from error

    def object(self) -> dict[str, Any]:
        """The body, which must be a JSON object; none counts as an empty one."""
        body = self.json()
        if not isinstance(body, dict | None):
            raise Refusal(500, "JSON parse error: Cannot deserialize: not an object")
        return body or {}

    def objects(self) -> list[dict[str, Any]]:
        """The body, which must be a JSON list of objects."""
        body = self.json()
        if not isinstance(body, list) or not all(isinstance(each, dict) for each in body):
            raise Refusal(500, "JSON parse error: Cannot deserialize: not a list of objects")
        return body

    def number(self, name: str, default: int) -> int:
        """An integer of the query."""
        value = self.query.get(name, str(default))
        try:
            return int(value)
        except ValueError as error:
            raise Refusal(
                500, f"Method parameter '{name}': For input string: \"{value}\""
            ) from error


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: JSON, text, or nothing."""

    status: int = 200
    json: Any = None
    text: str | None = None

    def encode(self) -> tuple[str | None, bytes]:
        """Content type and body."""
        if self.text is not None:
            return "text/plain;charset=UTF-8", self.text.encode()
        if self.json is not None:
            return "application/json", json.dumps(self.json).encode()
        return None, b""


@dataclass(slots=True)
class Routes:
    """Handlers by method and path pattern; ``{name}`` stands for one path segment."""

    table: list[tuple[str, re.Pattern[str], Handler]] = field(default_factory=list)

    def add(self, method: str, *patterns: str) -> Callable[[Handler], Handler]:
        """Decorate the handler of one or more paths."""

        def register(handler: Handler) -> Handler:
            for pattern in patterns:
                regex = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
                self.table.append((method, re.compile(regex), handler))
            return handler

        return register

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """The handler of a call and the path's parameters."""
        matches = [(m, found, h) for m, p, h in self.table if (found := p.fullmatch(path))]
        for its_method, found, handler in matches:
            if its_method == method:
                return handler, found.groupdict()
        if matches:
            raise Refusal(405, f"Request method '{method}' is not supported")
        raise Refusal(404, f"No static resource {path.lstrip('/')}.")


ROUTES = Routes()


@ROUTES.add("GET", "/health", "/api/health")
def _health(_engine: Engine, _request: Request) -> Answer:
    note = {"details": {"server": "stand-in of the example, not Conductor"}, "healthy": True}
    return Answer(json={"healthResults": [note], "suppressedHealthResults": [], "healthy": True})


@ROUTES.add("GET", "/api/version")
def _version(_engine: Engine, _request: Request) -> Answer:
    return Answer(text=VERSION)


@ROUTES.add("GET", "/api/metadata/taskdefs")
def _task_definitions(engine: Engine, _request: Request) -> Answer:
    with engine.changed:
        return Answer(json=engine.definitions.tasks())


@ROUTES.add("POST", "/api/metadata/taskdefs")
def _register_task_definitions(engine: Engine, request: Request) -> Answer:
    with engine.changed:
        for definition in request.objects():
            engine.definitions.put_task(definition)
    return Answer()


@ROUTES.add("PUT", "/api/metadata/taskdefs")
def _update_task_definition(engine: Engine, request: Request) -> Answer:
    with engine.changed:
        engine.definitions.update_task(request.object())
    return Answer()


@ROUTES.add("GET", "/api/metadata/taskdefs/{name}")
def _task_definition(engine: Engine, request: Request) -> Answer:
    with engine.changed:
        return Answer(json=engine.definitions.task(request.path["name"]))


@ROUTES.add("GET", "/api/metadata/workflow")
def _workflow_definitions(engine: Engine, _request: Request) -> Answer:
    with engine.changed:
        return Answer(json=engine.definitions.workflows())


@ROUTES.add("PUT", "/api/metadata/workflow")
def _put_workflow_definitions(engine: Engine, request: Request) -> Answer:
    definitions = request.objects()
    with engine.changed:
        for definition in definitions:
            engine.definitions.put_workflow(definition)
    names = [definition["name"] for definition in definitions]
    return Answer(json={"bulkErrorResults": {}, "bulkSuccessfulResults": names})


@ROUTES.add("POST", "/api/metadata/workflow")
def _add_workflow_definition(engine: Engine, request: Request) -> Answer:
    with engine.changed:
        if request.query.get("overwrite") == "true":
            engine.definitions.put_workflow(request.object())
        else:
            engine.definitions.add_workflow(request.object())
    return Answer()


@ROUTES.add("GET", "/api/metadata/workflow/{name}")
def _workflow_definition(engine: Engine, request: Request) -> Answer:
    name = request.path["name"]
    version = request.number("version", 0) or None
    with engine.changed:
        found = engine.definitions.workflow(name, version)
    if found is None:
        shown = "null" if version is None else version
        raise Refusal(404, f"No such workflow found by name: {name}, version: {shown}")
    return Answer(json=found)


@ROUTES.add("POST", "/api/workflow")
def _start(engine: Engine, request: Request) -> Answer:
    return Answer(text=engine.start(request.object()))


@ROUTES.add("POST", "/api/workflow/{name}")
def _start_by_name(engine: Engine, request: Request) -> Answer:
    version = request.number("version", 0) or None
    named = {"name": request.path["name"], "version": version, "input": request.object()}
    return Answer(text=engine.start(named | {"correlationId": request.query.get("correlationId")}))


@ROUTES.add("GET", "/api/workflow/{id}")
def _workflow(engine: Engine, request: Request) -> Answer:
    with_tasks = request.query.get("includeTasks", "true") == "true"
    return Answer(json=engine.workflow(request.path["id"], with_tasks=with_tasks))


@ROUTES.add("DELETE", "/api/workflow/{id}")
def _terminate(engine: Engine, request: Request) -> Answer:
    engine.terminate(request.path["id"], request.query.get("reason"))
    return Answer()


@ROUTES.add("GET", "/api/workflow/running/{name}")
def _running(engine: Engine, request: Request) -> Answer:
    return Answer(json=engine.running(request.path["name"]))


@ROUTES.add("PUT", "/api/workflow/decide/{id}")
def _decide(engine: Engine, request: Request) -> Answer:
    engine.workflow(request.path["id"], with_tasks=False)  # looking is enough: see engine.py
    return Answer()


@ROUTES.add("POST", "/api/workflow/{id}/retry")
def _retry(engine: Engine, request: Request) -> Answer:
    engine.retry(request.path["id"])
    return Answer(204)


@ROUTES.add("POST", "/api/workflow/{id}/restart")
def _restart(engine: Engine, request: Request) -> Answer:
    engine.restart(request.path["id"])
    return Answer(204)


@ROUTES.add("POST", "/api/workflow/{id}/rerun")
def _rerun(engine: Engine, request: Request) -> Answer:
    engine.rerun(request.path["id"], request.object())
    return Answer(text=request.path["id"])


@ROUTES.add("GET", "/api/tasks/poll/batch/{type}")
def _poll(engine: Engine, request: Request) -> Answer:
    worker, domain = request.query.get("workerid"), request.query.get("domain")
    count, wait = request.number("count", 1), request.number("timeout", 100)
    return Answer(json=engine.poll(request.path["type"], worker, domain, count, wait))


@ROUTES.add("GET", "/api/tasks/poll/{type}")
def _poll_one(engine: Engine, request: Request) -> Answer:
    worker, domain = request.query.get("workerid"), request.query.get("domain")
    tasks = engine.poll(request.path["type"], worker, domain, 1, 0)
    return Answer(json=tasks[0]) if tasks else Answer(204)


@ROUTES.add("POST", "/api/tasks/update-v2")
def _update_and_poll(engine: Engine, request: Request) -> Answer:
    result = _task_result(request, status_if_invalid=500)
    task_type = engine.update(result)
    tasks = engine.poll(task_type, result.get("workerId"), None, 1, UPDATE_V2_WAIT_MS)
    return Answer(json=tasks[0]) if tasks else Answer(204)


@ROUTES.add("POST", "/api/tasks")
def _update(engine: Engine, request: Request) -> Answer:
    result = _task_result(request, status_if_invalid=400)
    engine.update(result)
    return Answer(text=result["taskId"])


@ROUTES.add("GET", "/api/tasks/queue/polldata")
def _poll_data(engine: Engine, request: Request) -> Answer:
    with engine.changed:
        return Answer(json=engine.queues.poll_data(request.query.get("taskType")))


@ROUTES.add("GET", "/api/tasks/queue/polldata/all")
def _all_poll_data(engine: Engine, _request: Request) -> Answer:
    with engine.changed:
        return Answer(json=engine.queues.poll_data(None))


@ROUTES.add("GET", "/api/tasks/{id}")
def _task(engine: Engine, request: Request) -> Answer:
    return Answer(json=engine.task(request.path["id"]))


def _task_result(request: Request, *, status_if_invalid: int) -> dict[str, Any]:
    result = request.object()
    for key, name in (("workflowInstanceId", "Workflow Id"), ("taskId", "Task ID")):
        if not result.get(key):
            fault = invalid(f"updateTask.{key}", f"{name} cannot be null or empty")
            # update-v2 of the real server answers 500 here, which its SDK takes for an outage.
            raise Refusal(status_if_invalid, fault.message, fault.violations)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"Non-standard token '{name}'")
