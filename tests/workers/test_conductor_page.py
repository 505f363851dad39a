"""The workers of the how-to on Conductor, called as its SDK calls them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db import configure
from loopsafe_db.testing import run_worker
from reflector_workers.conductor.real import ON_POSTGRESQL
from reflector_workers.conductor.server_files import JAR_NAME
from tests.docs.test_docs import ROOT
from tests.integrations.pages import code_of

if TYPE_CHECKING:
    from pathlib import Path

A_WORKER = """
from conductor.client.worker.worker_task import worker_task

@worker_task(task_definition_name="detect_speech")
def detect_speech(track_id: int) -> dict:
    return {"track_id": track_id}

"""


@pytest.mark.parametrize("worker", ["square", "square_async"])
def test_a_worker_of_the_page_stores_each_number_once(worker: str, postgres_url: str) -> None:
    db = configure(postgres_url)
    asyncio.run(db.execute("CREATE TABLE squares (number int PRIMARY KEY, square int NOT NULL)"))
    names: dict[str, Any] = {}
    exec(
        compile(code_of("conductor", "python conductor"), "page", "exec", dont_inherit=True), names
    )

    results = [run_worker(names[worker], {"number": number}) for number in (7, 7, 8)]

    assert [result.status for result in results] == ["COMPLETED"] * 3
    stored = [
        result.output.get("stored") or result.output["result"]["stored"] for result in results
    ]
    assert stored == [1, 1, 2]
    asyncio.run(db.disconnect())


def test_the_page_on_testing_calls_a_worker(postgres_url: str, tmp_path: Path) -> None:
    test = tmp_path / "test_worker.py"
    test.write_text(A_WORKER + code_of("testing", "python worker"), encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--loopsafe-url", postgres_url, str(test)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
    )

    assert "1 passed" in done.stdout, done.stdout


def test_the_page_keeps_conductors_state_in_postgresql_as_our_tests_do() -> None:
    page = (ROOT / "docs/how-to/conductor.md").read_text(encoding="utf-8")
    command = page.split("```console\n$ java ")[1].split("```")[0].split()

    assert JAR_NAME in command
    assert {*ON_POSTGRESQL} < {*command}
