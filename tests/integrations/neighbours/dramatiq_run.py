"""Dramatiq's own command with five jobs, one after another: ``dramatiq_run square|square_async``."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import dramatiq_jobs
import work

PATIENCE = 60.0


def send(number):
    getattr(dramatiq_jobs, sys.argv[1]).send(number)
    give_up = time.monotonic() + PATIENCE
    while not asyncio.run(work.is_there(number)):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def main():
    worker = subprocess.Popen(
        [sys.executable, "-m", "dramatiq", "dramatiq_jobs", "--processes", "2", "--threads", "3"]
    )
    try:
        for number in range(5):
            send(number)
    finally:
        worker.terminate()
        status = worker.wait(PATIENCE)
    assert status == 0


if __name__ == "__main__":
    main()
