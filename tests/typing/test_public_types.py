"""The public API has types without gaps: pyright, as the type checker of those who install the package, says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = Path(
    sys.executable
).parent  # pyright asks the first `python` on the path where packages are


@pytest.fixture(scope="module")
def pyright() -> str:
    """The pyright beside this Python; none: a skip that says so, in CI a failure."""
    found = shutil.which("pyright", path=f"{PYTHON}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing(
            "NO PYRIGHT, SO NOTHING IS PROVED OF THE PUBLIC TYPES: pip install -e . --group dev"
        )
    return found


@pytest.fixture(scope="module")
def report(pyright: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What pyright says of the installed package; from a folder where no source is."""
    done = subprocess.run(
        [pyright, "--verifytypes", "loopsafe_db", "--ignoreexternal", "--outputjson"],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={
            **os.environ,
            "PATH": f"{PYTHON}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),  # an editable install is no package to pyright
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    if not done.stdout.startswith("{"):
        pytest.fail(f"pyright did not run: {done.stdout}{done.stderr}")
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


def test_every_public_symbol_has_a_known_type(report: dict[str, Any]) -> None:
    found = report["typeCompleteness"]
    gaps = [
        f"{symbol['name']}: {problem['message']}"
        for symbol in found["symbols"]
        if symbol["isTypeAmbiguous"] or not symbol["isTypeKnown"]
        for problem in symbol["diagnostics"]
        # conductor-python has no types for others to use.
        if not (".integrations.conductor." in symbol["name"] and "unknown" in problem["message"])
    ]

    assert found["pyTypedPath"]
    assert gaps == []


def test_what_users_infer_is_what_pyright_infers(pyright: str) -> None:
    done = subprocess.run(
        [pyright, "--project", str(ROOT), str(Path(__file__).with_name("usage.py"))],
        env={**os.environ, "PATH": f"{PYTHON}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )

    assert done.returncode == 0, done.stdout
