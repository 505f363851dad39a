"""What is read from Conductor: jobs by type, failures by reason, and an end to every wait."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import reflector_workers
from loopsafe_db import PoolStats
from loopsafe_db.integrations.conductor import ProcessReport
from reflector_workers.conductor import ConductorClient, StandInServer
from reflector_workers.outcome import Outcome
from reflector_workers.progress import (
    WorkflowState,
    done_by_type,
    failure_reasons,
    read_state,
    watch,
)
from reflector_workers.recordings import MeetingFolder

FOLDER = Path(reflector_workers.__file__).parent


def task(name: str, status: str, **more: str) -> dict[str, Any]:
    return {"taskType": name, "taskDefName": name, "status": status, **more}


@pytest.fixture
def state() -> WorkflowState:
    """A workflow one of whose jobs failed once and was done by a stranger then."""
    return read_state(
        {
            "workflowId": "w-1",
            "status": "RUNNING",
            "tasks": [
                task("prepare_meeting", "COMPLETED", workerId="host/1/aaaa"),
                {**task("FORK", "COMPLETED"), "taskDefName": "fork_tracks"},
                task("detect_speech", "FAILED", workerId="host/2/aaaa", reasonForIncompletion="no"),
                task("detect_speech", "COMPLETED", workerId="host/9/bbbb"),
                task("detect_speech", "TIMED_OUT"),
                task("detect_speech", "IN_PROGRESS"),
                {**task("JOIN", "IN_PROGRESS"), "taskDefName": "join_tracks"},
            ],
        }
    )


def test_only_what_workers_do_are_jobs(state: WorkflowState) -> None:
    assert done_by_type([state, state]) == {"prepare_meeting": 2, "detect_speech": 2}


def test_every_failed_attempt_counts_by_its_reason(state: WorkflowState) -> None:
    assert failure_reasons([state]) == {"no": 1, "TIMED_OUT": 1}
    assert not state.ended


def test_workers_that_are_not_ours_are_named(state: WorkflowState) -> None:
    outcome = Outcome(
        meeting=MeetingFolder(FOLDER, ()),
        collar=0,
        workflows=[state],
        result=None,
        processes=[ProcessReport(pid, f"host/{pid}/aaaa", 1, PoolStats()) for pid in (1, 2)],
        process_count=2,
        sessions_when_done=0,
        sessions_left_open=0,
        log="",
    )

    assert outcome.strangers == {"host/9/bbbb"}
    assert outcome.failed_jobs == 2
    assert not outcome.completed


def test_a_workflow_that_nobody_works_on_is_given_up_when_the_time_is_over() -> None:
    workflow = json.loads((FOLDER / "workflow.json").read_text())
    looks: list[list[WorkflowState]] = []

    with StandInServer() as server, ConductorClient(server.url) as conductor:
        conductor.register_task_definitions(json.loads((FOLDER / "task_defs.json").read_text()))
        conductor.put_workflow(workflow)
        workflow_id = conductor.start_workflow(workflow["name"], {"folder": "/"})
        (state,) = watch(conductor, [workflow_id], 0.1, looks.append)

    assert state == looks[-1][0]
    assert [job.status for job in state.jobs] == ["SCHEDULED"]
    assert not state.ended
