"""The table of ``docs/explanation/what-a-connection-remembers.md`` is what a run of all libraries gives."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.compatibility.environment import DATABASES, ROOT, python_with
from tests.compatibility.remembered import KEPT, KINDS, LIBRARIES

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(500)  # the package `databases` is installed by the first run

PAGE = ROOT / "docs/explanation/what-a-connection-remembers.md"


def outcomes_of(library: str, url: str) -> dict[str, str]:
    python: str | Path = sys.executable
    if library == "databases":
        python = python_with("databases", DATABASES)
    done = subprocess.run(
        (python, "-m", "tests.compatibility.remembered", library, url),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def table(outcomes: dict[str, dict[str, str]]) -> str:
    lines = [f"| | {' | '.join(outcomes)} |", f"|---|{'---|' * len(outcomes)}"]
    for kind in (*KINDS, KEPT):
        cells = [met[kind] for met in outcomes.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_page_shows_what_a_run_gives(postgres_url: str) -> None:
    found = table({library: outcomes_of(library, postgres_url) for library in LIBRARIES})
    assert found in PAGE.read_text(encoding="utf-8"), found
