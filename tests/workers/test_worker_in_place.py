"""The example's own workers, one job each, without Conductor: the helper gives them what its SDK would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db.testing import StartMethod, run_worker
from reflector_workers.workers.detect_speech import detect_speech
from reflector_workers.workers.finalize import finalize
from reflector_workers.workers.merge_turns import merge_turns
from reflector_workers.workers.prepare_meeting import prepare_meeting
from tests.workers.support import row_counts

if TYPE_CHECKING:
    from pathlib import Path


def done(worker: Any, step: str, inputs: dict[str, Any], start_method: StartMethod | None) -> Any:
    result = run_worker(
        worker,
        inputs,
        reference_task_name=step,
        workflow_instance_id="w",
        start_method=start_method,
    )
    assert result.status == "COMPLETED", result.reason
    return result.output


@pytest.mark.parametrize("start_method", [None, "os.fork"])
def test_a_meeting_goes_through_all_its_workers(
    storage: None, short_meeting: Path, start_method: StartMethod | None
) -> None:
    meeting = done(prepare_meeting, "prepare", {"folder": str(short_meeting)}, start_method)
    detected = {
        f"_detect_{number}": done(detect_speech, f"_detect_{number}", track, start_method)
        for number, track in enumerate(meeting["tracks"])
    }
    merging = {"meeting_id": meeting["meeting_id"], "detected": detected}
    merged = done(merge_turns, "merge", merging, start_method)
    final = done(finalize, "finalize", merged, start_method)

    assert set(final["outputs"]) == {"rttm", "svg", "html"}
    counts = row_counts()
    assert (counts["meetings"], counts["tracks"], counts["outputs"]) == (1, 2, 3)
    assert counts["turns"] == merged["turn_count"] > 0


def test_a_meeting_without_tracks_fails_for_good(storage: None, tmp_path: Path) -> None:
    result = run_worker(prepare_meeting, {"folder": str(tmp_path)})
    assert result.status == "FAILED_WITH_TERMINAL_ERROR"
    assert str(tmp_path) in (result.reason or "")


def test_a_job_that_is_delivered_twice_writes_once(storage: None, short_meeting: Path) -> None:
    first, second = (
        run_worker(
            prepare_meeting,
            {"folder": str(short_meeting)},
            reference_task_name="prepare",
            task_id=task_id,
        )
        for task_id in ("first", "second")
    )
    assert first == second
    assert row_counts()["meetings"] == 1
