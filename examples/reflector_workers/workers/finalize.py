"""The last job: write the meeting's documents."""

from pathlib import Path

from conductor.client.worker.worker_task import worker_task

from loopsafe_db.integrations.conductor import Job, JSONObject, checked
from reflector_workers.domain import Output
from reflector_workers.recordings import read_reference
from reflector_workers.rttm import write_rttm
from reflector_workers.storage.meetings import meetings_controller, tracks_controller
from reflector_workers.storage.outputs import outputs_controller
from reflector_workers.storage.speech import turns_controller
from reflector_workers.timeline import draw_page, draw_svg, make_timeline
from reflector_workers.workers.running import run_meeting_job


@worker_task(task_definition_name="finalize", thread_count=3)  # type: ignore[untyped-decorator]
@checked
def finalize(meeting_id: int, turn_count: int) -> JSONObject:
    """Store the RTTM and the pictures; their ids by kind go on."""

    async def work(job: Job) -> JSONObject:
        outputs = await _documents(meeting_id, turn_count)
        return {
            "meeting_id": meeting_id,
            "outputs": {
                output.kind: await outputs_controller.put(job, meeting_id, output)
                for output in outputs
            },
        }

    return run_meeting_job(work)


async def _documents(meeting_id: int, turn_count: int) -> list[Output]:
    meeting = await meetings_controller.get_by_id(meeting_id)
    tracks = await tracks_controller.get_by_meeting(meeting_id)
    turns = await turns_controller.get_by_meeting(meeting_id)
    if len(turns) != turn_count:
        raise RuntimeError(
            f"meeting {meeting_id} has {len(turns)} turns in the database, {turn_count} were merged"
        )
    duration = max(track.starts_at + track.duration for track in tracks)
    speakers = list(dict.fromkeys(track.speaker for track in tracks))
    reference = read_reference(Path(meeting.folder), meeting.name)
    timeline = make_timeline(meeting.name, speakers, turns, duration, reference)
    return [
        Output(kind="rttm", content=write_rttm(meeting.name, turns)),
        Output(kind="svg", content=draw_svg(timeline)),
        Output(kind="html", content=draw_page(timeline)),
    ]
