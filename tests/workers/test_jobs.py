"""The jobs themselves, without a Conductor: JSON in, ids out, everything else in the database."""

from __future__ import annotations

import asyncio
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import reflector_workers
from loopsafe_db.integrations.conductor import InvalidInput, join_results
from loopsafe_db.integrations.conductor.fleet import make_workers
from loopsafe_db.integrations.repeating import run_in_own_loop
from reflector_workers.domain import DetectedTrack
from reflector_workers.fleet import MODULES, PROCESSES
from reflector_workers.rttm import read_rttm
from reflector_workers.storage.job_log import job_log_controller
from reflector_workers.storage.outputs import outputs_controller
from reflector_workers.storage.speech import turns_controller
from reflector_workers.workers.detect_speech import detect_speech
from reflector_workers.workers.merge_turns import merge_turns
from reflector_workers.workers.prepare_meeting import prepare_meeting
from tests.workers.support import WriteWav, deliver, diarize, output_of, row_counts

FOLDER = Path(reflector_workers.__file__).parent


def test_a_meeting_becomes_turns_and_documents(storage: None, sample: Path) -> None:
    final = diarize(sample)

    turns = asyncio.run(turns_controller.get_by_meeting(final["meeting_id"]))
    outputs = asyncio.run(outputs_controller.get_by_meeting(final["meeting_id"]))
    documents = {output.kind: output.content for output in outputs}
    assert [turn.speaker[0] for turn in turns] == list("abcacac")
    assert [turn.speaker for turn in read_rttm(documents["rttm"])] == [t.speaker for t in turns]
    assert documents["svg"].startswith("<svg")
    assert documents["html"].startswith("<!doctype html>")
    assert final["outputs"].keys() == {"rttm", "svg", "html"}


def test_only_ids_and_counts_cross_conductor(storage: None, short_meeting: Path) -> None:
    prepared = output_of(prepare_meeting, "prepare_meeting", {"folder": str(short_meeting)})
    detected = output_of(detect_speech, "_detect_speech_0", prepared["tracks"][0])

    assert prepared.keys() == {"meeting_id", "track_count", "tracks"}
    assert all(track.keys() == {"track_id"} for track in prepared["tracks"])
    assert detected == {
        "track_id": prepared["tracks"][0]["track_id"],
        "position": 0,
        "segment_count": 1,
    }


def test_a_meeting_in_which_nobody_speaks_has_documents_too(
    storage: None, write_wav: WriteWav, tmp_path: Path
) -> None:
    write_wav("alice.wav")
    write_wav("bob.wav")

    final = diarize(tmp_path)

    assert asyncio.run(turns_controller.get_by_meeting(final["meeting_id"])) == ()
    assert row_counts()["outputs"] == 3


def test_two_workflows_on_one_folder_are_two_meetings(
    storage: None, write_wav: WriteWav, tmp_path: Path
) -> None:
    write_wav("alice.wav")

    first, second = diarize(tmp_path, "w-1"), diarize(tmp_path, "w-2")

    assert first["meeting_id"] != second["meeting_id"]


def test_a_folder_that_cannot_be_used_is_not_tried_again(storage: None, tmp_path: Path) -> None:
    result = deliver(prepare_meeting, "prepare_meeting", {"folder": str(tmp_path)})

    assert result.status == "FAILED_WITH_TERMINAL_ERROR"
    assert "has no recording in it" in result.reason_for_incompletion
    assert row_counts()["meetings"] == 0


def test_a_track_that_is_not_in_the_database_fails_its_job(storage: None) -> None:
    result = deliver(detect_speech, "_detect_speech_0", {"track_id": 7})

    assert result.status == "FAILED"
    assert result.reason_for_incompletion == "there is no track 7"


def test_branches_are_ordered_by_number_not_by_text_or_completion() -> None:
    branches = {
        f"_detect_speech_{index}": {"track_id": index, "position": index, "segment_count": 0}
        for index in (2, 11, 0, 10, 1, 9)
    }

    assert [track.position for track in join_results(branches, DetectedTrack)] == [
        0,
        1,
        2,
        9,
        10,
        11,
    ]


@pytest.mark.parametrize("branch", [None, {}, {"track_id": 1}, {"track_id": "one"}, "lost"])
def test_a_branch_that_is_no_track_is_refused(branch: object) -> None:
    with pytest.raises(InvalidInput, match="_detect_speech_0"):
        join_results({"_detect_speech_0": branch}, DetectedTrack)


def test_a_join_without_one_of_its_branches_is_refused(
    storage: None, write_wav: WriteWav, tmp_path: Path
) -> None:
    write_wav("alice.wav")
    write_wav("bob.wav")
    prepared = output_of(prepare_meeting, "prepare_meeting", {"folder": str(tmp_path)})
    only = {"_detect_speech_0": output_of(detect_speech, "_d", prepared["tracks"][0])}

    with pytest.raises(RuntimeError, match=r"has the tracks \[\d+, \d+\], the JOIN gives \[\d+\]"):
        deliver(merge_turns, "m", {"meeting_id": prepared["meeting_id"], "detected": only})


def test_the_log_tells_jobs_from_executions(
    storage: None, write_wav: WriteWav, tmp_path: Path
) -> None:
    write_wav("alice.wav")
    for _ in range(2):
        output_of(prepare_meeting, "prepare_meeting", {"folder": str(tmp_path)})
    output_of(prepare_meeting, "another", {"folder": str(tmp_path)}, workflow="w-2")

    counts = asyncio.run(job_log_controller.count(["w-1", "w-2"]))

    assert (counts.jobs, counts.executions, counts.processes) == (2, 3, 1)
    assert asyncio.run(job_log_controller.count(["w-2"])).executions == 1


def test_every_step_of_the_workflow_has_a_definition_and_a_worker() -> None:
    workflow = json.loads((FOLDER / "workflow.json").read_text())
    definitions = json.loads((FOLDER / "task_defs.json").read_text())
    steps = {task["name"] for task in workflow["tasks"] if task["type"] == "SIMPLE"}
    forked = {
        task["inputParameters"]["forkTaskName"]
        for task in workflow["tasks"]
        if task["type"] == "FORK_JOIN_DYNAMIC"
    }

    workers = {worker.task_definition_name for worker in make_workers(MODULES, PROCESSES)}

    assert steps | forked == {each["name"] for each in definitions} == workers


def test_sync_workers_have_several_threads_and_one_worker_is_async() -> None:
    workers = make_workers(MODULES, {})

    assert all(worker.thread_count >= 3 for worker in workers)
    assert any(inspect.iscoroutinefunction(worker.execute_function) for worker in workers)


@pytest.mark.parametrize(
    "worker", make_workers(MODULES, {}), ids=lambda worker: worker.task_definition_name
)
def test_the_sdk_can_read_the_annotations_of_every_worker(worker: Any) -> None:
    parameters = inspect.signature(worker.execute_function).parameters.values()

    assert {parameter.annotation for parameter in parameters} == {str}


def test_the_error_of_a_job_has_no_context_of_ours() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        run_in_own_loop("run_job", work)
    assert caught.value.__context__ is None
