"""Celery's own worker with five tasks: ``celery_run prefork|threads|solo``."""

from __future__ import annotations

import os
import subprocess
import sys

PATIENCE = 60.0
OPTIONS = "--without-gossip --without-mingle --without-heartbeat --concurrency 2 --loglevel WARNING"


def main():
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "celery", "-A", "celery_jobs", "worker"),
            *("--pool", sys.argv[1], *OPTIONS.split()),
        ]
    )
    try:
        os.environ["FIRST_PROCESS"] = "another one"
        from celery_jobs import square

        for number in range(5):
            square.delay(number).get(timeout=PATIENCE)
    finally:
        worker.terminate()
        status = worker.wait(PATIENCE)
    assert status == 0


if __name__ == "__main__":
    main()
