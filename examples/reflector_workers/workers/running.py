"""How a worker does its job: a coroutine, and a line in the job log."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from conductor.client.worker.exception import NonRetryableException

from loopsafe_db import get_database
from reflector_workers.domain import MeetingError
from reflector_workers.job import Job, current_job
from reflector_workers.storage.job_log import job_log_controller

logger = logging.getLogger(__name__)

JSONObject = dict[str, object]
Work = Callable[[Job], Coroutine[Any, Any, JSONObject]]


def run_job(work: Work) -> JSONObject:
    """Do a sync worker's job in an event loop of its own, in the thread that the SDK calls it in.

    The database is named before there is a loop, as programs do that log where they work. A handle
    that holds a socket would remember, from here on, the first loop of this thread.
    """
    job = current_job()
    logger.debug("%s works on %s", job, get_database())
    return asyncio.run(do_job(job, work))


async def do_job(job: Job, work: Work) -> JSONObject:
    """Do a job in the event loop that runs; log it when it is done."""
    try:
        result = await work(job)
    except MeetingError as error:
        raise NonRetryableException(str(error)) from error  # a second try would find the same
    await job_log_controller.add(job)
    return result
