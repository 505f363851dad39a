"""Taskiq's own command with five tasks, one after another."""

from __future__ import annotations

import asyncio

from running import PATIENCE, running
from taskiq_redis_jobs import broker, square

COMMAND = "-m taskiq worker taskiq_redis_jobs:broker --workers 2 --log-level WARNING"


async def send():
    await broker.startup()
    for number in range(5):
        sent = await square.kiq(number)
        (await sent.wait_result(timeout=PATIENCE)).raise_for_error()
    await broker.shutdown()


def main():
    with running(*COMMAND.split()):
        asyncio.run(send())


if __name__ == "__main__":
    main()
