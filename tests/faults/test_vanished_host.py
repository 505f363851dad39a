"""A host that vanishes in mid-transaction keeps its row locks only for as long as its URL says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import skip_without_postgres
from tests.faults.vanished_host import LOOKS

ROOT = Path(__file__).parents[2]
OWN_NETWORK = ("unshare", "--net")


def can_have_a_network() -> bool:
    """Tell whether this user may make a network of its own, and take its device down."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    command = (*OWN_NETWORK, "ip", "link", "set", "lo", "up")
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.timeout(200)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_rows_that_a_vanished_host_has_locked_are_free_when_the_server_has_looked_for_it(
    driver: str,
) -> None:
    if not can_have_a_network():
        pytest.skip("ONLY ROOT, ON LINUX, MAY TAKE A NETWORK DOWN: SO NOTHING IS PROVED HERE")
    with skip_without_postgres():
        done = subprocess.run(
            (*OWN_NETWORK, sys.executable, "-m", "tests.faults.vanished_host", driver),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=150,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [1]  # the other one is locked still


def test_the_page_says_how() -> None:
    page = (ROOT / "docs/explanation/reliability.md").read_text(encoding="utf-8")
    names = [setting.partition("=")[0] for setting in LOOKS.split() if "=" in setting]
    assert all(name in page for name in names)
