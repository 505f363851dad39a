"""Finished documents: a meeting's RTTM and its picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopsafe_db import get_database
from reflector_workers.domain import Output

if TYPE_CHECKING:
    from loopsafe_db.integrations.conductor import Job


class OutputsController:
    """One row per document."""

    async def put(self, job: Job, meeting_id: int, output: Output) -> int:
        """Store a document; its id, the same when the job runs again."""
        output_id = await get_database().fetch_val(
            """
            INSERT INTO reflector.outputs
                (workflow_instance_id, reference_task_name, kind, meeting_id, content)
            VALUES (:workflow_instance_id, :reference_task_name, :kind, :meeting_id, :content)
            ON CONFLICT (workflow_instance_id, reference_task_name, kind)
                DO UPDATE SET meeting_id = excluded.meeting_id, content = excluded.content
            RETURNING id
            """,
            {**job.key, "meeting_id": meeting_id, **output.model_dump()},
        )
        return int(output_id)

    async def get_by_meeting(self, meeting_id: int) -> list[Output]:
        """A meeting's documents."""
        rows = await get_database().fetch_all(
            "SELECT kind, content FROM reflector.outputs WHERE meeting_id = :id ORDER BY kind",
            {"id": meeting_id},
        )
        return [Output(**row) for row in rows]


outputs_controller = OutputsController()
