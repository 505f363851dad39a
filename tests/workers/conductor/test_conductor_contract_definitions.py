"""Definitions and small calls, on every server: register, validate, version, health."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.workers.conductor.rest import Server, fork, simple

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.workers.conductor.rest import Answer, JsonObject

    Unique = Callable[[str], str]


def faults(answer: Answer) -> str:
    return " ".join(fault["message"] for fault in answer.body["validationErrors"])


def test_a_task_definition_comes_back_with_defaults(conductor: Server, unique: Unique) -> None:
    posted = conductor.call("POST", "/metadata/taskdefs", [{"name": unique("job")}])

    definition = conductor.call("GET", f"/metadata/taskdefs/{unique('job')}").body

    assert (posted.status, posted.body) == (200, None)
    assert definition["retryCount"] == 3
    assert (definition["retryLogic"], definition["retryDelaySeconds"]) == ("FIXED", 60)
    assert (definition["responseTimeoutSeconds"], definition["timeoutSeconds"]) == (3600, 0)
    everything = conductor.call("GET", "/metadata/taskdefs").body
    assert unique("job") in [each["name"] for each in everything]


def test_a_task_definition_is_replaced_by_put_and_by_post(
    conductor: Server, unique: Unique
) -> None:
    path = f"/metadata/taskdefs/{unique('job')}"
    changed = {"name": unique("job"), "retryCount": 7}
    unknown = conductor.call("PUT", "/metadata/taskdefs", changed)
    conductor.register(unique("job"))

    put = conductor.call("PUT", "/metadata/taskdefs", changed)
    after_put = conductor.call("GET", path).body
    conductor.register(unique("job"), retryCount=8)

    assert (unknown.status, put.status) == (404, 200)
    assert unknown.body["message"] == f"No such task by name {unique('job')}"
    assert after_put["retryCount"] == 7
    assert conductor.call("GET", path).body["retryCount"] == 8


def test_faulty_task_definitions_are_refused_with_the_fault(
    conductor: Server, unique: Unique
) -> None:
    def post(**definition: object) -> Answer:
        return conductor.call("POST", "/metadata/taskdefs", [definition])

    nameless = post(retryCount=1)
    instant = post(name=unique("job"), responseTimeoutSeconds=0)
    longer = post(name=unique("job"), responseTimeoutSeconds=5, timeoutSeconds=1)
    unknown = conductor.call("GET", f"/metadata/taskdefs/{unique('job')}")

    assert [nameless.status, instant.status, longer.status, unknown.status] == [400] * 3 + [404]
    assert faults(nameless) == "TaskDef name cannot be null or empty"
    assert "responseTimeoutSeconds: 0 should be minimum 1 second" in faults(instant)
    assert "responseTimeoutSeconds: 5 must be less than timeoutSeconds: 1" in faults(longer)


def definition(name: str, *steps: JsonObject, **settings: object) -> JsonObject:
    return {"name": name, "version": 1, "tasks": list(steps)} | settings


def test_workflow_definitions_are_replaced_by_put_and_guarded_by_post(
    conductor: Server, unique: Unique
) -> None:
    name, path = unique("flow"), "/metadata/workflow"
    one = definition(name, simple(unique("job"), "one"))
    two = definition(name, simple(unique("job"), "two"))

    created = conductor.call("POST", path, one)
    refused = conductor.call("POST", path, two)
    put = conductor.call("PUT", f"{path}?overwrite=true", [two])

    assert (created.status, refused.status, put.status) == (200, 409, 200)
    assert refused.body["message"] == f"Workflow with {name}.1 already exists!"
    assert put.body == {"bulkErrorResults": {}, "bulkSuccessfulResults": [name]}
    stored = conductor.call("GET", f"{path}/{name}").body
    assert [step["taskReferenceName"] for step in stored["tasks"]] == ["two"]


def test_the_newest_version_is_started_unless_one_is_named(
    conductor: Server, unique: Unique
) -> None:
    name = unique("flow")
    for version in (1, 2):
        conductor.define(name, [simple(unique("job"), f"in{version}")], version=version)

    newest = conductor.call("POST", "/workflow", {"name": name, "input": {}}).body
    named = conductor.call("POST", f"/workflow/{name}?version=1", {}).body

    references = [
        conductor.workflow(each)["tasks"][0]["referenceTaskName"] for each in (newest, named)
    ]
    assert references == ["in2", "in1"]


def test_unknown_workflow_definitions_are_not_found(conductor: Server, unique: Unique) -> None:
    name = unique("none")
    got = conductor.call("GET", f"/metadata/workflow/{name}")
    started = conductor.call("POST", "/workflow", {"name": name, "version": 1, "input": {}})
    nameless = conductor.call("POST", "/workflow", {"version": 1, "input": {}})

    assert (got.status, started.status, nameless.status) == (404, 404, 400)
    assert got.body["message"] == f"No such workflow found by name: {name}, version: null"
    assert started.body["message"] == f"No such workflow defined. name={name}, version=1"
    assert faults(nameless) == "Workflow name cannot be null or empty"


def test_faulty_workflow_definitions_are_refused_with_the_fault(
    conductor: Server, unique: Unique
) -> None:
    def put(*steps: JsonObject, name: str | None = unique("flow")) -> Answer:
        return conductor.call("PUT", "/metadata/workflow", [{"name": name, "tasks": list(steps)}])

    step = simple(unique("job"), "same")
    empty = put()
    nameless = put(step, name=None)
    twice = put(step, step)
    astray = put(simple(unique("job"), "only", x="${elsewhere.output.y}"))

    assert [each.status for each in (empty, nameless, twice, astray)] == [400] * 4
    assert faults(empty) == "WorkflowTask list cannot be empty"
    assert faults(nameless) == "WorkflowDef name cannot be null or empty"
    assert "same should be unique across tasks" in faults(twice)
    assert "${elsewhere.output.y} is not defined in workflow definition" in faults(astray)


def test_a_fork_that_no_join_follows_fails_its_workflow(conductor: Server, unique: Unique) -> None:
    given = {"forkTaskName": unique("track"), "forkTaskInputs": [{}]}
    steps = [fork("fork", given)[0], simple(unique("job"), "after")]
    conductor.define(unique("joinless"), steps)

    workflow = conductor.ended(conductor.start(unique("joinless")))

    assert workflow["status"] == "FAILED"
    assert "not followed by a join" in workflow["reasonForIncompletion"]


def test_what_is_not_json_and_what_does_not_exist(conductor: Server) -> None:
    broken = conductor.call("POST", "/workflow", raw=b"{broken")
    nowhere = conductor.call("GET", "/nowhere")
    wrong_method = conductor.call("DELETE", "/metadata/taskdefs")

    assert [broken.status, nowhere.status, wrong_method.status] == [500, 404, 405]
    assert broken.body["message"].startswith("JSON parse error")
    assert nowhere.body["message"] == "No static resource api/nowhere."
    assert wrong_method.body["message"] == "Request method 'DELETE' is not supported"


def test_health_is_told_at_both_addresses(conductor: Server, http: httpx.Client) -> None:
    at_root = http.get(conductor.url.removesuffix("/api") + "/health").json()

    assert at_root == conductor.call("GET", "/health").body
    assert at_root["healthy"] is True
    assert conductor.call("GET", "/version").body.startswith("3.32.3")
