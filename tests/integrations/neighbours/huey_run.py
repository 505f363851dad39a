"""Huey's own consumer with five tasks: ``huey_run.py process|thread``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

PATIENCE = 60.0


def main():
    consumer = subprocess.Popen(
        [sys.executable, "-m", "huey.bin.huey_consumer", "huey_jobs.huey", "-k", sys.argv[1]]
    )
    os.environ["FIRST_PROCESS"] = "another one"
    from huey_jobs import square

    for number in range(5):
        assert square(number).get(blocking=True, timeout=PATIENCE)
    consumer.send_signal(signal.SIGINT)  # it ends when its workers are done
    assert consumer.wait(PATIENCE) == 0


if __name__ == "__main__":
    main()
