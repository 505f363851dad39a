"""What was found on the tracks (segments) and in the meeting (turns)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert

from loopsafe_db import get_database
from reflector_workers.domain import Segment, Turn
from reflector_workers.storage import schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loopsafe_db.integrations.conductor import Job


class SegmentsController:
    """One row per stretch of speech on a track."""

    async def replace(self, job: Job, track_id: int, segments: Sequence[Segment]) -> None:
        """Make a job's segments exactly these, whoever else runs the same job meanwhile."""
        database = get_database()
        async with database.transaction():
            await database.execute(  # the second of two equal jobs waits here for the first
                "SELECT id FROM reflector.tracks WHERE id = :id FOR UPDATE", {"id": track_id}
            )
            await database.execute(
                """
                DELETE FROM reflector.segments
                WHERE workflow_instance_id = :workflow_instance_id
                    AND reference_task_name = :reference_task_name
                """,
                job.key,
            )
            await database.execute_many(
                """
                INSERT INTO reflector.segments (workflow_instance_id, reference_task_name,
                    position, track_id, starts_at, ends_at)
                VALUES (:workflow_instance_id, :reference_task_name,
                    :position, :track_id, :start, :end)
                """,
                [
                    {
                        **job.key,
                        "position": position,
                        "track_id": track_id,
                        **segment.model_dump(),
                    }
                    for position, segment in enumerate(segments)
                ],
            )

    async def get_by_track(self, track_id: int) -> tuple[Segment, ...]:
        """A track's segments, in order of time."""
        rows = await get_database().fetch_all(
            """
            SELECT starts_at AS start, ends_at AS "end" FROM reflector.segments
            WHERE track_id = :track_id ORDER BY starts_at
            """,
            {"track_id": track_id},
        )
        return tuple(Segment(**row) for row in rows)


class TurnsController:
    """One row per speaker turn of a meeting, written and read by SQLAlchemy clauses."""

    async def replace(self, job: Job, meeting_id: int, turns: Sequence[Turn]) -> None:
        """Make a job's turns exactly these: an upsert by key, then the surplus goes."""
        table, database = schema.turns, get_database()
        key = [table.c.workflow_instance_id, table.c.reference_task_name, table.c.position]
        async with database.transaction():
            for position, turn in enumerate(turns):
                values = {
                    "meeting_id": meeting_id,
                    "speaker": turn.speaker,
                    "starts_at": turn.start,
                    "ends_at": turn.end,
                }
                await database.execute(
                    insert(table)
                    .values(**job.key, position=position, **values)
                    .on_conflict_do_update(index_elements=key, set_=values)
                )
            await database.execute(
                delete(table).where(
                    table.c.workflow_instance_id == job.workflow_instance_id,
                    table.c.reference_task_name == job.reference_task_name,
                    table.c.position >= len(turns),
                )
            )

    async def get_by_meeting(self, meeting_id: int) -> tuple[Turn, ...]:
        """A meeting's turns, in order of time."""
        columns = schema.turns.c
        rows = await get_database().fetch_all(
            select(columns.speaker, columns.starts_at.label("start"), columns.ends_at.label("end"))
            .where(columns.meeting_id == meeting_id)
            .order_by(columns.position)
        )
        return tuple(Turn(**row) for row in rows)


segments_controller = SegmentsController()
turns_controller = TurnsController()
