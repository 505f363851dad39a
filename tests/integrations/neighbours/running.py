"""A worker's or a server's own command, beside the program that gives it something to do."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager

PATIENCE = 60.0


@contextmanager
def running(*command, **options):
    """Run ``python COMMAND``; in the end it is told to end, and ends well."""
    process = subprocess.Popen([sys.executable, *command], **options)
    try:
        yield
    finally:
        process.terminate()
        status = process.wait(PATIENCE)
    assert status == 0
