"""Task and workflow definitions: validated, filled up with the server's defaults, and kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reflector_workers.conductor.stand_in.expressions import is_understood, paths_in
from reflector_workers.conductor.stand_in.records import now_ms
from reflector_workers.conductor.stand_in.refusals import Refusal, invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

STEP_TYPES = frozenset({"SIMPLE", "FORK_JOIN_DYNAMIC", "JOIN"})

TASK_DEFAULTS: dict[str, Any] = {
    "description": None,
    "retryCount": 3,
    "retryLogic": "FIXED",
    "retryDelaySeconds": 60,
    "backoffScaleFactor": 1,
    "responseTimeoutSeconds": 3600,
    "timeoutSeconds": 0,
    "timeoutPolicy": "TIME_OUT_WF",
    "inputKeys": [],
    "outputKeys": [],
    "inputTemplate": {},
    "ownerEmail": None,
}
WORKFLOW_DEFAULTS: dict[str, Any] = {
    "description": None,
    "version": 1,
    "inputParameters": [],
    "outputParameters": {},
    "schemaVersion": 2,
    "restartable": True,
    "ownerEmail": None,
    "timeoutSeconds": 0,
    "timeoutPolicy": "ALERT_ONLY",
    "inputTemplate": {},
}
STEP_DEFAULTS: dict[str, Any] = {"type": "SIMPLE", "inputParameters": {}, "joinOn": []}


class Definitions:
    """What has been registered. Not locked: the engine that owns it is."""

    def __init__(self) -> None:
        self._tasks: dict[str, dict[str, Any]] = {}
        self._workflows: dict[str, dict[int, dict[str, Any]]] = {}

    def put_task(self, definition: dict[str, Any]) -> None:
        """Register a task definition, or replace the one of the same name."""
        _check_task(definition)
        times = {"createTime": now_ms(), "updateTime": 0}
        self._tasks[definition["name"]] = TASK_DEFAULTS | times | definition

    def update_task(self, definition: dict[str, Any]) -> None:
        """Replace a task definition that exists."""
        if definition.get("name") not in self._tasks:
            raise Refusal(404, f"No such task by name {definition.get('name')}")
        self.put_task(definition)

    def task(self, name: str) -> dict[str, Any]:
        """A registered task definition."""
        if name not in self._tasks:
            raise Refusal(404, f"No such taskType found by name: {name}")
        return self._tasks[name]

    def task_or_defaults(self, name: str) -> dict[str, Any]:
        """The definition that governs a task; nobody has to register one."""
        return self._tasks.get(name) or TASK_DEFAULTS | {"name": name}

    def tasks(self) -> list[dict[str, Any]]:
        """All task definitions."""
        return list(self._tasks.values())

    def put_workflow(self, definition: dict[str, Any]) -> None:
        """Register a workflow definition, or replace the same version of it."""
        _check_workflow(definition)
        steps = [STEP_DEFAULTS | step for step in definition["tasks"]]
        filled = WORKFLOW_DEFAULTS | definition | {"tasks": steps}
        self._workflows.setdefault(filled["name"], {})[filled["version"]] = filled

    def add_workflow(self, definition: dict[str, Any]) -> None:
        """Register a version of a workflow definition that does not exist yet."""
        name, version = definition.get("name"), definition.get("version", 1)
        if isinstance(name, str) and version in self._workflows.get(name, {}):
            raise Refusal(409, f"Workflow with {name}.{version} already exists!")
        self.put_workflow(definition)

    def workflow(self, name: str, version: int | None) -> dict[str, Any] | None:
        """A version of a workflow definition, the newest for ``None``."""
        versions = self._workflows.get(name, {})
        return versions.get(max(versions, default=0) if version is None else version)

    def workflows(self) -> list[dict[str, Any]]:
        """All versions of all workflow definitions."""
        return [each for versions in self._workflows.values() for each in versions.values()]


def _check_task(definition: dict[str, Any]) -> None:
    name = definition.get("name")
    if not name:
        raise invalid("registerTaskDef.name", "TaskDef name cannot be null or empty")
    response = definition.get("responseTimeoutSeconds", 3600)
    if response < 1:
        path = "registerTaskDef.responseTimeoutSeconds"
        raise invalid(
            path, f"TaskDef responseTimeoutSeconds: {response} should be minimum 1 second"
        )
    total = definition.get("timeoutSeconds", 0)
    if 0 < total < response:
        fault = f"responseTimeoutSeconds: {response} must be less than timeoutSeconds: {total}"
        raise invalid("registerTaskDef", f"TaskDef: {name} {fault}")


def _check_workflow(definition: dict[str, Any]) -> None:
    faults = list(_faults_of_workflow(definition))
    if faults:
        violations = [{"path": "workflowDef", "message": fault} for fault in faults]
        raise Refusal(400, "Validation failed, check below errors for detail.", violations)


def _faults_of_workflow(definition: dict[str, Any]) -> Iterator[str]:
    if not definition.get("name"):
        yield "WorkflowDef name cannot be null or empty"
    steps: list[dict[str, Any]] = definition.get("tasks") or []
    if not steps:
        yield "WorkflowTask list cannot be empty"
    references = [step.get("taskReferenceName") for step in steps]
    for twice in sorted({str(ref) for ref in references if references.count(ref) > 1}):
        yield (
            f"taskReferenceName: {twice} should be unique across tasks "
            f"for a given workflowDefinition: {definition.get('name')}"
        )
    for step in steps:
        yield from _faults_of_step(step, {"workflow", *map(str, references)})


def _faults_of_step(step: dict[str, Any], known: set[str]) -> Iterator[str]:
    name, kind = step.get("name"), step.get("type", "SIMPLE")
    if not name or not step.get("taskReferenceName"):
        yield "WorkflowTask name and taskReferenceName cannot be null or empty"
    if kind not in STEP_TYPES:
        yield f"The stand-in has no task type {kind}, only {', '.join(sorted(STEP_TYPES))}"
    if step.get("optional"):
        yield f"The stand-in has no optional tasks: {step.get('taskReferenceName')}"
    for path in paths_in(step.get("inputParameters", {})):
        if not is_understood(path):
            yield f"The stand-in cannot follow ${{{path}}}: names, [0] and [*] only"
        elif (first := path.split(".")[0].split("[")[0]) not in known:
            yield (
                f"taskReferenceName: {first} for given task: {name} "
                f"input parameter: ${{{path}}} is not defined in workflow definition."
            )
