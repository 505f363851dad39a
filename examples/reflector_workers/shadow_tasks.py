"""The same steps as Celery's tasks: ``celery -A reflector_workers.shadow_tasks worker``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from celery import Celery

from loopsafe_db.integrations.celery import TaskJob, run_task
from loopsafe_db.integrations.conductor import Job
from reflector_workers import steps
from reflector_workers.domain import DetectedTrack

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

BROKER = "SHADOW_BROKER"  # a Redis; else a folder, SHADOW_FOLDER
FOLDER = "SHADOW_FOLDER"

app = Celery("reflector")
app.conf.task_acks_late = True
app.conf.worker_prefetch_multiplier = 1
if os.environ.get(BROKER):
    app.conf.broker_url = app.conf.result_backend = os.environ[BROKER]
else:
    folder = os.environ.get(FOLDER, "")
    app.conf.broker_url = "filesystem://"
    app.conf.broker_transport_options = {
        name: f"{folder}/queue" for name in ("data_folder_in", "data_folder_out", "control_folder")
    }
    app.conf.result_backend = f"file://{folder}/results"


@app.task  # type: ignore[untyped-decorator]
def prepare_meeting(run: str, folder: str) -> Any:
    return _do(run, "prepare_meeting", lambda job: steps.prepare_meeting(job, folder, None))


@app.task  # type: ignore[untyped-decorator]
def detect_speech(run: str, number: int, track_id: int) -> Any:
    return _do(run, f"_detect_speech_{number}", lambda job: steps.detect_speech(job, track_id))


@app.task  # type: ignore[untyped-decorator]
def merge_turns(run: str, meeting_id: int, detected: list[dict[str, Any]]) -> Any:
    tracks = [DetectedTrack(**each) for each in detected]
    return _do(run, "merge_turns", lambda job: steps.merge_turns(job, meeting_id, tracks))


@app.task  # type: ignore[untyped-decorator]
def finalize(run: str, meeting_id: int, turn_count: int) -> Any:
    return _do(run, "finalize", lambda job: steps.finalize(job, meeting_id, turn_count))


def _do(run: str, step: str, work: Callable[[Job], Coroutine[Any, Any, Any]]) -> Any:
    def as_job(task: TaskJob) -> Coroutine[Any, Any, Any]:
        return work(
            Job(run, step, task.name, task.worker_id)
        )  # a task's id names one delivery only

    return run_task(as_job)
