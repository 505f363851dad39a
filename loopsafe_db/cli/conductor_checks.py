"""How Conductor is: who polls, who took jobs and is gone, and what its definitions will cost."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loopsafe_db.cli.conductor_api import Conductor, ConductorUnavailable, NotThere
from loopsafe_db.cli.findings import LOOK_SECONDS, Finding
from loopsafe_db.cli.workers import WorkerName

if TYPE_CHECKING:
    from collections.abc import Iterator

Pollers = dict[str, set[str]]  # worker ids by kind of job

_STOP_PARENT = "stop its parent, `ps -o ppid= -p PID`, which would replace it"
_MOST = 100  # workflows of each sort that are looked at
_DEFAULT = 3600  # responseTimeoutSeconds, of a kind without a definition, too
_FEW = 5  # jobs of a kind, below which none is called fast
_FAST = 0.05  # of the median
_BY_NUMBER = re.compile(r"\$\{([^.}]+)\.output\[[\d*:-][^}]*\}")


def check_conductor(url: str, seconds: float, version: str | None) -> list[Finding]:
    """Look at a Conductor.

    Args:
        url: Its API.
        seconds: How long to watch who polls: the server remembers the last one only.
        version: Of the code that should run; others are ghosts.
    """
    conductor = Conductor(url)
    try:
        definitions = conductor.task_definitions()
        plans = conductor.workflow_definitions()
        running = conductor.running()
        with ThreadPoolExecutor(1) as meanwhile:
            reading = meanwhile.submit(_read, conductor, running)
            pollers = watch_pollers(conductor, seconds)
        tasks = reading.result()
    except ConductorUnavailable as error:
        cure = "is it running, and is this the URL of its API? loopsafe-db wait --conductor URL waits for it"
        return [Finding("D201", "error", "Conductor does not answer", str(error), cure)]
    return [
        Finding("D200", "ok", f"Conductor answers, {len(running)} workflows run", url),
        *_polling(pollers, version, url),
        *_costly(definitions, pollers),
        *_read_as_lists(plans),
        *_taken_along(tasks),
        *_too_large(tasks),
        *_too_fast(tasks),
    ]


def _read(conductor: Conductor, running: list[str]) -> list[dict[str, Any]]:
    """The tasks of workflows that run, and of the newest; what is removed meanwhile is left out."""
    tasks: list[dict[str, Any]] = []
    for each in dict.fromkeys([*running[:_MOST], *conductor.newest(_MOST)]):
        with suppress(NotThere):
            tasks += conductor.workflow(each)["tasks"]
    return tasks


def watch_pollers(conductor: Conductor, seconds: float) -> Pollers:
    """Who polls, seen for some time: those whose last poll moves on while we look, not who polled once."""
    first: dict[tuple[str, str], int] = {}
    live: Pollers = defaultdict(set)
    until = time.monotonic() + seconds
    while True:
        for row in conductor.pollers():
            task_type, who, at = row["queueName"], row.get("workerId") or "?", row["lastPollTime"]
            if first.setdefault((task_type, who), at) != at:
                live[task_type].add(who)
        if time.monotonic() > until:
            return live
        time.sleep(LOOK_SECONDS)


def _polling(pollers: Pollers, version: str | None, url: str) -> Iterator[Finding]:
    strangers: dict[str, set[str]] = defaultdict(set)
    for task_type, ids in sorted(pollers.items()):
        names = [WorkerName.read(id) for id in sorted(ids)]
        versions = {name.version for name in names if name.version}
        yield Finding("D200", "ok", f"{task_type}: {len(names)} poll", ", ".join(sorted(ids)))
        if len(versions) > 1:
            yield Finding(
                "D202",
                "error",
                f"{task_type}: {len(versions)} versions of the code share its jobs: {', '.join(sorted(versions))}",
                ", ".join(name.text for name in names),
                "stop the fleet whose version is old; a deploy that is under way ends this by itself",
            )
        for name in names:
            if name.is_ghost(version):
                strangers[name.text].add(task_type)
    for text, task_types in strangers.items():
        name = WorkerName.read(text)
        why = (
            f"runs version {name.version}, not {version}"
            if name.version
            else "is no worker of a fleet of loopsafe_db"
        )
        seen, cure = ", ".join(sorted(task_types)), _how_to_stop(name, url)
        yield Finding("D203", "error", f"{text} polls and {why}", seen, cure)


def _how_to_stop(name: WorkerName, url: str) -> str:
    """Lead to the process. The SDK alone names a worker after its host, as a container's is."""
    if name.pid is not None:
        return f"on {name.host}, {_STOP_PARENT.replace('PID', str(name.pid))}"
    port = urlsplit(url).port or 80
    return (
        f"on {name.host}, a host or a container, `ss -tnp 'dport = :{port}'` lists who talks to Conductor; "
        f"of the one that no other id here has, {_STOP_PARENT}"
    )


def _costly(definitions: list[dict[str, Any]], pollers: Pollers) -> Iterator[Finding]:
    seconds = {each["name"]: each.get("responseTimeoutSeconds", _DEFAULT) for each in definitions}
    if names := sorted(each for each in pollers if seconds.get(each, _DEFAULT) >= _DEFAULT):
        cure = "define it with a responseTimeoutSeconds of a minute; lease_extend_enabled for jobs that take longer"
        what = "a job whose worker dies is given to nobody for an hour"
        yield Finding("D204", "warning", what, ", ".join(names), cure)


def _read_as_lists(plans: list[dict[str, Any]]) -> Iterator[Finding]:
    for plan in plans:
        joins = {step["taskReferenceName"] for step in _steps(plan) if step.get("type") == "JOIN"}
        for found in _BY_NUMBER.finditer(json.dumps(plan)):
            if found[1] in joins:
                what = f"workflow {plan['name']} reads the output of a JOIN by number, and gets nothing"
                cure = "it is a dict by reference name: pass it whole, and join_results puts it in order"
                yield Finding("D208", "error", what, found[0], cure)


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Give the steps of a definition, also those in branches and loops."""
    if isinstance(part, dict):
        if "taskReferenceName" in part:
            yield part
        part = list(part.values())
    for each in part if isinstance(part, list) else ():
        yield from _steps(each)


def _taken_along(tasks: list[dict[str, Any]]) -> Iterator[Finding]:
    for task in tasks:
        name = WorkerName.read(task.get("workerId") or "?")
        if task["status"] == "IN_PROGRESS" and name.is_gone:
            yield Finding(
                "D205",
                "error",
                f"{_which(task)} is in progress with {name.text}, which has ended",
                f"until its responseTimeoutSeconds, {task.get('responseTimeoutSeconds')} s",
                "wait for it, or give the job back: POST /tasks with IN_PROGRESS and callbackAfterSeconds 0",
            )


def _too_large(tasks: list[dict[str, Any]]) -> Iterator[Finding]:
    for task in tasks:
        if task.get("externalOutputPayloadStoragePath") or task.get(
            "externalInputPayloadStoragePath"
        ):
            what = f"{_which(task)} has more than 3072 KB, which Python workers are not given"
            cure = (
                "keep it in the database and pass its id; do_job and run_job refuse such an output"
            )
            yield Finding("D206", "error", what, task.get("workerId") or "", cure)


def _too_fast(tasks: list[dict[str, Any]]) -> Iterator[Finding]:
    by_type: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for task in tasks:
        if task["status"] == "COMPLETED" and task.get("workerId"):
            by_type[task["taskDefName"]].append((task["endTime"] - task["startTime"], task))
    for task_type, done in by_type.items():
        usual = statistics.median(took for took, _ in done)
        for took, task in done if len(done) >= _FEW else ():
            if took < _FAST * usual:
                what = f"{_which(task)} took {took} ms, {task_type} usually {usual:.0f} ms"
                cure = "did that worker do the work? look at its id and version: loopsafe-db workflow ID"
                yield Finding("D207", "warning", what, task["workerId"], cure)


def _which(task: dict[str, Any]) -> str:
    return f"{task['referenceTaskName']} of workflow {task['workflowInstanceId']}"
