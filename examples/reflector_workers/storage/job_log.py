"""Which process, thread and server session did each execution of a job."""

from __future__ import annotations

import os
import threading
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import distinct, func, insert, select

from loopsafe_db import get_database
from reflector_workers.storage.schema import job_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loopsafe_db.integrations.conductor import Job


@dataclass(frozen=True)
class JobCounts:
    """What a number of workflows left in the log.

    Attributes:
        jobs: Different jobs that finished.
        executions: How often jobs finished; more than `jobs` if some were delivered twice.
        processes: Different worker processes.
        threads: Different threads of these processes.
        server_sessions: Different PostgreSQL backends that the log was written through.
    """

    jobs: int
    executions: int
    processes: int
    threads: int
    server_sessions: int


class JobLogController:
    """One row per execution: a job that is delivered twice has two, that is what a log is for."""

    async def add(self, job: Job) -> None:
        """Note that this thread has finished a job."""
        await get_database().execute(
            insert(job_log).values(
                execution_id=uuid.uuid4(),
                **job.key,
                job_type=job.job_type,
                worker_id=job.worker_id,
                pid=os.getpid(),
                thread=threading.current_thread().name,
            )
        )

    async def count(self, workflow_instance_ids: Sequence[str]) -> JobCounts:
        """Add up the executions of some workflows."""
        columns = job_log.c
        job = func.concat(columns.workflow_instance_id, " ", columns.reference_task_name)
        row = await get_database().fetch_one(
            select(
                func.count(distinct(job)).label("jobs"),
                func.count().label("executions"),
                func.count(distinct(columns.pid)).label("processes"),
                func.count(distinct(func.concat(columns.pid, " ", columns.thread))).label(
                    "threads"
                ),
                func.count(distinct(columns.backend_pid)).label("server_sessions"),
            ).where(columns.workflow_instance_id.in_(list(workflow_instance_ids)))
        )
        assert row is not None, "an aggregate without GROUP BY has one row"
        return JobCounts(**row)


job_log_controller = JobLogController()
