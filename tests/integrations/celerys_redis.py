"""A client of Redis that is new enough for Celery, for programs beside an environment that arq keeps old."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def celerys_redis(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder to put first into PYTHONPATH: Celery 5.7 wants redis-py 6.1, arq 0.28 one before 6."""
    folder = tmp_path_factory.mktemp("redis-py")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*pip, "redis>=6.4"], capture_output=True, text=True, check=False)
    if done.returncode and not os.environ.get("LOOPSAFE_REQUIRE_SERVERS"):
        pytest.skip(f"no package index here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return str(folder)
