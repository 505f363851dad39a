"""The page of neighbours names no newer versions than are installed here; and what it says of `multiprocessing`."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from packaging.version import Version

from tests.docs.test_docs import ROOT
from tests.integrations.neighbours_page import NamedVersion, named_versions, rows

if TYPE_CHECKING:
    from pathlib import Path

EXITS = """
import atexit, multiprocessing, sys

def child():
    atexit.register(print, "child", flush=True)

if __name__ == "__main__":
    atexit.register(print, "parent", flush=True)
    process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
    process.start()
    process.join()
"""


@pytest.mark.parametrize("named", named_versions(), ids=str)
def test_no_row_names_a_version_that_its_test_does_not_have(named: NamedVersion) -> None:
    if named.by_hand:
        pytest.skip(f"{named.package} IS TRIED BY HAND, SO NOTHING IS PROVED HERE")
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf'"{named.package}\b', declared, re.IGNORECASE), "no environment has it"
    try:
        installed = importlib.metadata.version(named.package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"NO {named.package.upper()}, SO NOTHING IS PROVED HERE")

    assert Version(installed) >= Version(named.version)  # a newer one does not make the page untrue


def test_every_row_names_a_version() -> None:
    assert [row[0] for row in rows() if not re.search(r"\d", row[-1])] == []


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_runs_the_exit_handlers_of_a_process_as_the_page_says(
    start_method: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(EXITS, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, str(program), start_method], capture_output=True, text=True, timeout=100
    )

    assert done.returncode == 0, done.stderr
    runs = start_method == "spawn" or sys.version_info >= (3, 13)
    assert done.stdout.split() == [*(["child"] if runs else []), "parent"]
