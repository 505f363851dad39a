"""The first job of a meeting: look at its folder, and name its tracks for the fork."""

from conductor.client.worker.worker_task import worker_task

from loopsafe_db.integrations.conductor import JSONObject, checked
from reflector_workers import steps
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
    return run_meeting_job(lambda job: steps.prepare_meeting(job, folder, starts))
