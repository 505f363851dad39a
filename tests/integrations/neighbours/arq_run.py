"""A worker of arq with five jobs."""

from __future__ import annotations

import asyncio
import os

import work
from arq import create_pool, func, run_worker
from arq.connections import RedisSettings

SETTINGS = RedisSettings.from_dsn(os.environ["REDIS_URL"])


async def square(context, number):
    await work.square(number)


async def send():
    pool = await create_pool(SETTINGS)
    for number in range(5):
        await pool.enqueue_job("square", number)
    await pool.aclose()


class WorkerSettings:
    functions = (func(square),)
    redis_settings = SETTINGS
    burst = True
    max_jobs = 2


if __name__ == "__main__":
    asyncio.run(send())
    run_worker(WorkerSettings)
