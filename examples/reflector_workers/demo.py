"""The demo: one meeting, several workflows at once, through the whole fleet."""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loopsafe_db.integrations.conductor import FleetWorker, read_logs, read_reports
from reflector_workers.conductor import ConductorAnswerError, ConductorClient
from reflector_workers.domain import MeetingError, Track, Turn
from reflector_workers.error_rate import compare
from reflector_workers.fleet import meeting_fleet
from reflector_workers.outcome import Outcome, Result
from reflector_workers.progress import WorkflowState, watch
from reflector_workers.recordings import MeetingFolder, read_meeting, read_reference
from reflector_workers.report import JobProgress, show_notes
from reflector_workers.stage import open_stage
from reflector_workers.storage.job_log import job_log_controller
from reflector_workers.storage.meetings import tracks_controller
from reflector_workers.storage.outputs import outputs_controller
from reflector_workers.storage.sessions import open_sessions, sessions_left_open
from reflector_workers.storage.speech import turns_controller

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

SAMPLE = Path(__file__).with_name("sample_meeting")
_DEFINITIONS = Path(__file__).parent
_START_SECONDS = 60.0
_SECONDS_PER_SECOND = 0.5  # of a recording; the model takes 0.04 if it has a core to itself


@dataclass(frozen=True)
class DemoOptions:
    """What the command line says.

    Attributes:
        folder: The meeting.
        conductor: ``stand-in``, ``real``, a URL, or None for what the environment says.
        output: Where documents are written.
        repeat: How many workflows work on the meeting at once.
        collar: Seconds around each true boundary that are not scored; see `error_rate`.
        starts: When tracks begin, by speaker, where the recordings do not say it themselves.
    """

    folder: Path
    conductor: str | None
    output: Path
    repeat: int
    collar: float = 0.0
    starts: Mapping[str, float] = field(default_factory=dict)


def run_demo(
    options: DemoOptions, console: Console, worker_class: type[FleetWorker] = FleetWorker
) -> Outcome:
    """Run the meeting through the fleet; bounded in time.

    Args:
        options: What to run.
        console: Where progress is shown.
        worker_class: Makes the SDK's worker of a worker function.

    Raises:
        MeetingError: The folder, the output folder or the database's URL cannot be used.
        LoopsafeError: The database cannot be used.
        ConductorError: There is no Conductor.
    """
    meeting = read_meeting(options.folder, options.starts)
    reference = read_reference(meeting.path, meeting.name)
    _make_folder(options.output)
    show_notes(meeting.notes, console)
    with (
        open_stage(options.conductor, console) as stage,
        tempfile.TemporaryDirectory(prefix="reflector-workers-") as name,
        ConductorClient(stage.conductor_url) as conductor,
    ):
        folder = Path(name)
        with meeting_fleet(stage.conductor_url, folder, worker_class) as fleet:
            workflows = run_workflows(options, meeting, conductor, console)
            when_done = asyncio.run(open_sessions(stage.application))
        completed = all(workflow.completed for workflow in workflows)
        return Outcome(
            meeting=meeting,
            collar=options.collar,
            workflows=workflows,
            result=asyncio.run(_collect(options, meeting, workflows, reference))
            if completed
            else None,
            processes=[report for report in read_reports(folder) if report.ended],
            process_count=fleet.process_count,
            sessions_when_done=when_done,
            sessions_left_open=asyncio.run(sessions_left_open(stage.application)),
            log=read_logs(folder),
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MeetingError(f"{folder} cannot be made: {error.strerror}. Give --output") from error


def run_workflows(
    options: DemoOptions, meeting: MeetingFolder, conductor: ConductorClient, console: Console
) -> list[WorkflowState]:
    """Start the workflows and watch them to their end."""
    conductor.register_task_definitions(json.loads(_definition("task_defs.json")))
    workflow = json.loads(_definition("workflow.json"))
    conductor.put_workflow(workflow)
    ids = [
        conductor.start_workflow(
            workflow["name"],
            {"folder": str(meeting.path), "starts": dict(options.starts)},
            version=workflow["version"],
        )
        for _ in range(options.repeat)
    ]
    work = sum(track.duration for track in meeting.tracks) * options.repeat
    try:
        with JobProgress(console, options.repeat, len(meeting.tracks)) as progress:
            return watch(conductor, ids, _START_SECONDS + _SECONDS_PER_SECOND * work, progress.show)
    finally:
        _terminate(conductor, ids)


def _definition(name: str) -> str:
    return (_DEFINITIONS / name).read_text(encoding="utf-8")


def _terminate(conductor: ConductorClient, workflow_ids: Sequence[str]) -> None:
    """End what still runs, so that a Conductor that lives on has no jobs of ours to hand out."""
    for workflow_id in workflow_ids:
        with suppress(ConductorAnswerError):  # it has ended already
            conductor.terminate_workflow(workflow_id, "the demo is over")


def _notes(track: Track) -> list[str]:
    if not track.damaged:
        return []
    name = Path(track.path).name
    return [f"{name} is damaged: {track.damaged} packets of it were heard as silence"]


async def _collect(
    options: DemoOptions,
    meeting: MeetingFolder,
    workflows: Sequence[WorkflowState],
    reference: Sequence[Turn],
) -> Result:
    """Read what the workflows stored; the first one's documents become files."""
    meeting_ids = [int(workflow.output["meeting_id"]) for workflow in workflows]
    turns = [await turns_controller.get_by_meeting(one) for one in meeting_ids]
    written = []
    for output in await outputs_controller.get_by_meeting(meeting_ids[0]):
        path = options.output / f"{meeting.name}.{output.kind}"
        path.write_text(output.content, encoding="utf-8")
        written.append(path)
    tracks = await tracks_controller.get_by_meeting(meeting_ids[0])
    return Result(
        turns=turns,
        notes=[note for track in tracks for note in _notes(track)],
        written=written,
        comparison=compare(reference, turns[0], options.collar) if reference else None,
        counts=await job_log_controller.count([workflow.id for workflow in workflows]),
    )
