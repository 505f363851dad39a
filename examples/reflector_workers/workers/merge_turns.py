"""When all tracks are done: put what they say together as the meeting's speaker turns."""

from conductor.client.worker.worker_task import worker_task

from loopsafe_db.integrations.conductor import Job, JSONObject, checked, join_results
from reflector_workers import turns
from reflector_workers.domain import DetectedTrack, Track, TrackSpeech
from reflector_workers.storage.meetings import tracks_controller
from reflector_workers.storage.speech import segments_controller, turns_controller
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

    async def work(job: Job) -> JSONObject:
        tracks = join_results(detected, DetectedTrack)
        await _check_complete(meeting_id, tracks)
        heard = [await _speech_of(track) for track in tracks]
        merged = turns.merge_turns(heard)
        await turns_controller.replace(job, meeting_id, merged)
        return {"meeting_id": meeting_id, "turn_count": len(merged)}

    return await do_meeting_job(work)


async def _speech_of(detected: DetectedTrack) -> TrackSpeech:
    track = await tracks_controller.get_by_id(detected.track_id)
    segments = await segments_controller.get_by_track(track.id)
    if len(segments) != detected.segment_count:
        raise RuntimeError(
            f"track {track.id} has {len(segments)} segments in the database, "
            f"its job found {detected.segment_count}: was another job writing them?"
        )
    return TrackSpeech(speaker=track.speaker, segments=turns.later(segments, track.starts_at))


async def _check_complete(meeting_id: int, detected: list[DetectedTrack]) -> None:
    expected: list[Track] = await tracks_controller.get_by_meeting(meeting_id)
    if [track.id for track in expected] != [track.track_id for track in detected]:
        raise RuntimeError(
            f"meeting {meeting_id} has the tracks {[track.id for track in expected]}, the JOIN "
            f"gives {[track.track_id for track in detected]}: look at the fork's jobs"
        )
