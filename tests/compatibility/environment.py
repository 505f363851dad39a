"""Environments beside ours: `databases` itself, which runs the scenarios, and SQLAlchemy 1.4."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DATABASES = (
    "databases==0.9.0",
    "sqlalchemy>=2.0.38,<2.1",
    "asyncpg==0.32.*",
    "aiosqlite==0.22.*",
)
SQLALCHEMY_1_4 = ("sqlalchemy>=1.4,<2",)
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
_PATIENCE = 400  # seconds for all scenarios on one kind of database


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process at a time, of xdist's, make what is to be at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def python_with(name: str, packages: tuple[str, ...]) -> Path:
    """Give an interpreter that has these packages, installed on first use.

    Where that fails: a skip that says so; in CI, or where servers are required, a failure.
    """
    folder = ROOT / "build" / f"compatibility-{name}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "installed.txt"
    wanted = "\n".join((sys.version, *packages))
    with one_at_a_time(folder):
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
            _install(name, packages, folder, python)
            stamp.write_text(wanted, encoding="utf-8")
    return python


def _install(name: str, packages: tuple[str, ...], folder: Path, python: Path) -> None:
    try:
        # Debian keeps venv's pip in a package of its own: the outer pip does the work.
        _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder))
        _run(*_PIP, "--python", str(python), "install", "--quiet", *packages)
    except subprocess.CalledProcessError as error:
        if os.environ.get("CI") or os.environ.get("LOOPSAFE_REQUIRE_SERVERS"):
            pytest.fail(f"this run must have {name}, and cannot install it: {error}")
        pytest.skip(f"NO {name.upper()} TO COMPARE WITH, SO NOTHING IS PROVED HERE: {error}")


def run_with_databases(url: str, names: list[str]) -> dict[str, Any]:
    """Run scenarios with the package `databases`; give what each saw.

    Its connections in a foreign thread can end the process: the rest then runs in another.
    """
    python = python_with("databases", DATABASES)
    outcomes: dict[str, Any] = {}
    while left := [name for name in names if name not in outcomes]:
        done = subprocess.run(
            (python, "-m", "tests.compatibility.run", "databases", url, *left),
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


def compile_with_sqlalchemy_1_4(idioms: list[str]) -> dict[str, Any]:
    """Compile idioms with SQLAlchemy 1.4, which warns of what 2 does not have."""
    python = python_with("sqlalchemy-1.4", SQLALCHEMY_1_4)
    done = subprocess.run(
        (python, "-m", "tests.compatibility.sqlalchemy_idioms"),
        cwd=ROOT,
        env=os.environ | {"SQLALCHEMY_WARN_20": "1"},
        input=json.dumps(idioms),
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=True,
    )
    return dict(json.loads(done.stdout))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
