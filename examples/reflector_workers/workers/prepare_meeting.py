"""The first job of a meeting: look at its folder, and name its tracks for the fork."""

import asyncio
from pathlib import Path

from conductor.client.worker.worker_task import worker_task

from loopsafe_db.integrations.conductor import Job, JSONObject, checked
from reflector_workers.recordings import read_meeting
from reflector_workers.storage.meetings import meetings_controller, tracks_controller
from reflector_workers.workers.running import run_meeting_job


@worker_task(  # type: ignore[untyped-decorator]
    task_definition_name="prepare_meeting", thread_count=3, lease_extend_enabled=True
)
@checked
def prepare_meeting(folder: str, starts: dict[str, float] | None = None) -> JSONObject:
    """Store a meeting and its tracks.

    Args:
        folder: Where its recordings are.
        starts: When tracks begin, by speaker, if the command line says so.

    Returns:
        ``meeting_id``, ``track_count``, and ``tracks``: one input per ``detect_speech`` job.
    """

    async def work(job: Job) -> JSONObject:
        meeting = await asyncio.to_thread(read_meeting, Path(folder), starts or {})
        meeting_id = await meetings_controller.add(job, meeting)
        tracks = await tracks_controller.get_by_meeting(meeting_id)
        return {
            "meeting_id": meeting_id,
            "track_count": len(tracks),
            "tracks": [{"track_id": track.id} for track in tracks],
        }

    return run_meeting_job(work)
