"""Meetings by every road: calls as for `databases`, workers, the web application, tests with and without a loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from loopsafe_db.integrations.conductor import Job
from loopsafe_db.testing import assert_queries
from reflector_workers.domain import Turn
from reflector_workers.storage.speech import turns_controller
from reflector_workers.workers.merge_turns import merge_turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi.testclient import TestClient

    from loopsafe_db import Database
    from loopsafe_db.testing import WorkerResult

JOB = Job("w", "merge", "merge_turns", "test")
TURNS = (Turn(start=0.0, end=1.5, speaker="ann"), Turn(start=1.25, end=2.0, speaker="bob"))
NAME = "SELECT name FROM reflector.meetings WHERE id = :id"


async def test_turns_are_read_as_they_were_written(loopsafe_db: Database, meeting_id: int) -> None:
    await turns_controller.replace(JOB, meeting_id, TURNS)
    await turns_controller.replace(JOB, meeting_id, TURNS)  # the job came a second time
    with assert_queries(max=1):
        assert await turns_controller.get_by_meeting(meeting_id) == TURNS


def test_the_application_sees_what_the_test_has_not_committed(
    client: TestClient, meeting_id: int
) -> None:
    asyncio.run(turns_controller.replace(JOB, meeting_id, TURNS))
    shown = client.get(f"/meetings/{meeting_id}/turns").json()
    assert [turn["speaker"] for turn in shown] == ["ann", "bob"]


@pytest.mark.asyncio(loop_scope="session")
async def test_the_test_sees_what_the_application_has_committed(
    database: Database, client: TestClient, meeting_id: int
) -> None:
    before = await asyncio.to_thread(client.put, f"/meetings/{meeting_id}/name?name=retro")
    assert before.json() == "standup"
    assert await database.fetch_val(NAME, {"id": meeting_id}) == "retro"


def test_a_meeting_that_is_not_there(client: TestClient) -> None:
    assert client.put("/meetings/1/name?name=retro").status_code == 404


def test_a_worker_whose_tracks_are_missing_fails(
    loopsafe_db: Database, meeting_id: int, loopsafe_run_worker: Callable[..., WorkerResult]
) -> None:
    inputs = {
        "meeting_id": meeting_id,
        "detected": {"t": {"track_id": 1, "position": 0, "segment_count": 0}},
    }
    result = loopsafe_run_worker(merge_turns, inputs, reference_task_name="merge")
    assert result.status == "FAILED"
    assert "look at the fork's jobs" in (result.reason or "")


@pytest.mark.parametrize("turn", range(2))
def test_every_test_begins_with_empty_tables(
    loopsafe_db: Database, client: TestClient, turn: int
) -> None:
    async def count() -> int:
        return int(await loopsafe_db.fetch_val("SELECT count(*) FROM reflector.meetings"))

    assert asyncio.run(count()) == 0
    add = """
        INSERT INTO reflector.meetings (workflow_instance_id, reference_task_name, name, folder)
        VALUES ('w', 'prepare', 'retro', '/')
        """
    asyncio.run(loopsafe_db.execute(add))
    assert asyncio.run(count()) == 1
