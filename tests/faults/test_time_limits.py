"""A time limit that a signal handler raises, at any line of Python, costs one job."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from loopsafe_db import Database

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    sys.version_info >= (3, 14),
    reason="struck in the end of its loop, asyncio.run() leaves the thread with a running one there",
)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_time_limit_costs_one_job_and_what_was_reported_done_is_there_once(
    database: Database, seed: int
) -> None:
    asyncio.run(database.execute("CREATE TABLE things (id int)"))
    asyncio.run(database.disconnect())
    url = database.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "tests.faults.limited_jobs", url, str(seed)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
