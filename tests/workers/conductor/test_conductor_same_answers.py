"""The same scripts on the stand-in and on the real server give the same JSON.

What the stand-in shows must be what the real server shows: ids replaced by numbers, times left
out. The real server may show more (it has 90 keys where the example needs 40), except in inputs
and outputs, which must be equal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.workers.conductor.rest import JsonObject, Server, by_reference, fork, simple, task_result

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.real_conductor, pytest.mark.timeout(1800)]

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIMES = {
    "createTime",
    "startTime",
    "endTime",
    "updateTime",
    "scheduledTime",
    "lastRetriedTime",
    "lastPollTime",
    "queueWaitTime",
}
# Compared whole: here the stand-in must not show less than the real server either.
_PAYLOADS = {"input", "output", "inputData", "outputData"}
# In a fork's input the real server repeats each task definition in 40 keys.
_NOT_COMPARED = _TIMES | {"forkedTaskDefs", "instance", "path"}
# The real server polls its joins, the stand-in has none to poll; it numbers no retries of them.
_NOT_COMPARED_OF_SYSTEM_TASKS = {"pollCount", "taskDefinition"}


@dataclass
class Transcript:
    """What a server answered to a script, step by step."""

    server: Server
    suffix: str
    answers: dict[str, Any] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    def name(self, name: str) -> str:
        return f"{name}_{self.suffix}"

    def call(self, title: str, method: str, path: str, body: object = None) -> Any:
        answer = self.server.call(method, path, body)
        self.note(title, [answer.status, answer.body])
        return answer.body

    def note(self, title: str, answer: Any) -> None:
        self.answers[title] = self._plain(answer)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: self._plain(value[key]) for key in sorted(value) if self._keeps(value, key)
            }
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        if isinstance(value, str):
            return _ID.sub(self._number, value.replace(self.suffix, "~"))
        return value

    def _keeps(self, holder: JsonObject, key: str) -> bool:
        is_system_task = holder.get("taskType") in {"FORK", "JOIN"}
        return key not in _NOT_COMPARED and not (
            is_system_task and key in _NOT_COMPARED_OF_SYSTEM_TASKS
        )

    def _number(self, found: re.Match[str]) -> str:
        return self.ids.setdefault(found[0], f"id-{len(self.ids) + 1}")


def cut_down(shown: Any, to: Any, *, whole: bool = False) -> Any:
    """What is shown, without the keys that the other server does not show."""
    if isinstance(shown, dict) and isinstance(to, dict):
        return {
            key: cut_down(value, to.get(key), whole=whole or key in _PAYLOADS)
            for key, value in shown.items()
            if whole or key in to
        }
    if isinstance(shown, list) and isinstance(to, list) and len(shown) == len(to):
        return [cut_down(a, b, whole=whole) for a, b in zip(shown, to, strict=True)]
    return shown


def meeting(log: Transcript) -> None:
    """The example's own shape: prepare, a fork of three tracks, join, merge; a retry on the way."""
    server = log.server
    for name in ("prepare", "detect", "merge"):
        server.register(log.name(name), retryCount=2)
    tracks = {"forkTaskName": log.name("detect"), "forkTaskInputs": "${prepare.output.tracks}"}
    steps = [
        simple(log.name("prepare"), "prepare", folder="${workflow.input.folder}"),
        *fork("tracks", tracks),
        simple(
            log.name("merge"), "merge", tracks="${tracks_join.output}", id="${prepare.output.id}"
        ),
    ]
    output = {"turns": "${merge.output.turns}", "folder": "${workflow.input.folder}"}
    server.define(log.name("meeting"), steps, outputParameters=output)
    log.call("definition", "GET", f"/metadata/workflow/{log.name('meeting')}")
    request = {"name": log.name("meeting"), "input": {"folder": "x"}, "correlationId": "one"}
    workflow_id = log.call("start", "POST", "/workflow", request)

    prepare = server.take(log.name("prepare"))
    log.note("prepare", prepare)
    result = task_result(prepare, "COMPLETED", outputData={"id": 7, "tracks": [{"t": 1}, {"t": 2}]})
    log.call("prepared", "POST", "/tasks", result)
    first, second = (server.take(log.name("detect")) for _ in range(2))
    log.note("tracks", [first, second])
    failure = {"reasonForIncompletion": "no voice"}
    log.call("failed", "POST", "/tasks", task_result(first, "FAILED", **failure))
    retried = server.take(log.name("detect"))
    log.note("retried", retried)
    server.finish(second, seconds=1.5)
    server.until(workflow_id, lambda w: by_reference(w)["tracks_join"]["outputData"] != {})
    log.call("half way", "GET", f"/workflow/{workflow_id}?includeTasks=true")
    server.finish(retried, seconds=0)
    merge = server.take(log.name("merge"))
    log.note("merge", merge)
    server.finish(merge, turns=[[0.0, 1.5, "ann"], [1.25, 2.0, None]])
    log.note("end", server.ended(workflow_id))


def rescue(log: Transcript) -> None:
    """A workflow that fails, is retried, completes, is rerun, terminated and restarted."""
    server = log.server
    server.register(log.name("job"), retryCount=0)
    steps = [simple(log.name("job"), "a"), simple(log.name("job"), "b", got="${a.output.n}")]
    server.define(log.name("rescue"), steps)
    workflow_id = server.start(log.name("rescue"))
    path = f"/workflow/{workflow_id}"

    server.finish(server.take(log.name("job")), n=1)
    server.fail(server.take(log.name("job")), "broken", "FAILED_WITH_TERMINAL_ERROR")
    log.note("failed", server.ended(workflow_id))
    log.call("retry", "POST", f"{path}/retry")
    log.call("retry again", "POST", f"{path}/retry")
    log.call("retried", "GET", f"{path}?includeTasks=true")
    task = server.take(log.name("job"))
    log.note("taken", task)
    server.finish(task, n=2)
    log.note("completed", server.ended(workflow_id))
    log.call("nothing to retry", "POST", f"{path}/retry")
    log.call("too late", "DELETE", path)
    log.call("rerun", "POST", f"{path}/rerun", {"reRunFromTaskId": task["taskId"]})
    log.call("rerunning", "GET", f"{path}?includeTasks=true")
    log.call("not while running", "POST", f"{path}/restart")
    log.call("terminate", "DELETE", f"{path}?reason=enough")
    log.call("terminated", "GET", f"{path}?includeTasks=true")
    log.call("restart", "POST", f"{path}/restart")
    log.call("restarted", "GET", f"{path}?includeTasks=true")


def refusals(log: Transcript) -> None:
    """What is answered to calls that make no sense."""
    job, flow = log.name("job"), log.name("flow")
    log.call("no definition", "GET", f"/metadata/taskdefs/{job}")
    log.call("no definition to replace", "PUT", "/metadata/taskdefs", {"name": job})
    log.call("no workflow definition", "GET", f"/metadata/workflow/{flow}?version=3")
    log.call("no such workflow", "POST", "/workflow", {"name": flow, "version": 3})
    log.call("empty", "PUT", "/metadata/workflow", [{"name": flow, "version": 1, "tasks": []}])
    log.call("no task", "GET", "/tasks/none")
    log.call("no polls", "GET", f"/tasks/queue/polldata?taskType={job}")
    log.call("poll", "GET", f"/tasks/poll/batch/{job}?workerid=w&count=1&timeout=1")
    log.call("poll one", "GET", f"/tasks/poll/{job}?workerid=w")
    log.call("polls", "GET", f"/tasks/queue/polldata?taskType={job}")
    log.call("no workflow to decide", "PUT", "/workflow/decide/none")
    log.call("too long a poll", "GET", f"/tasks/poll/batch/{job}?timeout=5001")


SCRIPTS = [meeting, rescue, refusals]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_gets_the_same_answers(
    stand_in: Server,
    real: Server,
    unique: Callable[[str], str],
    script: Callable[[Transcript], None],
) -> None:
    suffix = unique("").removeprefix("_")
    ours, theirs = Transcript(stand_in, suffix), Transcript(real, suffix)
    for transcript in (ours, theirs):
        script(transcript)

    assert len(ours.answers) > 5
    assert ours.answers == cut_down(theirs.answers, ours.answers)
