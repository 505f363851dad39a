"""The worker processes on a stand-in Conductor, when one of them is killed at work."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import wave
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import reflector_workers
from loopsafe_db.integrations.conductor import code_version
from reflector_workers.conductor import ConductorClient, StandInServer
from reflector_workers.fleet import MODULES, meeting_fleet
from reflector_workers.progress import JobState, WorkflowState, watch
from reflector_workers.storage.speech import turns_controller
from tests.workers.support import row_counts

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(reflector_workers.__file__).parent
PATIENCE = 60.0
RESPONSE_SECONDS = 5  # after which Conductor gives the job of a dead worker to another


@pytest.fixture
def conductor() -> Iterator[ConductorClient]:
    """A stand-in that knows the workflow and does not wait long for dead workers."""
    definitions = json.loads((FOLDER / "task_defs.json").read_text())
    with StandInServer() as server, ConductorClient(server.url) as client:
        client.register_task_definitions(
            [{**each, "responseTimeoutSeconds": RESPONSE_SECONDS} for each in definitions]
        )
        client.put_workflow(json.loads((FOLDER / "workflow.json").read_text()))
        yield client


@pytest.fixture
def long_meeting(sample: Path, tmp_path: Path) -> Path:
    """Two tracks that keep a worker busy for some seconds: one of speech and one of silence."""
    folder = tmp_path / "long"
    folder.mkdir()
    with wave.open(str(sample / "alice.wav")) as once:
        speech = once.readframes(once.getnframes()) * 4
    for name, samples in (("alice.wav", speech), ("bob.wav", bytes(len(speech)))):
        with wave.open(str(folder / name), "wb") as wav:
            wav.setparams((1, 2, 16_000, 0, "NONE", "not compressed"))
            wav.writeframes(samples)
    return folder


class Killer:
    """Kills, once, the process that works on a track; the way to say it is the worker's id."""

    def __init__(self) -> None:
        self.victim: JobState | None = None

    def look(self, states: list[WorkflowState]) -> None:
        for job in states[0].jobs:
            if not self.victim and job.job_type == "detect_speech" and job.status == "IN_PROGRESS":
                self.victim = job
                os.kill(int(job.worker_id.split("/")[1]), signal.SIGKILL)


def test_the_job_of_a_killed_worker_is_done_by_another_and_leaves_one_result(
    conductor: ConductorClient,
    storage: None,
    loopsafe_db_url: str,
    long_meeting: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOPSAFE_DB_URL", loopsafe_db_url)
    killer = Killer()

    with meeting_fleet(conductor.base_url, tmp_path):
        workflow_id = conductor.start_workflow(
            "reflector_diarization", {"folder": str(long_meeting)}
        )
        (state,) = watch(conductor, [workflow_id], PATIENCE, killer.look)

    assert multiprocessing.active_children() == []
    assert state.completed
    assert {job.status for job in state.failures} == {"TIMED_OUT"}
    assert killer.victim is not None
    assert killer.victim.worker_id.endswith(code_version(MODULES[0]))
    turns = asyncio.run(turns_controller.get_by_meeting(int(state.output["meeting_id"])))
    counts = row_counts()
    assert (counts["meetings"], counts["tracks"], counts["outputs"]) == (1, 2, 3)
    assert {turn.speaker for turn in turns} == {"alice"}
    assert counts["turns"] == len(turns) == 4 * 3
