"""The SDK's own `TaskHandler`, unmodified, works for every server, and survives kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.workers.conductor.rest import PATIENCE, Server, by_reference, fork, simple, statuses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Unique = Callable[[str], str]

REPOSITORY = Path(__file__).parents[3]


@contextmanager
def fleet(url: str, suffix: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "FLEET": f"{url},{suffix},{folder}",
        "PYTHONPATH": os.pathsep.join(
            [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    log = folder / "fleet.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.workers.conductor.fleet"],
            stdout=output,
            stderr=output,
            env=environment,
            cwd=REPOSITORY,
            start_new_session=True,
        )
    try:
        yield process
    except BaseException:
        print(log.read_text()[-5000:])  # pytest shows it with the failure
        raise
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            end_group(process.pid)


def end_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)  # workers that the handler left behind
    except ProcessLookupError:
        return


@pytest.fixture
def workers(conductor: Server, unique: Unique, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    settings = {"retryCount": 2, "retryDelaySeconds": 0, "responseTimeoutSeconds": 60}
    for name in ("sync", "async", "fails"):
        conductor.register(unique(name), **settings)
    conductor.register(unique("hangs"), **settings | {"responseTimeoutSeconds": 2})
    # The SDK looks once a second whether 80 % of the timeout are over: so 3 s are left to a busy machine.
    conductor.register(unique("slow"), **settings | {"responseTimeoutSeconds": 20})
    with fleet(conductor.url, unique("").removeprefix("_"), tmp_path) as process:
        yield process


def test_sync_and_async_workers_run_a_fork_to_completion(
    conductor: Server, unique: Unique, workers: subprocess.Popen[bytes]
) -> None:
    tasks = [
        {"name": unique(kind), "taskReferenceName": f"{kind}{i}", "type": "SIMPLE"}
        for i in range(6)
        for kind in ("sync", "async")
    ]
    inputs = {
        task["taskReferenceName"]: {"n": int(task["taskReferenceName"][-1])} for task in tasks
    }
    names = {"dynamicForkTasksParam": "tasks", "dynamicForkTasksInputParamName": "inputs"}
    steps = fork("fork", {"tasks": tasks, "inputs": inputs}, **names)
    conductor.define(unique("mixed"), [simple(unique("fails"), "first"), *steps])

    workflow = conductor.ended(conductor.start(unique("mixed")))

    assert workflow["status"] == "COMPLETED"
    assert statuses(workflow)[:2] == [("first", "FAILED"), ("first", "COMPLETED")]
    # Not the JOIN's: a server under load was once seen to leave branches out that it had waited for.
    outputs = {ref: by_reference(workflow)[ref]["outputData"] for ref in inputs}
    assert {ref: output["twice"] for ref, output in outputs.items()} == {
        ref: given["n"] * 2 for ref, given in inputs.items()
    }
    assert all(outputs[ref]["reference"] == ref for ref in outputs if ref.startswith("async"))
    assert {output["pid"] for output in outputs.values() if "pid" in output} != {workers.pid}


def test_a_worker_killed_in_the_middle_of_a_task_is_replaced_and_the_task_retried(
    conductor: Server, unique: Unique, workers: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    conductor.define(unique("killed"), [simple(unique("hangs"), "only")])
    workflow_id = conductor.start(unique("killed"))

    killed = wait_for_note(tmp_path / "hangs", workers)
    os.kill(killed, signal.SIGKILL)

    workflow = conductor.ended(workflow_id)
    assert workflow["status"] == "COMPLETED"
    assert statuses(workflow)[0] == ("only", "TIMED_OUT")
    assert workflow["output"]["attempt"] >= 1
    assert workflow["output"]["pid"] not in {killed, workers.pid}


def wait_for_note(note: Path, workers: subprocess.Popen[bytes]) -> int:
    give_up = time.monotonic() + PATIENCE
    while not note.exists():
        assert workers.poll() is None
        assert time.monotonic() < give_up, "no worker took the task"
        time.sleep(0.01)
    return int(note.read_text())


@pytest.mark.slow
def test_the_sdk_renews_the_lease_of_a_task_slower_than_its_timeout(
    conductor: Server, unique: Unique, workers: subprocess.Popen[bytes]
) -> None:
    slow = simple(unique("slow"), "only", milliseconds=22_000)
    conductor.define(unique("leased"), [slow])

    workflow = conductor.ended(conductor.start(unique("leased")), within=90)

    assert workers.poll() is None
    assert statuses(workflow) == [("only", "COMPLETED")]
    assert workflow["output"] == {"waited": 22_000}
