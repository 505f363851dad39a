"""The steps of a meeting, as coroutines that no queue has a part in: Conductor and Celery run the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from reflector_workers import speech, turns
from reflector_workers.audio import Recording
from reflector_workers.domain import DetectedTrack, Output, TrackSpeech, to_json
from reflector_workers.recordings import read_meeting, read_reference
from reflector_workers.rttm import write_rttm
from reflector_workers.storage.meetings import meetings_controller, tracks_controller
from reflector_workers.storage.outputs import outputs_controller
from reflector_workers.storage.speech import segments_controller, turns_controller
from reflector_workers.timeline import draw_page, draw_svg, make_timeline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loopsafe_db.integrations.conductor import Job, JSONObject
    from reflector_workers.domain import Track


async def prepare_meeting(job: Job, folder: str, starts: Mapping[str, float] | None) -> JSONObject:
    """Store a meeting and its tracks: ``meeting_id``, ``track_count``, and a job's input per track."""
    meeting = await asyncio.to_thread(read_meeting, Path(folder), starts or {})
    meeting_id = await meetings_controller.add(job, meeting)
    tracks = await tracks_controller.get_by_meeting(meeting_id)
    return {
        "meeting_id": meeting_id,
        "track_count": len(tracks),
        "tracks": [{"track_id": track.id} for track in tracks],
    }


async def detect_speech(job: Job, track_id: int) -> JSONObject:
    """Store the stretches of speech of one track; a `DetectedTrack` goes on."""
    track = await tracks_controller.get_by_id(track_id)
    # blocks this job's own loop and nobody else's; no connection is held meanwhile
    recording = Recording(Path(track.path))
    segments = speech.detect_speech(recording)
    await segments_controller.replace(job, track.id, segments)
    await tracks_controller.set_damaged(track.id, recording.damaged)
    return to_json(
        DetectedTrack(track_id=track.id, position=track.position, segment_count=len(segments))
    )


async def merge_turns(job: Job, meeting_id: int, tracks: Sequence[DetectedTrack]) -> JSONObject:
    """Store a meeting's turns; how many goes on."""
    await _check_complete(meeting_id, tracks)
    heard = [await _speech_of(track) for track in tracks]
    merged = turns.merge_turns(heard)
    await turns_controller.replace(job, meeting_id, merged)
    return {"meeting_id": meeting_id, "turn_count": len(merged)}


async def finalize(job: Job, meeting_id: int, turn_count: int) -> JSONObject:
    """Store the RTTM and the pictures; their ids by kind go on."""
    outputs = await _documents(meeting_id, turn_count)
    return {
        "meeting_id": meeting_id,
        "outputs": {
            output.kind: await outputs_controller.put(job, meeting_id, output) for output in outputs
        },
    }


async def _speech_of(detected: DetectedTrack) -> TrackSpeech:
    track = await tracks_controller.get_by_id(detected.track_id)
    segments = await segments_controller.get_by_track(track.id)
    if len(segments) != detected.segment_count:
        raise RuntimeError(
            f"track {track.id} has {len(segments)} segments in the database, "
            f"its job found {detected.segment_count}: was another job writing them?"
        )
    return TrackSpeech(speaker=track.speaker, segments=turns.later(segments, track.starts_at))


async def _check_complete(meeting_id: int, detected: Sequence[DetectedTrack]) -> None:
    expected: list[Track] = await tracks_controller.get_by_meeting(meeting_id)
    if [track.id for track in expected] != [track.track_id for track in detected]:
        raise RuntimeError(
            f"meeting {meeting_id} has the tracks {[track.id for track in expected]}, the JOIN "
            f"gives {[track.track_id for track in detected]}: look at the fork's jobs"
        )


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
