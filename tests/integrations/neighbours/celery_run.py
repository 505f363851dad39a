"""Celery's own worker with five tasks: ``celery_run prefork|threads|solo``."""

from __future__ import annotations

import os
import sys

from running import PATIENCE, running

OPTIONS = "--without-gossip --without-mingle --without-heartbeat --concurrency 2 --loglevel WARNING"


def main():
    command = "-m", "celery", "-A", "celery_jobs", "worker", "--pool", sys.argv[1]
    with running(*command, *OPTIONS.split()):
        os.environ["FIRST_PROCESS"] = "another one"
        from celery_jobs import square

        for number in range(5):
            square.delay(number).get(timeout=PATIENCE)


if __name__ == "__main__":
    main()
