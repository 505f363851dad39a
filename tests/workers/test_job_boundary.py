"""What a worker is given and returns, checked on both sides, through the SDK's own runners."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from conductor.client.context.task_context import get_task_context
from conductor.client.http.models.task import Task  # noqa: TC002  (read by the SDK)
from pydantic import BaseModel

from loopsafe_db import Database
from loopsafe_db.errors import SerializationFailure
from loopsafe_db.integrations.conductor import (
    InvalidInput,
    Job,
    JSONObject,
    checked,
    join_results,
    run_job,
)
from loopsafe_db.retry import Attempts
from loopsafe_db.testing import run_worker


class Track(BaseModel):
    track_id: int
    name: str = "?"


@checked
def one_track(track_id: int, label: str | None = None) -> JSONObject:
    return {"is": f"{track_id!r} {label!r}"}


@checked
async def tracks_in_a_loop(tracks: list[Track], first: Track | None = None) -> JSONObject:
    return {"is": [track.track_id for track in tracks], "first": first and first.track_id}


@checked
def the_task(task: Task) -> JSONObject:
    return {"is": task.task_id}


def test_a_scalar_of_the_right_kind_arrives() -> None:
    assert run_worker(one_track, {"track_id": 7}).output == {"is": "7 None"}
    assert run_worker(one_track, {"track_id": 7.0, "label": "a"}).output == {"is": "7 'a'"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"track_id": 7.5}, "one_track: track_id: expected a valid integer, got a number with a"),
        ({"track_id": "seven"}, "one_track: track_id: expected a valid integer"),
        ({}, "one_track: track_id: expected a valid integer, got None"),
        ({"track_id": 7, "label": ["x" * 500]}, "one_track: label: expected a valid string"),
    ],
)
def test_what_does_not_fit_fails_for_good_with_field_expected_and_got(
    given: dict[str, object], said: str
) -> None:
    result = run_worker(one_track, given)

    assert result.status == "FAILED_WITH_TERMINAL_ERROR"
    assert (result.reason or "").startswith(f"[LDB601] {said}")
    assert len(result.reason or "") < 400


def test_models_arrive_in_async_workers_and_what_they_do_not_know_is_ignored() -> None:
    given = {"tracks": [{"track_id": 1}, {"track_id": 2, "newer": True}], "first": {"track_id": 1}}
    assert run_worker(tracks_in_a_loop, given).output == {"is": [1, 2], "first": 1}

    wrong = run_worker(tracks_in_a_loop, {"tracks": [{"track_id": 1}, {}]})

    assert wrong.status == "FAILED_WITH_TERMINAL_ERROR"
    assert "tracks.1.track_id" in (wrong.reason or "")


def test_a_worker_that_asks_for_the_task_is_given_it() -> None:
    assert run_worker(the_task, {"track_id": 3}, task_id="t-1").output == {"is": "t-1"}


def test_the_branches_of_a_join_are_in_the_order_of_their_numbers() -> None:
    join = {f"_detect_{number}": {"track_id": number} for number in (10, 2, 0, 11, 1)}

    assert [track.track_id for track in join_results(join, Track)] == [0, 1, 2, 10, 11]
    assert join_results({}, Track) == []
    with pytest.raises(InvalidInput, match=r"join: _detect_0\.track_id"):
        join_results({"_detect_0": {}}, Track)


def returning(output: Any) -> Any:
    async def work(_job: Job) -> JSONObject:
        made: JSONObject = output
        return made

    def worker() -> JSONObject:
        return run_job(work)

    return worker


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ([1], "of type list, not a dict"),
        ({"score": float("nan")}, "output['score']"),
        ({"tracks": [{"at": object()}]}, "output['tracks'][0]['at']"),
        ({"text": "a\x00b"}, "cannot be stored"),
        ({"text": "\ud800"}, "cannot be stored"),
        ({"text": "x" * 3_200_000}, "of more than 3145728 the next worker gets nothing"),
        ({"text": "😀" * 300_000}, "has 3600012 bytes of JSON; of more than 3145728"),
    ],
    ids=["list", "NaN", "object", "NUL", "half a character", "large", "large by emoji"],
)
def test_an_output_that_would_be_lost_or_refused_fails_before_it_is_sent(
    output: Any, said: str
) -> None:
    result = run_worker(returning(output))

    assert result.status == "FAILED_WITH_TERMINAL_ERROR"
    assert "LDB602" in (result.reason or "")
    assert said in (result.reason or "")


def test_an_emoji_is_no_half_of_a_character() -> None:
    assert run_worker(returning({"text": "😀 a\nb"})).output == {"text": "😀 a\nb"}


async def lose_the_connection(database: Database) -> None:
    async with database.connection() as connection:
        other = await asyncpg.connect(database.url.render_as_string(hide_password=False))
        pid = await connection.fetch_val("SELECT pg_backend_pid()")
        await other.execute("SELECT pg_terminate_backend($1)", pid)
        await other.close()
        await connection.fetch_val("SELECT pg_sleep(60)")


def failing_once(fail: Any) -> tuple[Any, list[int]]:
    tries: list[int] = []

    async def work(_job: Job) -> JSONObject:
        tries.append(get_task_context().task.retry_count)
        if len(tries) == 1:
            await fail()
        return {"tries": len(tries)}

    def worker() -> JSONObject:
        return run_job(work, attempts=Attempts(3, within=30))

    return worker, tries


def test_a_job_that_loses_its_connection_is_done_again_in_its_place(postgres_url: str) -> None:
    database = Database(postgres_url.replace("+psycopg", ""))
    worker, _ = failing_once(lambda: lose_the_connection(database))

    assert run_worker(worker).output == {"tries": 2}


def test_a_deadlock_is_met_in_the_job_and_not_by_conductor() -> None:
    async def fail() -> None:
        raise SerializationFailure("two at once")

    worker, _ = failing_once(fail)

    assert run_worker(worker).output == {"tries": 2}


def test_what_a_retry_does_not_help_fails_at_once() -> None:
    async def fail() -> None:
        raise ValueError("no such meeting")

    worker, tries = failing_once(fail)

    assert (run_worker(worker).status, len(tries)) == ("FAILED", 1)
