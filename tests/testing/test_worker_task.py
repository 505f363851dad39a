"""A job for a Conductor worker goes the SDK's own way: conversion, context, status, and JSON both ways.

No ``from __future__ import annotations`` here: the SDK would not understand the workers below.
"""

import asyncio
import contextvars
import dataclasses
import datetime
import enum
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import pytest
from conductor.client.context.task_context import TaskInProgress, get_task_context
from conductor.client.http.models.task import Task
from conductor.client.http.models.task_result import TaskResult
from conductor.client.worker.exception import NonRetryableException
from conductor.client.worker.worker_task import worker_task

from loopsafe_db.errors import MisuseError
from loopsafe_db.testing import (
    START_METHODS,
    MissingConductorError,
    StartMethod,
    WorkerResult,
    run_worker,
)

seen = contextvars.ContextVar("seen", default="nothing")


@dataclasses.dataclass
class Track:
    track_id: int
    speaker: str


class Colour(enum.Enum):
    RED = 1


@worker_task(task_definition_name="count_tracks")  # type: ignore[untyped-decorator]
def count_tracks(tracks: list[Track], factor: int = 2, missing: object = None) -> dict[str, Any]:
    return {"speakers": [track.speaker for track in tracks], "factor": factor, "missing": missing}


@worker_task(task_definition_name="count_in_loop")  # type: ignore[untyped-decorator]
async def count_in_loop(tracks: list[Track], required: int) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"speakers": [track.speaker for track in tracks], "required": required}


@worker_task(task_definition_name="tell", worker_id="me")  # type: ignore[untyped-decorator]
def tell_context() -> dict[str, Any]:
    return _told()


@worker_task(task_definition_name="tell in loop")  # type: ignore[untyped-decorator]
async def tell_context_in_loop() -> dict[str, Any]:
    return _told()


def _told() -> dict[str, Any]:
    context = get_task_context()
    context.add_log("told")
    return {
        "kind": context.get_task_def_name(),
        "step": context.task.reference_task_name,
        "workflow": context.get_workflow_instance_id(),
        "task": context.get_task_id(),
        "retries": context.get_retry_count(),
        "iteration": context.task.iteration,
    }


def fail(kind: str) -> NoReturn:
    if kind == "exit":
        sys.exit(1)
    if kind == "for good":
        raise NonRetryableException("the file is no recording")
    raise ValueError("no such track")


async def fail_in_loop(kind: str) -> NoReturn:
    if kind == "exit":
        raise asyncio.CancelledError
    fail(kind)


def go_on() -> TaskInProgress:
    return TaskInProgress(callback_after_seconds=60, output={"progress": 50})


async def go_on_in_loop() -> TaskInProgress:
    return go_on()


def give_back(value: str) -> object:
    return {"value": MADE[value]}


async def give_back_in_loop(value: str) -> object:
    return give_back(value)


MADE: dict[str, Any] = {
    "nan": [1.0, {"score": math.nan}],
    "enum": [1.0, {"score": Colour.RED}],
    "time": datetime.datetime(2026, 1, 2),
    "bytes": b"text",
}
Worker = Callable[..., Any] | Callable[..., Coroutine[Any, Any, Any]]
TRACKS = [{"track_id": 1, "speaker": "alice"}, {"track_id": 2, "speaker": "bob"}]


def test_input_is_converted_and_defaults_apply() -> None:
    result = run_worker(count_tracks, {"tracks": TRACKS, "unknown": 1})
    assert result == WorkerResult(
        "COMPLETED", {"speakers": ["alice", "bob"], "factor": 2, "missing": None}
    )


def test_an_async_worker_is_awaited_and_misses_what_is_not_given() -> None:
    result = run_worker(count_in_loop, {"tracks": TRACKS})
    assert result == WorkerResult("COMPLETED", {"speakers": ["alice", "bob"], "required": None})


async def test_a_job_is_done_where_a_loop_runs() -> None:
    for worker in (count_tracks, count_in_loop):
        assert run_worker(worker, {"tracks": TRACKS}).status == "COMPLETED"


def test_only_a_sync_worker_can_take_the_task_itself() -> None:
    def take(task: Task) -> object:
        return task and task.input_data

    async def take_in_loop(task: Task) -> object:
        return take(task)

    assert run_worker(take, {"a": 1}).output == {"a": 1}
    assert run_worker(take_in_loop, {"a": 1}).output == {"result": None}


def test_what_the_sdk_cannot_convert_fails_the_job() -> None:
    def take(track: dict[str, Track]) -> None:
        pytest.fail(f"called with {track}")

    result = run_worker(take, {"track": TRACKS[0]})
    assert result.status == "FAILED"
    assert "Traceback" in result.logs[0]


@pytest.mark.parametrize(
    ("worker", "name"), [(tell_context, "tell"), (tell_context_in_loop, "tell in loop")]
)
def test_the_task_context_tells_of_the_job(worker: Worker, name: str) -> None:
    assert run_worker(worker).output == {
        "kind": name,
        "step": name,
        "workflow": "workflow-1",
        "task": "task-1",
        "retries": 0,
        "iteration": None,
    }
    result = run_worker(
        worker,
        task_definition_name="kind",
        reference_task_name="step",
        workflow_instance_id="w",
        task_id="t",
        retry_count=2,
        task_fields={"iteration": 3},
    )
    assert list(result.output.values()) == ["kind", "step", "w", "t", 2, 3]
    assert result.logs == ("told",)
    assert (result.task_result.task_id, result.task_result.workflow_instance_id) == ("t", "w")
    with pytest.raises(RuntimeError, match="No task context"):
        get_task_context()


@pytest.mark.parametrize("worker", [fail, fail_in_loop])
def test_an_exception_is_a_status_and_a_reason(worker: Worker) -> None:
    failed = run_worker(worker, {"kind": "once"})
    assert (failed.status, failed.reason) == ("FAILED", "no such track")
    assert "in fail" in failed.logs[0]
    terminal = run_worker(worker, {"kind": "for good"})
    assert terminal.status == "FAILED_WITH_TERMINAL_ERROR"
    assert terminal.reason == "the file is no recording"


@pytest.mark.parametrize("worker", [fail, fail_in_loop])
def test_a_job_that_the_sdk_would_lose_is_an_error(worker: Worker) -> None:
    with pytest.raises(MisuseError, match=r"'fail.*' ended without a result"):
        run_worker(worker, {"kind": "exit"})


@pytest.mark.parametrize("worker", [go_on, go_on_in_loop])
def test_a_job_in_progress_says_when_to_come_back(worker: Worker) -> None:
    result = run_worker(worker)
    assert (result.status, result.output) == ("IN_PROGRESS", {"progress": 50})
    assert result.task_result.callback_after_seconds == 60


def test_a_task_result_is_taken_as_it_is() -> None:
    def answer() -> TaskResult:
        return TaskResult(status="FAILED", reason_for_incompletion="later")

    result = run_worker(answer)
    assert result == WorkerResult("FAILED", {}, "later")
    assert result.task_result.task_id == "task-1"


def test_a_function_that_gives_back_a_coroutine_is_waited_for() -> None:
    assert run_worker(lambda: count_in_loop([], 7)).output == {"speakers": [], "required": 7}


@pytest.mark.parametrize(
    ("inputs", "where"),
    [
        ({"a": 1, "when": datetime.date(2026, 1, 2)}, r"input\['when'\], a date,"),
        ({"a": [{"b": {1, 2}}]}, r"input\['a'\]\[0\]\['b'\], a set,"),
        ({"score": math.inf}, r"input\['score'\], a float,"),
        ({"a": {(1, 2): 3}}, r"input\['a'\], a dict,"),
    ],
)
def test_input_that_is_no_json_is_named(inputs: dict[str, Any], where: str) -> None:
    with pytest.raises(MisuseError, match=where + " cannot be sent as JSON"):
        run_worker(count_tracks, inputs)


def test_input_that_contains_itself_is_named() -> None:
    endless: list[Any] = [1]
    endless.append(endless)
    with pytest.raises(MisuseError, match=r"input\['a'\]\[1\], a list, cannot"):
        run_worker(count_tracks, {"a": endless})


@pytest.mark.parametrize("worker", [give_back, give_back_in_loop])
@pytest.mark.parametrize("kind", ["nan", "enum"])
def test_output_that_would_be_lost_is_named(worker: Worker, kind: str) -> None:
    with pytest.raises(MisuseError, match=r"output\['value'\]\[1\]\['score'\], a \w+, cannot"):
        run_worker(worker, {"value": kind})


@pytest.mark.parametrize("worker", [give_back, give_back_in_loop])
def test_output_arrives_as_the_next_worker_reads_it(worker: Worker) -> None:
    assert run_worker(worker, {"value": "time"}).output == {"value": "2026-01-02T00:00:00"}
    result = run_worker(worker, {"value": "bytes"})
    assert result.output == result.task_result.output_data == {"value": "text"}


def test_input_is_a_copy_of_what_was_given() -> None:
    def spoil(tracks: list[object]) -> None:
        tracks.clear()

    given = {"tracks": list(TRACKS)}
    assert run_worker(spoil, given).reason is None
    assert given == {"tracks": TRACKS}


def test_each_job_has_a_context_of_its_own() -> None:
    def look() -> str:
        before = seen.get()
        seen.set("something")
        return before

    async def look_in_loop() -> str:
        return look()

    token = seen.set("the test's")
    for worker in (look, look_in_loop, look, look_in_loop):
        assert run_worker(worker).output == {"result": "nothing"}
    seen.reset(token)


def test_the_environment_cannot_stop_a_job_or_send_it_anywhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("conductor.worker.all.paused", "true")
    monkeypatch.setenv("conductor.worker.all.thread_count", "3")
    monkeypatch.setenv("CONDUCTOR_AUTH_KEY", "key")
    monkeypatch.setenv("CONDUCTOR_AUTH_SECRET", "secret")
    for worker in (count_tracks, count_in_loop):
        assert run_worker(worker, {"tracks": TRACKS}).status == "COMPLETED"
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_no_thread_stays_behind() -> None:
    before = threading.enumerate()
    for worker in (count_tracks, count_in_loop):
        run_worker(worker, {"tracks": TRACKS})
    assert threading.enumerate() == before


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize("worker", [count_tracks, count_in_loop])
def test_a_job_is_done_in_a_child_process(worker: Worker, start_method: StartMethod) -> None:
    result = run_worker(worker, {"tracks": TRACKS}, start_method=start_method)
    assert result.status == "COMPLETED"
    assert result.output["speakers"] == ["alice", "bob"]
    assert result.task_result.task_id == "task-1"


def test_a_child_process_is_another_one() -> None:
    assert run_worker(os.getpid, start_method="fork").output != {"result": os.getpid()}


def test_without_the_sdk_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "conductor.client.http.api_client", None)
    with pytest.raises(MissingConductorError, match="HINT: pip install conductor-python") as caught:
        run_worker(count_tracks)
    assert isinstance(caught.value, ImportError)


def test_importing_the_helpers_imports_neither_pytest_nor_the_sdk() -> None:
    code = (
        "import sys, loopsafe_db.testing as t; assert t.run_worker;"
        "print(sorted({'pytest', 'conductor'} & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
