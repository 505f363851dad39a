"""Actors of Dramatiq, of both kinds."""

from __future__ import annotations

import asyncio
import os

import dramatiq
import work
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware.asyncio import AsyncIO

broker = RedisBroker(url=os.environ["REDIS_URL"])
broker.add_middleware(AsyncIO())
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0)
def square(number):
    asyncio.run(work.square(number))


@dramatiq.actor(max_retries=0)
async def square_async(number):
    await work.square(number)
