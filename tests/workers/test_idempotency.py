"""Conductor delivers at least once: a job that runs twice, or twice at once, leaves one result."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db.integrations.conductor import Job
from reflector_workers.domain import Segment, Turn
from reflector_workers.storage.schema import create_schema
from reflector_workers.storage.speech import segments_controller, turns_controller
from reflector_workers.workers.detect_speech import detect_speech
from reflector_workers.workers.finalize import finalize
from reflector_workers.workers.merge_turns import merge_turns
from reflector_workers.workers.prepare_meeting import prepare_meeting
from tests.workers.support import output_of, row_counts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Delivery:
    """A job with its input, ready to be delivered any number of times."""

    worker: Callable[..., Any]
    reference: str
    given: dict[str, Any]

    def __call__(self) -> dict[str, Any]:
        return output_of(self.worker, self.reference, self.given)


@pytest.fixture
def deliveries(storage: None, short_meeting: Path) -> dict[str, Delivery]:
    """Every job of a meeting, each delivered once already."""
    prepare = Delivery(prepare_meeting, "prepare_meeting", {"folder": str(short_meeting)})
    prepared = prepare()
    detects = [
        Delivery(detect_speech, f"_detect_speech_{index}", track)
        for index, track in enumerate(prepared["tracks"])
    ]
    detected = {detect.reference: detect() for detect in detects}
    merge = Delivery(
        merge_turns, "merge_turns", {"meeting_id": prepared["meeting_id"], "detected": detected}
    )
    final = Delivery(finalize, "finalize", merge())
    final()
    return {each.worker.__name__: each for each in (prepare, detects[0], merge, final)}


JOBS = ["prepare_meeting", "detect_speech", "merge_turns", "finalize"]


@pytest.mark.parametrize("job", JOBS)
def test_a_job_delivered_again_changes_nothing(deliveries: dict[str, Delivery], job: str) -> None:
    before = row_counts()

    first, second = deliveries[job](), deliveries[job]()

    assert first == second
    assert row_counts() == before


@pytest.mark.parametrize("job", JOBS)
def test_a_job_delivered_to_four_threads_at_once_leaves_one_result(
    deliveries: dict[str, Delivery], job: str
) -> None:
    before = row_counts()
    start = threading.Barrier(4)

    def deliver() -> dict[str, Any]:
        start.wait()
        return deliveries[job]()

    with ThreadPoolExecutor(4) as threads:
        outputs = [future.result() for future in [threads.submit(deliver) for _ in range(4)]]

    assert all(output == outputs[0] for output in outputs)
    assert row_counts() == before


def test_a_repetition_that_finds_less_takes_the_surplus_away(
    deliveries: dict[str, Delivery],
) -> None:
    given = deliveries["detect_speech"].given
    meeting_id = deliveries["finalize"].given["meeting_id"]

    async def find_less() -> tuple[tuple[Segment, ...], tuple[Turn, ...]]:
        job = Job("w-1", "_detect_speech_0", "detect_speech", "test")
        await segments_controller.replace(job, given["track_id"], [Segment(start=0, end=1)])
        job = Job("w-1", "merge_turns", "merge_turns", "test")
        await turns_controller.replace(job, meeting_id, [Turn(speaker="a", start=0, end=1)])
        return (
            await segments_controller.get_by_track(given["track_id"]),
            await turns_controller.get_by_meeting(meeting_id),
        )

    segments, turns = asyncio.run(find_less())

    assert segments == (Segment(start=0, end=1),)
    assert turns == (Turn(speaker="a", start=0, end=1),)


def test_the_tables_can_be_created_by_many_at_once(empty_database: None) -> None:
    start = threading.Barrier(4)

    def create() -> None:
        start.wait()
        asyncio.run(create_schema())

    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(create) for _ in range(4)]:
            future.result()

    assert set(row_counts().values()) == {0}
