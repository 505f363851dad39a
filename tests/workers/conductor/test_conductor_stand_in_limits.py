"""What the stand-in cannot do it refuses aloud, instead of doing something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.workers.conductor.rest import by_reference, fork, simple

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.workers.conductor.rest import JsonObject, Server

    Unique = Callable[[str], str]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"type": "SWITCH"}, "has no task type SWITCH"),
        ({"optional": True}, "has no optional tasks"),
        ({"inputParameters": {"n": "${workflow.input.list.length()}"}}, "cannot follow"),
        ({"inputParameters": {"n": "${workflow.input.list[?(@.a)]}"}}, "cannot follow"),
        ({"inputParameters": {"n": "${workflow..id}"}}, "cannot follow"),
    ],
)
def test_a_definition_beyond_its_means_is_refused(
    stand_in: Server, unique: Unique, change: JsonObject, fault: str
) -> None:
    steps = [simple(unique("job"), "only") | change]

    answer = stand_in.call("PUT", "/metadata/workflow", [{"name": unique("w"), "tasks": steps}])

    assert answer.status == 400
    assert fault in answer.body["validationErrors"][0]["message"]


def test_task_domains_are_refused(stand_in: Server, unique: Unique) -> None:
    stand_in.define(unique("w"), [simple(unique("job"), "only")])
    request = {"name": unique("w"), "taskToDomain": {"*": "mine"}}

    answer = stand_in.call("POST", "/workflow", request)

    assert (answer.status, "no task domains" in answer.body["message"]) == (400, True)


def test_rerunning_a_branch_of_a_fork_is_refused(stand_in: Server, unique: Unique) -> None:
    given = {"forkTaskName": unique("track"), "forkTaskInputs": [{}]}
    stand_in.define(unique("w"), fork("fork", given))
    workflow_id = stand_in.start(unique("w"))
    stand_in.finish(stand_in.take(unique("track")))
    tasks = by_reference(stand_in.ended(workflow_id))

    request = {"reRunFromTaskId": tasks[f"_{unique('track')}_0"]["taskId"]}
    answer = stand_in.call("POST", f"/workflow/{workflow_id}/rerun", request)

    assert (answer.status, "main line only" in answer.body["message"]) == (400, True)
    assert stand_in.workflow(workflow_id)["status"] == "COMPLETED"


def test_its_health_says_that_it_is_a_stand_in(stand_in: Server, http: httpx.Client) -> None:
    health = http.get(stand_in.url.removesuffix("/api") + "/health").json()

    assert "stand-in" in health["healthResults"][0]["details"]["server"]
    assert stand_in.call("GET", "/version").body == "3.32.3-stand-in"
