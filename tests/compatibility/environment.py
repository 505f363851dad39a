"""An environment for `databases` itself, which runs the scenarios beside ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "compatibility-databases"
PACKAGES = (
    "databases==0.9.0",
    "sqlalchemy>=2.0.38,<2.1",
    "asyncpg==0.32.*",
    "aiosqlite==0.22.*",
)
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
_PATIENCE = 400  # seconds for all scenarios on one kind of database


def databases_python() -> Path:
    """Give the interpreter that has databases, installed on first use.

    Where that fails: a skip that says so; in CI, or where servers are required, a failure.
    """
    python = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = FOLDER / "installed.txt"
    wanted = "\n".join((sys.version, *PACKAGES))
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        try:
            # Debian keeps venv's pip in a package of its own: the outer pip does the work.
            _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(FOLDER))
            _run(*_PIP, "--python", str(python), "install", "--quiet", *PACKAGES)
        except subprocess.CalledProcessError as error:
            if os.environ.get("CI") or os.environ.get("LOOPSAFE_REQUIRE_SERVERS"):
                pytest.fail(f"this run must have databases, and cannot install it: {error}")
            pytest.skip(f"NO DATABASES TO COMPARE WITH, SO NOTHING IS PROVED HERE: {error}")
        stamp.write_text(wanted, encoding="utf-8")
    return python


def run_with_databases(url: str, names: list[str]) -> dict[str, Any]:
    """Run scenarios with the package `databases`; give what each saw.

    Its connections in a foreign thread can end the process: the rest then runs in another.
    """
    outcomes: dict[str, Any] = {}
    while left := [name for name in names if name not in outcomes]:
        done = subprocess.run(
            (databases_python(), "-m", "tests.compatibility.run", "databases", url, *left),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
        outcomes.update(json.loads(line) for line in done.stdout.splitlines())
        assert done.returncode <= 0, done.stderr[-3000:]
        if left[0] not in outcomes:  # alone to blame
            outcomes[left[0]] = {"stopped by": f"signal {-done.returncode}"}
    return outcomes


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
