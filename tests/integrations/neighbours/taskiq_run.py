"""Taskiq's own command with five tasks, one after another."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from taskiq_redis_jobs import broker, square

PATIENCE = 60.0
COMMAND = "-m taskiq worker taskiq_redis_jobs:broker --workers 2 --log-level WARNING"


async def send():
    await broker.startup()
    for number in range(5):
        sent = await square.kiq(number)
        (await sent.wait_result(timeout=PATIENCE)).raise_for_error()
    await broker.shutdown()


def main():
    worker = subprocess.Popen([sys.executable, *COMMAND.split()])
    try:
        asyncio.run(send())
    finally:
        worker.terminate()
        status = worker.wait(PATIENCE)
    assert status == 0


if __name__ == "__main__":
    main()
