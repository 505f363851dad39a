"""One job per track: find where its participant speaks."""

from pathlib import Path

from conductor.client.worker.worker_task import worker_task

from loopsafe_db.integrations.conductor import Job, JSONObject, checked
from reflector_workers import speech
from reflector_workers.audio import Recording
from reflector_workers.domain import DetectedTrack, to_json
from reflector_workers.storage.meetings import tracks_controller
from reflector_workers.storage.speech import segments_controller
from reflector_workers.workers.running import run_meeting_job


@worker_task(  # type: ignore[untyped-decorator]
    task_definition_name="detect_speech", thread_count=3, lease_extend_enabled=True
)
@checked
def detect_speech(track_id: int) -> JSONObject:
    """Store the stretches of speech of one track; a `DetectedTrack` goes on."""

    async def work(job: Job) -> JSONObject:
        track = await tracks_controller.get_by_id(track_id)
        # blocks this job's own loop and nobody else's; no connection is held meanwhile
        recording = Recording(Path(track.path))
        segments = speech.detect_speech(recording)
        await segments_controller.replace(job, track.id, segments)
        await tracks_controller.set_damaged(track.id, recording.damaged)
        return to_json(
            DetectedTrack(track_id=track.id, position=track.position, segment_count=len(segments))
        )

    return run_meeting_job(work)
