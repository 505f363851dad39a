"""When all tracks are done: put what they say together as the meeting's speaker turns."""

from conductor.client.worker.worker_task import worker_task

from loopsafe_db.integrations.conductor import JSONObject, checked, join_results
from reflector_workers import steps
from reflector_workers.domain import DetectedTrack
from reflector_workers.workers.running import do_meeting_job


@worker_task(task_definition_name="merge_turns", thread_count=3)  # type: ignore[untyped-decorator]
@checked
async def merge_turns(meeting_id: int, detected: object) -> JSONObject:
    """Store a meeting's turns.

    An ``async def`` worker: all jobs of this process share one event loop, and often one asyncio
    task and Context too.

    Args:
        meeting_id: The meeting.
        detected: The JOIN's output, `DetectedTrack` by the fork's reference names. A branch with
            an empty output would be absent, and the order is that of completion.
    """
    tracks = join_results(detected, DetectedTrack)
    return await do_meeting_job(lambda job: steps.merge_turns(job, meeting_id, tracks))
