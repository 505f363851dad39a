"""Dramatiq's own command with five jobs, one after another: ``dramatiq_run square|square_async``."""

from __future__ import annotations

import asyncio
import sys
import time

import dramatiq_jobs
import work
from running import PATIENCE, running


def send(number):
    getattr(dramatiq_jobs, sys.argv[1]).send(number)
    give_up = time.monotonic() + PATIENCE
    while not asyncio.run(work.is_there(number)):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def main():
    with running("-m", "dramatiq", "dramatiq_jobs", "--processes", "2", "--threads", "3"):
        for number in range(5):
            send(number)


if __name__ == "__main__":
    main()
