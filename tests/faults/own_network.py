"""Programs of tests that run in a network of their own, which they may take apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import skip_without_postgres

ROOT = Path(__file__).parents[2]
_OWN_NETWORK = ("unshare", "--net")


def _can_have_a_network() -> bool:
    """Tell whether this user may make a network of its own, and take its device down."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    command = (*_OWN_NETWORK, "ip", "link", "set", "lo", "up")
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def run_in_own_network(module: str, argument: str) -> Any:
    """Run a module there, which starts a PostgreSQL; give what it prints, read as JSON. Skip where it cannot be."""
    if not _can_have_a_network():
        pytest.skip(
            "ONLY ROOT, ON LINUX, MAY MAKE A NETWORK, OR TAKE ONE DOWN: SO NOTHING IS PROVED HERE"
        )
    with skip_without_postgres():
        done = subprocess.run(
            (*_OWN_NETWORK, sys.executable, "-m", module, argument),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=150,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
