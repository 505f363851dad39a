"""How a worker of this example does its job: a coroutine, and a line in the job log."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from loopsafe_db import get_database
from loopsafe_db.integrations.conductor import Job, JSONObject, current_job, do_job, run_job
from reflector_workers.domain import MeetingError
from reflector_workers.storage.job_log import job_log_controller

logger = logging.getLogger(__name__)

Work = Callable[[Job], Coroutine[Any, Any, JSONObject]]


def run_meeting_job(work: Work) -> JSONObject:
    """Do a sync worker's job.

    The database is named before there is a loop, as programs do that log where they work. A handle
    that holds a socket would remember, from here on, the first loop of this thread.
    """
    logger.debug("%s works on %s", current_job(), get_database())
    return run_job(_logged(work), terminal=(MeetingError,))


async def do_meeting_job(work: Work) -> JSONObject:
    """Do an async worker's job."""
    return await do_job(_logged(work), terminal=(MeetingError,))


def _logged(work: Work) -> Work:
    async def work_and_log(job: Job) -> JSONObject:
        result = await work(job)
        await job_log_controller.add(job)
        return result

    return work_and_log
