"""A newer client of Redis, and who wants it, for programs beside an environment that arq keeps old."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def newer_redis(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder to put first into PYTHONPATH: arq 0.28 wants redis-py before 6, Celery 5.7 6.4, taskiq-redis 1.2 8."""
    folder = tmp_path_factory.mktemp("redis-py")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    newer = ["redis>=8", "taskiq-redis>=1.2.4"]
    done = subprocess.run([*pip, *newer], capture_output=True, text=True, check=False)
    if done.returncode and not os.environ.get("LOOPSAFE_REQUIRE_SERVERS"):
        pytest.skip(f"no package index here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return str(folder)
