"""Tasks from poll to end, on every server: hand-over, results, retries, timeouts, leases."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.workers.conductor.rest import Server, by_reference, simple, statuses, task_result

if TYPE_CHECKING:
    from collections.abc import Callable

    Unique = Callable[[str], str]


def one_task(conductor: Server, unique: Unique, **settings: object) -> tuple[str, str]:
    """Start a workflow of one task; returns the task type and the workflow's id."""
    conductor.register(unique("job"), **settings)
    conductor.define(unique("single"), [simple(unique("job"), "only")])
    return unique("job"), conductor.start(unique("single"))


def test_a_chain_runs_task_by_task_and_ends_with_the_last_output(
    conductor: Server, unique: Unique
) -> None:
    for name in ("first", "second"):
        conductor.register(unique(name))
    steps = [simple(unique("first"), "a"), simple(unique("second"), "b", got="${a.output.n}")]
    conductor.define(unique("chain"), steps)
    workflow_id = conductor.start(unique("chain"))

    assert conductor.poll(unique("second")) == []
    conductor.finish(conductor.take(unique("first")), n=41)
    second = conductor.take(unique("second"))
    conductor.finish(second, n=second["inputData"]["got"] + 1)

    workflow = conductor.ended(workflow_id)
    assert workflow["status"] == "COMPLETED"
    assert workflow["output"] == {"n": 42}
    assert statuses(workflow) == [("a", "COMPLETED"), ("b", "COMPLETED")]
    assert [task["seq"] for task in workflow["tasks"]] == [1, 2]


def test_a_polled_task_says_who_has_it_and_where_it_belongs(
    conductor: Server, unique: Unique
) -> None:
    job, workflow_id = one_task(conductor, unique)

    task = conductor.take(job, worker="host/1/abc")

    assert task["status"] == "IN_PROGRESS"
    assert task["workerId"] == "host/1/abc"
    assert task["taskType"] == task["taskDefName"] == job
    assert task["workflowInstanceId"] == workflow_id
    assert task["workflowType"] == unique("single")
    assert (task["referenceTaskName"], task["retryCount"], task["pollCount"]) == ("only", 0, 1)
    assert task["responseTimeoutSeconds"] == 60


def test_a_task_is_handed_out_once(conductor: Server, unique: Unique) -> None:
    job, _ = one_task(conductor, unique)

    conductor.take(job)

    assert conductor.poll(job, wait_ms=200) == []


def test_a_task_is_scheduled_before_it_starts_before_it_ends(
    conductor: Server, unique: Unique
) -> None:
    job, workflow_id = one_task(conductor, unique)
    conductor.finish(conductor.take(job), done=True)

    workflow = conductor.ended(workflow_id)
    task = workflow["tasks"][0]

    assert 0 < workflow["startTime"] <= task["scheduledTime"]
    assert task["scheduledTime"] <= task["startTime"] <= task["endTime"] <= workflow["endTime"]
    assert task["queueWaitTime"] == task["startTime"] - task["scheduledTime"]


def test_a_batch_holds_no_more_tasks_than_asked_for(conductor: Server, unique: Unique) -> None:
    job, _ = one_task(conductor, unique)
    for _ in range(2):
        conductor.start(unique("single"))

    path = f"/tasks/poll/batch/{job}?workerid=tester&timeout=1000&count="
    two, rest = (conductor.call("GET", f"{path}{count}").body for count in (2, 1))

    assert (len(two), len(rest)) == (2, 1)


def test_update_v2_returns_the_next_task_of_the_same_type(
    conductor: Server, unique: Unique
) -> None:
    job, first_id = one_task(conductor, unique)
    second_id = conductor.start(unique("single"))
    task = conductor.take(job)

    answer = conductor.call("POST", "/tasks/update-v2", task_result(task, "COMPLETED"))

    assert answer.status == 200
    assert answer.body["status"] == "IN_PROGRESS"
    ids = {task["workflowInstanceId"], answer.body["workflowInstanceId"]}
    assert ids == {first_id, second_id}


def test_update_v2_answers_204_if_there_is_no_next_task(conductor: Server, unique: Unique) -> None:
    job, workflow_id = one_task(conductor, unique)
    result = task_result(conductor.take(job), "COMPLETED")

    answer = conductor.call("POST", "/tasks/update-v2", result)

    assert (answer.status, answer.body) == (204, None)
    assert conductor.ended(workflow_id)["status"] == "COMPLETED"


def test_a_failed_task_is_retried_under_a_new_id(conductor: Server, unique: Unique) -> None:
    job, workflow_id = one_task(conductor, unique, retryCount=1)
    first = conductor.take(job)
    conductor.fail(first, "the disk was full")

    second = conductor.take(job)
    conductor.finish(second, ok=True)

    assert second["taskId"] != first["taskId"]
    assert (second["retriedTaskId"], second["retryCount"]) == (first["taskId"], 1)
    workflow = conductor.ended(workflow_id)
    assert workflow["status"] == "COMPLETED"
    assert statuses(workflow) == [("only", "FAILED"), ("only", "COMPLETED")]
    assert [task["retried"] for task in workflow["tasks"]] == [True, False]
    assert workflow["tasks"][0]["reasonForIncompletion"] == "the disk was full"


def test_a_retry_waits_for_its_delay(conductor: Server, unique: Unique) -> None:
    job, workflow_id = one_task(conductor, unique, retryDelaySeconds=1)
    conductor.fail(conductor.take(job), "too early")

    waiting = conductor.workflow(workflow_id)["tasks"][1]
    assert (waiting["status"], waiting["callbackAfterSeconds"]) == ("SCHEDULED", 1)
    assert conductor.poll(job) == []
    assert conductor.take(job)["startTime"] - waiting["scheduledTime"] >= 1000


def test_a_task_that_fails_too_often_fails_its_workflow(conductor: Server, unique: Unique) -> None:
    job, workflow_id = one_task(conductor, unique, retryCount=1)
    conductor.fail(conductor.take(job), "once")
    last = conductor.take(job)
    conductor.fail(last, "twice")

    workflow = conductor.ended(workflow_id)

    assert workflow["status"] == "FAILED"
    assert workflow["reasonForIncompletion"] == (
        f"Task {last['taskId']} failed with status: FAILED and reason: 'twice'"
    )
    assert workflow["failedReferenceTaskNames"] == ["only"]
    assert workflow["failedTaskNames"] == [job]


def test_a_terminal_error_is_not_retried(conductor: Server, unique: Unique) -> None:
    job, workflow_id = one_task(conductor, unique, retryCount=3)

    conductor.fail(conductor.take(job), "no such meeting", "FAILED_WITH_TERMINAL_ERROR")

    workflow = conductor.ended(workflow_id)
    assert workflow["status"] == "FAILED"
    assert statuses(workflow) == [("only", "FAILED_WITH_TERMINAL_ERROR")]


def test_a_silent_worker_loses_its_task_to_a_retry(conductor: Server, unique: Unique) -> None:
    job, workflow_id = one_task(conductor, unique, responseTimeoutSeconds=1)
    silent = conductor.take(job, worker="silent")

    second = conductor.take(job, worker="alive")
    late = conductor.report(silent, "COMPLETED", outputData={"from": "silent"})
    conductor.finish(second, by="alive")

    assert (late.status, late.body) == (200, silent["taskId"])  # polite, and dropped
    workflow = conductor.ended(workflow_id)
    assert workflow["output"] == {"by": "alive"}
    assert statuses(workflow) == [("only", "TIMED_OUT"), ("only", "COMPLETED")]
    assert [task["workerId"] for task in workflow["tasks"]] == ["silent", "alive"]
    lost = workflow["tasks"][0]
    assert lost["reasonForIncompletion"].startswith("responseTimeout: 1 exceeded for the taskId")
    assert lost["endTime"] - lost["startTime"] >= 1000


def test_a_task_lost_without_retries_left_times_its_workflow_out(
    conductor: Server, unique: Unique
) -> None:
    job, workflow_id = one_task(conductor, unique, responseTimeoutSeconds=1, retryCount=0)
    conductor.take(job)

    workflow = conductor.ended(workflow_id)

    assert (workflow["status"], workflow["failedReferenceTaskNames"]) == ("TIMED_OUT", [])


def test_every_lost_task_of_a_workflow_is_noticed_if_the_server_is_asked(
    conductor: Server, unique: Unique
) -> None:
    job, workflow_id = one_task(conductor, unique, responseTimeoutSeconds=1, retryCount=3)

    # The real server looks once by itself, and after that only every minute or two (SQLite).
    for lost in range(3):
        task = conductor.take(job)
        assert task["retryCount"] == lost
        is_lost = by_id(task["taskId"], "TIMED_OUT")
        while not is_lost(conductor.workflow(workflow_id)):
            assert conductor.call("PUT", f"/workflow/decide/{workflow_id}").status == 200
    conductor.finish(conductor.take(job), ok=True)

    assert conductor.ended(workflow_id)["status"] == "COMPLETED"


def by_id(task_id: str, status: str) -> Callable[[dict[str, object]], bool]:
    def is_so(workflow: dict[str, object]) -> bool:
        tasks = workflow["tasks"]
        assert isinstance(tasks, list)
        return any((task["taskId"], task["status"]) == (task_id, status) for task in tasks)

    return is_so


def test_a_lease_keeps_a_slow_task_alive_and_its_output_empty(
    conductor: Server, unique: Unique
) -> None:
    job, workflow_id = one_task(conductor, unique, responseTimeoutSeconds=2)
    task = conductor.take(job)

    # Long polls on another type pass the time: 3.6 s under a timeout of 2.
    for _ in range(4):
        assert conductor.poll(unique("nothing"), wait_ms=900) == []
        renewal = conductor.report(task, "IN_PROGRESS", extendLease=True, outputData={"no": 1})
        assert renewal.status == 200
    held = conductor.workflow(workflow_id)["tasks"]
    conductor.finish(task, done=True)

    assert [(each["status"], each["outputData"]) for each in held] == [("IN_PROGRESS", {})]
    workflow = conductor.ended(workflow_id)
    assert statuses(workflow) == [("only", "COMPLETED")]


def test_a_task_put_back_in_progress_is_handed_out_again_under_its_id(
    conductor: Server, unique: Unique
) -> None:
    job, workflow_id = one_task(conductor, unique)
    task = conductor.take(job)

    conductor.report(task, "IN_PROGRESS", outputData={"half": 1})
    again = conductor.take(job)
    conductor.finish(again, whole=1)

    assert (again["taskId"], again["pollCount"]) == (task["taskId"], 2)
    assert again["startTime"] == task["startTime"]
    assert conductor.ended(workflow_id)["output"] == {"whole": 1}


def test_a_result_for_a_task_that_has_ended_changes_nothing(
    conductor: Server, unique: Unique
) -> None:
    job, workflow_id = one_task(conductor, unique)
    task = conductor.take(job)
    conductor.finish(task, n=1)

    conductor.finish(task, n=2)

    assert conductor.ended(workflow_id)["output"] == {"n": 1}


@pytest.mark.parametrize("path", ["/tasks", "/tasks/update-v2"])
def test_nan_is_not_json_and_leaves_the_task_in_progress(
    conductor: Server, unique: Unique, path: str
) -> None:
    job, workflow_id = one_task(conductor, unique)
    result = task_result(conductor.take(job), "COMPLETED", outputData={"score": float("nan")})

    answer = conductor.call("POST", path, raw=json.dumps(result).encode())

    assert answer.status == 500
    assert answer.body["message"].startswith("JSON parse error: Non-standard token 'NaN'")
    assert statuses(conductor.workflow(workflow_id)) == [("only", "IN_PROGRESS")]


def test_results_for_unknown_tasks_and_workflows_are_refused(
    conductor: Server, unique: Unique
) -> None:
    job, _ = one_task(conductor, unique)
    result = task_result(conductor.take(job), "COMPLETED")

    no_task = conductor.call("POST", "/tasks", result | {"taskId": "none"})
    no_workflow = conductor.call("POST", "/tasks", result | {"workflowInstanceId": "none"})
    no_id = conductor.call("POST", "/tasks", {"status": "COMPLETED", "taskId": "none"})
    no_status = conductor.call("POST", "/tasks", result | {"status": "DONE"})

    assert (no_task.status, no_task.body["message"]) == (404, "No such task found by id: none")
    assert no_workflow.body["message"] == "No such workflow found by id: none"
    assert [no_workflow.status, no_id.status, no_status.status] == [404, 400, 500]


def test_poll_data_tells_who_polled_last(conductor: Server, unique: Unique) -> None:
    job = unique("polled")
    path = f"/tasks/queue/polldata?taskType={job}"
    assert conductor.call("GET", path).body == []

    conductor.poll(job, worker="old")
    before = conductor.call("GET", path).body
    conductor.poll(job, worker="new")
    after = conductor.call("GET", path).body

    assert [(row["queueName"], row["domain"], row["workerId"]) for row in after] == [
        (job, None, "new")
    ]
    assert before[0]["workerId"] == "old"
    assert before[0]["lastPollTime"] <= after[0]["lastPollTime"]
    assert after[0] in conductor.call("GET", "/tasks/queue/polldata/all").body


def test_a_long_poll_gets_the_task_that_is_scheduled_meanwhile(
    conductor: Server, unique: Unique
) -> None:
    conductor.register(unique("late"), retryDelaySeconds=1)
    conductor.define(unique("single"), [simple(unique("late"), "only")])
    conductor.start(unique("single"))
    conductor.fail(conductor.take(unique("late")), "again in a second")

    tasks = conductor.poll(unique("late"), wait_ms=5000)

    assert [task["retryCount"] for task in tasks] == [1]
    assert conductor.call("GET", "/tasks/poll/batch/x?timeout=5001").status == 400


def test_a_task_without_a_definition_has_the_defaults(conductor: Server, unique: Unique) -> None:
    conductor.define(unique("undefined"), [simple(unique("unknown"), "only")])
    workflow_id = conductor.start(unique("undefined"))
    task = conductor.take(unique("unknown"))
    conductor.fail(task, "to see the delay")

    retry = by_reference(conductor.workflow(workflow_id))["only"]

    assert task["responseTimeoutSeconds"] == 3600
    assert (retry["retryCount"], retry["callbackAfterSeconds"]) == (1, 60)
