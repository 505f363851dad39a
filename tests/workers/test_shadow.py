"""Shadow mode: Conductor and Celery do the same meetings, and store the same."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.integrations.celerys_redis import celerys_redis  # noqa: F401  (a fixture)
from tests.integrations.test_job_queues import redis_url  # noqa: F401  (a fixture)
from tests.workers.running_demo import environment

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_both_roads_store_the_same_for_ten_meetings(
    short_meeting: Path,
    tmp_path: Path,
    redis_url: str,  # noqa: F811
    celerys_redis: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = [celerys_redis, *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "reflector_workers", "shadow", "--repeat", "10"),
            *("--meeting", str(short_meeting)),
            *("--broker", redis_url.replace("unix://", "redis+socket://")),
        ],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 meetings by Conductor, 10 by Celery: 0 differences" in " ".join(done.stdout.split())
