"""Whole meetings through a Conductor: what is stored depends neither on the road nor on which track is done first."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import wave
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import reflector_workers
from reflector_workers.conductor import ConductorClient
from reflector_workers.fleet import meeting_fleet
from reflector_workers.progress import failure_reasons, watch
from reflector_workers.storage.speech import turns_controller
from tests.integrations.newer_redis import newer_redis  # noqa: F401  (a fixture)
from tests.integrations.test_job_queues import redis_url  # noqa: F401  (a fixture)
from tests.workers.running_demo import environment

if TYPE_CHECKING:
    from tests.workers.conductor.rest import Server

FOLDER = Path(reflector_workers.__file__).parent
PATIENCE = 110.0
TRACKS = 12
SECONDS_OF_A_TRACK = 3  # alice has begun to speak by then
SECONDS_OF_THE_FIRST = 12  # so that it is done after others


def test_conductor_and_celery_store_the_same_for_ten_meetings(
    conductor: Server,
    short_meeting: Path,
    tmp_path: Path,
    redis_url: str,  # noqa: F811
    newer_redis: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = [newer_redis, *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "reflector_workers", "shadow", "--repeat", "10"),
            *("--meeting", str(short_meeting), "--conductor", conductor.url),
            *("--broker", redis_url.replace("unix://", "redis+socket://")),
        ],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 meetings by Conductor, 10 by Celery: 0 differences" in " ".join(done.stdout.split())


@pytest.fixture
def twelve_tracks(sample: Path, tmp_path: Path) -> Path:
    """A meeting in which twelve take turns: on each track alice speaks, when her time has come."""
    folder = tmp_path / "twelve"
    folder.mkdir()
    with wave.open(str(sample / "alice.wav")) as alice:
        said = alice.readframes(SECONDS_OF_A_TRACK * alice.getframerate())
        settings = alice.getparams()
    for number in range(TRACKS):
        with wave.open(str(folder / f"{speaker(number)}.wav"), "wb") as track:
            track.setparams(settings)
            track.writeframes(said)
            if number == 0:
                silence = SECONDS_OF_THE_FIRST - SECONDS_OF_A_TRACK
                track.writeframes(bytes(len(said) // SECONDS_OF_A_TRACK * silence))
    return folder


def speaker(number: int) -> str:
    return f"speaker_{number:02}"


def test_twelve_tracks_are_merged_in_their_order(
    conductor: Server,
    twelve_tracks: Path,
    storage: None,
    loopsafe_db_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOPSAFE_DB_URL", loopsafe_db_url)
    speakers = [speaker(number) for number in range(TRACKS)]
    starts = {each: SECONDS_OF_A_TRACK * number for number, each in enumerate(speakers)}

    with ConductorClient(conductor.url) as client, meeting_fleet(conductor.url, tmp_path):
        client.register_task_definitions(json.loads((FOLDER / "task_defs.json").read_text()))
        client.put_workflow(json.loads((FOLDER / "workflow.json").read_text()))
        given = {"folder": str(twelve_tracks), "starts": starts}
        workflow = client.start_workflow("reflector_diarization", given)
        (state,) = watch(client, [workflow], PATIENCE, lambda _: None)

    assert state.completed, failure_reasons([state])
    assert failure_reasons([state]) == {}
    turns = asyncio.run(turns_controller.get_by_meeting(int(state.output["meeting_id"])))
    assert list(dict.fromkeys(turn.speaker for turn in turns)) == speakers
