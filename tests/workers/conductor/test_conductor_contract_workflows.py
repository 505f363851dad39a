"""Workflows, on every server: expressions, forks and joins, and what people do from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.workers.conductor.rest import Server, by_reference, fork, simple, statuses

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.workers.conductor.rest import JsonObject

    Unique = Callable[[str], str]

WORKFLOW_INPUT: dict[str, Any] = {
    "n": 5,
    "text": "str",
    "none": None,
    "yes": True,
    "tracks": [{"id": "p"}, {"id": "q"}],
    "map": {"x": {"y": 7}},
    "numbers": [0.1, 1.0, 1.5e10, 12345678901234],
    "da-sh": 3,
}

EXPRESSIONS = {
    "a whole value keeps its type": ("${workflow.input.n}", 5),
    "a list stays a list": ("${workflow.input.tracks}", [{"id": "p"}, {"id": "q"}]),
    "a path goes down": ("${workflow.input.map.x.y}", 7),
    "an index": ("${workflow.input.tracks[1].id}", "q"),
    "an index from the end": ("${workflow.input.tracks[-1]}", {"id": "q"}),
    "an index beyond the end": ("${workflow.input.tracks[9]}", None),
    "every item": ("${workflow.input.tracks[*].id}", ["p", "q"]),
    "every item of nothing": ("${workflow.input.nothing[*].id}", []),
    "a quoted key": ("${workflow.input['n']}", 5),
    "a key with a dash": ("${workflow.input.da-sh}", 3),
    "what is missing": ("${workflow.input.nothing}", None),
    "missing below what is missing": ("${workflow.input.nothing.at.all}", None),
    "null": ("${workflow.input.none}", None),
    "text around": ("id=${workflow.input.n}/${workflow.input.text}", "id=5/str"),
    "null in a text": ("a${workflow.input.none}b", "anullb"),
    "true in a text": ("is ${workflow.input.yes}", "is true"),
    "a map in a text": ("m=${workflow.input.map}", "m={x={y=7}}"),
    "numbers in a text": (
        "${workflow.input.numbers} ",
        "[0.1, 1.0, 1.5E10, 12345678901234] ",
    ),
    "two in a row": ("${workflow.input.n}${workflow.input.n}", "55"),
    "escaped": ("$${not.one}", "${not.one}"),
    "inside lists and maps": ([{"k": "${workflow.input.n}"}], [{"k": 5}]),
    "no expression": (1.5, 1.5),
}


def test_expressions_of_the_workflow_input_resolve(conductor: Server, unique: Unique) -> None:
    given = {name: template for name, (template, _) in EXPRESSIONS.items()}
    conductor.define(unique("expressions"), [simple(unique("job"), "only", **given)])
    conductor.start(unique("expressions"), **WORKFLOW_INPUT)

    resolved = conductor.take(unique("job"))["inputData"]

    assert resolved == {name: expected for name, (_, expected) in EXPRESSIONS.items()}


def test_expressions_see_the_workflow_itself(conductor: Server, unique: Unique) -> None:
    names = ("workflowId", "workflowType", "version", "correlationId", "status", "input")
    given = {name: f"${{workflow.{name}}}" for name in names}
    conductor.define(unique("mirror"), [simple(unique("job"), "only", **given)])
    request = {"name": unique("mirror"), "input": {"n": 1}, "correlationId": "meeting 7"}
    workflow_id = conductor.call("POST", "/workflow", request).body

    task = conductor.take(unique("job"))

    assert task["correlationId"] == "meeting 7"
    assert task["inputData"] == {
        "workflowId": workflow_id,
        "workflowType": unique("mirror"),
        "version": 1,
        "correlationId": "meeting 7",
        "status": "RUNNING",
        "input": {"n": 1},
    }


def test_expressions_see_earlier_tasks_and_the_output_parameters_see_all(
    conductor: Server, unique: Unique
) -> None:
    given = {
        "output": "${a.output}",
        "deep": "${a.output.n.m[0]}",
        "input": "${a.input.x}",
        "status": "${a.status}",
        "id": "${a.taskId}",
        "missing": "${a.output.missing}",
    }
    steps = [simple(unique("one"), "a", x="y"), simple(unique("two"), "b", **given)]
    output = {"from a": "${a.output.n.m}", "from b": "${b.output.z}", "none": "${b.output.no}"}
    conductor.define(unique("seeing"), steps, outputParameters=output)
    workflow_id = conductor.start(unique("seeing"))

    first = conductor.take(unique("one"))
    conductor.finish(first, n={"m": [1, None]})
    second = conductor.take(unique("two"))
    conductor.finish(second, z="end")

    assert second["inputData"] == {
        "output": {"n": {"m": [1, None]}},
        "deep": 1,
        "input": "y",
        "status": "COMPLETED",
        "id": first["taskId"],
        "missing": None,
    }
    workflow = conductor.ended(workflow_id)
    assert workflow["output"] == {"from a": [1, None], "from b": "end", "none": None}


def pair_form(job: str) -> tuple[list[JsonObject], JsonObject]:
    given = {"tasks": "${workflow.input.tasks}", "inputs": "${workflow.input.inputs}"}
    names = {"dynamicForkTasksParam": "tasks", "dynamicForkTasksInputParamName": "inputs"}
    refs = [f"r{i}" for i in range(3)]
    tasks = [{"name": job, "taskReferenceName": ref, "type": "SIMPLE"} for ref in refs]
    inputs = {ref: {"i": i} for i, ref in enumerate(refs)}
    return fork("fork", given, **names), {"tasks": tasks, "inputs": inputs}


def simple_form(job: str) -> tuple[list[JsonObject], JsonObject]:
    given = {"forkTaskName": job, "forkTaskInputs": "${workflow.input.tracks}"}
    return fork("fork", given), {"tracks": [{"i": i} for i in range(3)]}


def legacy_form(job: str) -> tuple[list[JsonObject], JsonObject]:
    tasks = [
        {"taskName": job, "referenceName": f"r{i}", "type": "SIMPLE", "input": {"i": i}}
        for i in range(3)
    ]
    given = {"branches": "${workflow.input.branches}"}
    steps = fork("fork", given, dynamicForkJoinTasksParam="branches")
    return steps, {"branches": {"dynamicTasks": tasks}}


FORMS = [pair_form, simple_form, legacy_form]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_fork_runs_its_branches_and_joins_their_outputs(
    conductor: Server, unique: Unique, form: Callable[[str], tuple[list[JsonObject], JsonObject]]
) -> None:
    steps, given = form(unique("track"))
    last = simple(unique("merge"), "last", joined="${fork_join.output}")
    conductor.define(unique("forked"), [*steps, last])
    workflow_id = conductor.start(unique("forked"), **given)

    tasks = [conductor.take(unique("track")) for _ in range(3)]
    for task in tasks:
        conductor.finish(task, twice=task["inputData"]["i"] * 2)
    merge = conductor.take(unique("merge"))
    conductor.finish(merge, ok=True)

    references = [task["referenceTaskName"] for task in tasks]
    expected = {ref: {"twice": i * 2} for i, ref in enumerate(references)}
    assert merge["inputData"]["joined"] == expected
    workflow = conductor.ended(workflow_id)
    scheduled = ["fork", *references, "fork_join", "last"]
    assert statuses(workflow) == [(ref, "COMPLETED") for ref in scheduled]
    tasks_by_reference = by_reference(workflow)
    assert tasks_by_reference["fork"]["taskType"] == "FORK"
    assert tasks_by_reference["fork"]["inputData"]["forkedTasks"] == references
    assert tasks_by_reference["fork_join"]["inputData"] == {"joinOn": references}


def test_the_simple_form_names_its_branches_and_numbers_their_inputs(
    conductor: Server, unique: Unique
) -> None:
    given = {"forkTaskName": unique("track"), "forkTaskInputs": [{"id": "p"}, "q"]}
    conductor.define(unique("simple"), fork("fork", given))
    conductor.start(unique("simple"))

    tasks = [conductor.take(unique("track")) for _ in range(2)]

    assert [(task["referenceTaskName"], task["inputData"]) for task in tasks] == [
        (f"_{unique('track')}_0", {"id": "p", "__index": 0}),
        (f"_{unique('track')}_1", {"input": "q", "__index": 1}),
    ]


def test_branches_of_a_second_fork_carry_its_name(conductor: Server, unique: Unique) -> None:
    given = {"forkTaskName": unique("track"), "forkTaskInputs": [{}]}
    conductor.define(unique("twice"), [*fork("f1", given), *fork("f2", given)])
    conductor.start(unique("twice"))

    references = []
    for _ in range(2):
        task = conductor.take(unique("track"))
        references.append(task["referenceTaskName"])
        conductor.finish(task)

    assert references == [f"_{unique('track')}_0", f"_f2_{unique('track')}_0"]


@pytest.mark.parametrize("form", FORMS)
def test_a_fork_of_nothing_joins_at_once(
    conductor: Server, unique: Unique, form: Callable[[str], tuple[list[JsonObject], JsonObject]]
) -> None:
    steps, _ = form(unique("track"))
    last = simple(unique("merge"), "last", joined="${fork_join.output}")
    conductor.define(unique("empty"), [*steps, last])
    nothing = {"tasks": [], "inputs": {}, "tracks": [], "branches": {"dynamicTasks": []}}
    conductor.start(unique("empty"), **nothing)

    assert conductor.take(unique("merge"))["inputData"] == {"joined": {}}


@pytest.mark.parametrize("form", FORMS)
def test_a_fork_without_a_list_of_branches_fails_its_workflow(
    conductor: Server, unique: Unique, form: Callable[[str], tuple[list[JsonObject], JsonObject]]
) -> None:
    steps, _ = form(unique("track"))
    conductor.define(unique("nothing"), steps)

    workflow = conductor.ended(conductor.start(unique("nothing")))

    assert (workflow["status"], workflow["tasks"]) == ("FAILED", [])
    assert "null" in workflow["reasonForIncompletion"]


def test_a_join_holds_outputs_in_order_of_completion_and_omits_empty_ones(
    conductor: Server, unique: Unique
) -> None:
    given = {"forkTaskName": unique("track"), "forkTaskInputs": [{}, {}, {}, {}]}
    conductor.define(unique("racing"), fork("fork", given))
    workflow_id = conductor.start(unique("racing"))
    tasks = [conductor.take(unique("track")) for _ in range(4)]

    for index in (2, 0, 3):
        conductor.finish(tasks[index], i=index)
        # The real server looks at its branches every few dozen milliseconds, in their own order.
        reference = tasks[index]["referenceTaskName"]
        conductor.until(workflow_id, has_joined(reference))
    conductor.finish(tasks[1])

    workflow = conductor.ended(workflow_id)
    output = by_reference(workflow)["fork_join"]["outputData"]
    assert list(output) == [f"_{unique('track')}_{index}" for index in (2, 0, 3)]
    assert list(output.values()) == [{"i": 2}, {"i": 0}, {"i": 3}]
    assert workflow["output"] == output


def has_joined(reference: str) -> Callable[[JsonObject], bool]:
    return lambda workflow: reference in by_reference(workflow)["fork_join"]["outputData"]


def test_a_failed_branch_fails_the_workflow_and_a_retry_repeats_only_what_ended_badly(
    conductor: Server, unique: Unique
) -> None:
    conductor.register(unique("track"), retryCount=0)
    given = {"forkTaskName": unique("track"), "forkTaskInputs": [{}, {}, {}]}
    conductor.define(unique("broken"), fork("fork", given))
    workflow_id = conductor.start(unique("broken"))
    refs = [f"_{unique('track')}_{index}" for index in range(3)]

    good, bad, _running = (conductor.take(unique("track")) for _ in refs)
    conductor.finish(good, ok=0)
    conductor.until(workflow_id, has_joined(refs[0]))
    conductor.fail(bad, "broken")
    failed = conductor.ended(workflow_id)

    *branches, join = statuses(failed)
    assert branches == [
        ("fork", "COMPLETED"),
        (refs[0], "COMPLETED"),
        (refs[1], "FAILED"),
        (refs[2], "CANCELED"),
    ]
    # The real server looks at its joins from time to time: such a look may come first.
    assert join in [("fork_join", "CANCELED"), ("fork_join", "FAILED")]
    assert conductor.call("POST", f"/workflow/{workflow_id}/retry").status == 204
    again = [conductor.take(unique("track")) for _ in range(2)]
    assert sorted(task["referenceTaskName"] for task in again) == refs[1:]
    assert {task["retryCount"] for task in again} == {1}
    for task in again:
        conductor.finish(task, ok=1)
    workflow = conductor.ended(workflow_id)
    assert workflow["status"] == "COMPLETED"
    assert workflow["lastRetriedTime"] > 0
    joined = by_reference(workflow)["fork_join"]["outputData"]
    assert joined == {refs[0]: {"ok": 0}, refs[1]: {"ok": 1}, refs[2]: {"ok": 1}}


def chain(conductor: Server, unique: Unique) -> str:
    """Run a chain of three tasks to its end; returns the workflow's id."""
    steps = [simple(unique("a"), "a"), simple(unique("b"), "b", got="${a.output.n}")]
    conductor.define(unique("chain"), [*steps, simple(unique("c"), "c", got="${b.output.n}")])
    workflow_id = conductor.start(unique("chain"))
    for name in ("a", "b", "c"):
        conductor.finish(conductor.take(unique(name)), n=name)
    conductor.ended(workflow_id)
    return workflow_id


def test_a_completed_workflow_has_nothing_to_retry(conductor: Server, unique: Unique) -> None:
    workflow_id = chain(conductor, unique)

    answer = conductor.call("POST", f"/workflow/{workflow_id}/retry")

    assert answer.status == 409
    assert answer.body["message"].startswith("There are no retryable tasks!")


def test_a_running_workflow_is_neither_retried_nor_restarted_nor_rerun(
    conductor: Server, unique: Unique
) -> None:
    conductor.define(unique("running"), [simple(unique("job"), "only")])
    workflow_id = conductor.start(unique("running"))

    verbs = ("retry", "restart", "rerun")
    answers = [conductor.call("POST", f"/workflow/{workflow_id}/{verb}", {}) for verb in verbs]

    assert [answer.status for answer in answers] == [404, 409, 409]
    label = f"{unique('running')}.1/{workflow_id}.RUNNING"
    assert label in answers[1].body["message"]


def test_a_rerun_repeats_a_task_under_its_id_and_what_follows_under_new_ones(
    conductor: Server, unique: Unique
) -> None:
    workflow_id = chain(conductor, unique)
    before = by_reference(conductor.workflow(workflow_id))

    request = {"reRunFromTaskId": before["b"]["taskId"]}
    answer = conductor.call("POST", f"/workflow/{workflow_id}/rerun", request)
    again = conductor.take(unique("b"))
    conductor.finish(again, n="other")
    last = conductor.take(unique("c"))
    conductor.finish(last, n="end")

    assert (answer.status, answer.body) == (200, workflow_id)
    assert (again["taskId"], again["pollCount"]) == (before["b"]["taskId"], 1)
    assert last["taskId"] != before["c"]["taskId"]
    assert last["inputData"] == {"got": "other"}
    workflow = conductor.ended(workflow_id)
    assert statuses(workflow) == [(ref, "COMPLETED") for ref in ("a", "b", "c")]
    assert by_reference(workflow)["a"] == before["a"]


def test_a_rerun_from_an_unknown_task_is_refused(conductor: Server, unique: Unique) -> None:
    workflow_id = chain(conductor, unique)

    request = {"reRunFromTaskId": "none"}
    answer = conductor.call("POST", f"/workflow/{workflow_id}/rerun", request)

    assert (answer.status, answer.body["message"]) == (400, "Task none not found")


def test_a_restart_keeps_the_workflow_id_and_makes_every_task_new(
    conductor: Server, unique: Unique
) -> None:
    workflow_id = chain(conductor, unique)
    before = by_reference(conductor.workflow(workflow_id))

    assert conductor.call("POST", f"/workflow/{workflow_id}/restart").status == 204
    first = conductor.take(unique("a"))

    workflow = conductor.workflow(workflow_id)
    assert statuses(workflow) == [("a", "IN_PROGRESS")]
    assert (workflow["status"], workflow["output"], workflow["endTime"]) == ("RUNNING", {}, 0)
    assert first["workflowInstanceId"] == workflow_id
    assert first["taskId"] != before["a"]["taskId"]
    assert first["retryCount"] == 0


def test_terminating_cancels_what_is_unfinished_and_says_why(
    conductor: Server, unique: Unique
) -> None:
    conductor.define(unique("stopped"), [simple(unique("job"), "only")])
    workflow_id = conductor.start(unique("stopped"))

    assert conductor.call("DELETE", f"/workflow/{workflow_id}?reason=enough").status == 200

    workflow = conductor.workflow(workflow_id)
    assert (workflow["status"], workflow["reasonForIncompletion"]) == ("TERMINATED", "enough")
    assert statuses(workflow) == [("only", "CANCELED")]
    assert conductor.poll(unique("job"), wait_ms=200) == []
    assert conductor.call("DELETE", f"/workflow/{workflow_id}?reason=again").status == 200
    assert conductor.workflow(workflow_id)["reasonForIncompletion"] == "enough"


def test_a_terminated_workflow_goes_on_where_it_was_when_retried(
    conductor: Server, unique: Unique
) -> None:
    conductor.define(unique("resumed"), [simple(unique("job"), "only")])
    workflow_id = conductor.start(unique("resumed"))
    conductor.call("DELETE", f"/workflow/{workflow_id}")

    assert conductor.call("POST", f"/workflow/{workflow_id}/retry").status == 204
    conductor.finish(conductor.take(unique("job")), ok=True)

    workflow = conductor.ended(workflow_id)
    assert (workflow["status"], workflow["reasonForIncompletion"]) == ("COMPLETED", None)
    assert statuses(workflow) == [("only", "CANCELED"), ("only", "COMPLETED")]


def test_a_completed_workflow_cannot_be_terminated(conductor: Server, unique: Unique) -> None:
    answer = conductor.call("DELETE", f"/workflow/{chain(conductor, unique)}")

    assert (answer.status, answer.body["message"]) == (
        409,
        "Cannot terminate a COMPLETED workflow.",
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "?includeTasks=true"),
        ("DELETE", ""),
        ("POST", "/retry"),
        ("POST", "/restart"),
        ("POST", "/rerun"),
    ],
)
def test_an_unknown_workflow_is_not_found(conductor: Server, method: str, path: str) -> None:
    body: JsonObject | None = {} if method == "POST" else None

    answer = conductor.call(method, f"/workflow/none{path}", body)

    assert (answer.status, answer.body["status"]) == (404, 404)
    assert answer.body["message"] == "No such workflow found by id: none"


def test_a_workflow_without_its_tasks(conductor: Server, unique: Unique) -> None:
    workflow_id = chain(conductor, unique)

    answer = conductor.call("GET", f"/workflow/{workflow_id}?includeTasks=false")

    assert (answer.body["workflowId"], answer.body["tasks"]) == (workflow_id, [])
