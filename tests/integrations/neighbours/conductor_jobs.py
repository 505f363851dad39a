"""Workers of Conductor, of both kinds."""

import work
from conductor.client.worker.worker_task import worker_task

from loopsafe_db.integrations.conductor import checked, do_job, run_job


async def store(number: int) -> dict:
    await work.square(number)
    return {"number": number}


@worker_task(task_definition_name="square", poll_interval_millis=20)
@checked
def square(number: int) -> dict:
    return run_job(lambda job: store(number))


@worker_task(task_definition_name="square_async", poll_interval_millis=20)
@checked
async def square_async(number: int) -> dict:
    return await do_job(lambda job: store(number))
