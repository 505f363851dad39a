"""A task of taskiq on Redis, for its command."""

from __future__ import annotations

import multiprocessing
import os

import work
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

url = os.environ["REDIS_URL"]
broker = ListQueueBroker(url).with_result_backend(RedisAsyncResultBackend(url))
imported_by = os.getpid()


@broker.task
async def square(number: int) -> None:
    assert imported_by == os.getpid()
    assert multiprocessing.parent_process() is not None
    await work.square(number)
