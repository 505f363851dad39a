"""Tasks of taskiq, which keeps them in memory."""

from __future__ import annotations

import asyncio

import work
from taskiq import InMemoryBroker

broker = InMemoryBroker()


@broker.task
async def square(number: int) -> None:
    await work.square(number)


async def main():
    await broker.startup()
    for number in range(5):
        sent = await square.kiq(number)
        assert not (await sent.wait_result(timeout=60)).is_err
    await broker.shutdown()


asyncio.run(main())
