"""Meetings and their tracks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopsafe_db import get_database
from reflector_workers.domain import Meeting, Track

if TYPE_CHECKING:
    from loopsafe_db.integrations.conductor import Job
    from reflector_workers.recordings import MeetingFolder


class MeetingsController:
    """One row per meeting that a workflow works on."""

    async def add(self, job: Job, meeting: MeetingFolder) -> int:
        """Store a meeting and its tracks; the meeting's id, the same when the job runs again."""
        database = get_database()
        async with database.transaction():
            meeting_id = await database.fetch_val(
                """
                INSERT INTO reflector.meetings
                    (workflow_instance_id, reference_task_name, name, folder)
                VALUES (:workflow_instance_id, :reference_task_name, :name, :folder)
                ON CONFLICT (workflow_instance_id, reference_task_name)
                    DO UPDATE SET name = excluded.name, folder = excluded.folder
                RETURNING id
                """,
                {**job.key, "name": meeting.name, "folder": str(meeting.path)},
            )
            await tracks_controller.replace(meeting_id, meeting)
        return int(meeting_id)

    async def get_by_id(self, meeting_id: int) -> Meeting:
        """One meeting.

        Raises:
            LookupError: There is no such meeting.
        """
        row = await get_database().fetch_one(
            "SELECT id, name, folder FROM reflector.meetings WHERE id = :id", {"id": meeting_id}
        )
        if row is None:
            raise LookupError(f"there is no meeting {meeting_id}")
        return Meeting(**row)


class TracksController:
    """One row per participant's recording."""

    async def replace(self, meeting_id: int, meeting: MeetingFolder) -> None:
        """Make the meeting's tracks those of the folder; a track keeps its id by its position."""
        database = get_database()
        await database.execute_many(
            """
            INSERT INTO reflector.tracks
                (meeting_id, position, speaker, path, starts_at, duration)
            VALUES (:meeting_id, :position, :speaker, :path, :starts_at, :duration)
            ON CONFLICT (meeting_id, position) DO UPDATE SET
                speaker = excluded.speaker, path = excluded.path,
                starts_at = excluded.starts_at, duration = excluded.duration
            """,
            [
                {
                    "meeting_id": meeting_id,
                    "position": position,
                    "speaker": track.speaker,
                    "path": str(track.path),
                    "starts_at": track.starts_at,
                    "duration": track.duration,
                }
                for position, track in enumerate(meeting.tracks)
            ],
        )
        await database.execute(
            "DELETE FROM reflector.tracks WHERE meeting_id = :meeting_id AND position >= :count",
            {"meeting_id": meeting_id, "count": len(meeting.tracks)},
        )

    async def set_damaged(self, track_id: int, packets: int) -> None:
        """Note how many packets of a track could not be decoded."""
        await get_database().execute(
            "UPDATE reflector.tracks SET damaged = :packets WHERE id = :id",
            {"id": track_id, "packets": packets},
        )

    async def get_by_id(self, track_id: int) -> Track:
        """One track.

        Raises:
            LookupError: There is no such track.
        """
        row = await get_database().fetch_one(
            """
            SELECT id, position, speaker, path, starts_at, duration, damaged
            FROM reflector.tracks
            WHERE id = :id
            """,
            {"id": track_id},
        )
        if row is None:
            raise LookupError(f"there is no track {track_id}")
        return Track(**row)

    async def get_by_meeting(self, meeting_id: int) -> list[Track]:
        """A meeting's tracks, by position."""
        rows = await get_database().fetch_all(
            """
            SELECT id, position, speaker, path, starts_at, duration, damaged
            FROM reflector.tracks
            WHERE meeting_id = :meeting_id ORDER BY position
            """,
            {"meeting_id": meeting_id},
        )
        return [Track(**row) for row in rows]


meetings_controller = MeetingsController()
tracks_controller = TracksController()
