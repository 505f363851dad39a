"""Conductor's workers: a fleet that starts and ends well, and jobs that are done once, however often they come.

::

    @worker_task(task_definition_name="square", thread_count=4)
    @checked
    def square(number: int) -> dict[str, object]:
        return run_job(lambda job: store(job, number))

    sys.exit(run_workers("http://127.0.0.1:8080/api", ["jobs"]))

It uses `TaskHandler` of conductor-python as it is.
"""

from loopsafe_db.integrations.conductor.boundary import (
    InvalidInput,
    InvalidOutput,
    JSONObject,
    checked,
    join_results,
)
from loopsafe_db.integrations.conductor.fleet import Fleet, run_workers
from loopsafe_db.integrations.conductor.jobs import Job, current_job, do_job, run_job
from loopsafe_db.integrations.conductor.process import FleetWorker, code_version
from loopsafe_db.integrations.reports import ProcessReport, read_logs, read_reports

__all__ = [
    "Fleet",
    "FleetWorker",
    "InvalidInput",
    "InvalidOutput",
    "JSONObject",
    "Job",
    "ProcessReport",
    "checked",
    "code_version",
    "current_job",
    "do_job",
    "join_results",
    "read_logs",
    "read_reports",
    "run_job",
    "run_workers",
]
