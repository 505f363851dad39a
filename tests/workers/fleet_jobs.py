"""Jobs for a fleet that is stopped, killed and deployed: each says who does it, in a folder of the test."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path

from conductor.client.worker.worker_task import worker_task

from loopsafe_db import get_database
from loopsafe_db.integrations.conductor import Job, JSONObject, checked, do_job, run_job

NOTES = "FLEET_NOTES"  # the folder, in the environment of the processes


def note(job: Job, what: str) -> None:
    """Say that a job has begun, or ended, and leave a file that says where."""
    path = Path(os.environ[NOTES]) / f"{job.workflow_instance_id}.{what}.{os.getpid()}"
    print(job.workflow_instance_id, "has", what)
    path.touch()


async def wait_and_store(job: Job, seconds: float) -> JSONObject:
    note(job, "begun")
    await asyncio.to_thread(threading.Event().wait, seconds)
    pid = await get_database().fetch_val(
        "INSERT INTO done VALUES (:workflow_instance_id) ON CONFLICT DO NOTHING "
        "RETURNING pg_backend_pid()",
        {"workflow_instance_id": job.workflow_instance_id},
    )
    note(job, "ended")
    return {"by": job.worker_id, "backend": pid, "frozen": gc.get_freeze_count()}


@worker_task(task_definition_name="in_thread", thread_count=2, poll_interval_millis=20)  # type: ignore[untyped-decorator]
@checked
def in_thread(seconds: float) -> JSONObject:
    return run_job(lambda job: wait_and_store(job, seconds))


@worker_task(task_definition_name="in_loop", thread_count=2, poll_interval_millis=20)  # type: ignore[untyped-decorator]
@checked
async def in_loop(seconds: float) -> JSONObject:
    return await do_job(lambda job: wait_and_store(job, seconds))
