"""One job per track: find where its participant speaks."""

from conductor.client.worker.worker_task import worker_task

from loopsafe_db.integrations.conductor import JSONObject, checked
from reflector_workers import steps
from reflector_workers.workers.running import run_meeting_job


@worker_task(  # type: ignore[untyped-decorator]
    task_definition_name="detect_speech", thread_count=3, lease_extend_enabled=True
)
@checked
def detect_speech(track_id: int) -> JSONObject:
    """Store the stretches of speech of one track; a `DetectedTrack` goes on."""
    return run_meeting_job(lambda job: steps.detect_speech(job, track_id))
