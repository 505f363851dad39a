"""Shadow mode: the same meetings through Conductor and through Celery, and what differs in the database."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflector_workers.conductor import ConductorClient
from reflector_workers.demo import DemoOptions, run_workflows
from reflector_workers.fleet import meeting_fleet
from reflector_workers.recordings import read_meeting
from reflector_workers.stage import open_stage
from reflector_workers.storage.outputs import outputs_controller
from reflector_workers.storage.speech import turns_controller

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

_SECONDS = 120.0


def run_shadow(options: DemoOptions, broker: str | None, console: Console) -> list[str]:
    """Run a meeting by both roads, several times at once; what differs, a line each.

    Args:
        options: As for the demo.
        broker: A Redis for Celery; without one it has a folder.
        console: Where progress is shown.
    """
    meeting = read_meeting(options.folder, options.starts)
    with (
        open_stage(options.conductor, console) as stage,
        tempfile.TemporaryDirectory(prefix="reflector-shadow-") as name,
        ConductorClient(stage.conductor_url) as conductor,
    ):
        with meeting_fleet(stage.conductor_url, Path(name)), _celery(Path(name), broker):
            runs = _send(str(meeting.path), options.repeat)
            workflows = run_workflows(options, meeting, conductor, console)
            shadows = [_finish(*each) for each in runs]
        lost = [f"workflow {each.id} is {each.status}" for each in workflows if not each.completed]
        ours = [int(each.output["meeting_id"]) for each in workflows if each.completed]
        return [*lost, *asyncio.run(differences(ours, shadows))]


@contextmanager
def _celery(folder: Path, broker: str | None) -> Iterator[None]:
    """A worker of Celery, for the length of a block; this process may send to it."""
    (folder / "queue").mkdir()
    (folder / "results").mkdir()
    os.environ["SHADOW_FOLDER"], os.environ["SHADOW_BROKER"] = str(folder), broker or ""
    command = ["worker", "--concurrency", "3", "--loglevel", "WARNING", "--without-mingle"]
    program = [sys.executable, "-m", "celery", "-A", "reflector_workers.shadow_tasks"]
    quiet = ["--without-gossip", "--without-heartbeat"]
    with (folder / "celery.out").open("wb") as log:
        worker = subprocess.Popen([*program, *command, *quiet], stdout=log, stderr=log)
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(_SECONDS)


def _send(folder: str, times: int) -> list[tuple[str, Any]]:
    from reflector_workers.shadow_tasks import prepare_meeting

    runs = [f"celery-{secrets.token_hex(8)}" for _ in range(times)]
    return [(run, prepare_meeting.delay(run, folder)) for run in runs]


def _finish(run: str, prepared: Any) -> int:
    """The rest of a meeting's tasks; its id."""
    from reflector_workers.shadow_tasks import detect_speech, finalize, merge_turns

    meeting = prepared.get(timeout=_SECONDS)
    sent = [
        detect_speech.delay(run, number, track["track_id"])
        for number, track in enumerate(meeting["tracks"])
    ]
    detected = [each.get(timeout=_SECONDS) for each in sent]
    merged = merge_turns.delay(run, meeting["meeting_id"], detected).get(timeout=_SECONDS)
    finalize.delay(run, merged["meeting_id"], merged["turn_count"]).get(timeout=_SECONDS)
    return int(meeting["meeting_id"])


async def differences(ours: Sequence[int], shadows: Sequence[int]) -> list[str]:
    """What two lists of meetings have in the database, and not in common; the first is the measure."""
    wanted = await _stored(ours[0]) if ours else {}
    found = []
    for road, meetings in (("Conductor", ours), ("Celery", shadows)):
        for meeting_id in meetings:
            stored = await _stored(meeting_id)
            kinds = sorted(
                kind for kind in {*wanted, *stored} if wanted.get(kind) != stored.get(kind)
            )
            found += [f"{road}, meeting {meeting_id}: other {kind}" for kind in kinds]
    return found


async def _stored(meeting_id: int) -> dict[str, object]:
    outputs = await outputs_controller.get_by_meeting(meeting_id)
    turns = await turns_controller.get_by_meeting(meeting_id)
    return {"turns": turns, **{output.kind: output.content for output in outputs}}
