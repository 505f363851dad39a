"""The last job: write the meeting's documents."""

from conductor.client.worker.worker_task import worker_task

from loopsafe_db.integrations.conductor import JSONObject, checked
from reflector_workers import steps
from reflector_workers.workers.running import run_meeting_job


@worker_task(task_definition_name="finalize", thread_count=3)  # type: ignore[untyped-decorator]
@checked
def finalize(meeting_id: int, turn_count: int) -> JSONObject:
    """Store the RTTM and the pictures; their ids by kind go on."""
    return run_meeting_job(lambda job: steps.finalize(job, meeting_id, turn_count))
