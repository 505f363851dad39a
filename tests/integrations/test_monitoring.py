"""The collector of the how-to on monitoring: what Prometheus reads is what the handle says."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import pytest

from loopsafe_db import PoolStats
from tests.docs.test_docs import run_script
from tests.integrations.pages import code_of

if TYPE_CHECKING:
    from pathlib import Path

SCRAPE = """
import asyncio
from prometheus_client import generate_latest

for _ in range(3):
    asyncio.run(get_database().fetch_val("SELECT 1"))
print(generate_latest().decode())
"""


def test_prometheus_reads_the_figures_of_the_handle(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prometheus_client")
    monkeypatch.setenv("LOOPSAFE_DB_SCOPE", "auto")  # what is reused is warm

    done = run_script(code_of("monitoring", "python prometheus") + SCRAPE, tmp_path, postgres_url)

    assert done.stderr == ""
    figures = {"opened_total": 1.0, "reused_total": 2.0, "idle": 1.0, "requests_num_total": 3.0}
    for figure, value in figures.items():
        assert f'loopsafe_db_{figure}{{database="default"}} {value}\n' in done.stdout


def test_the_collector_has_every_figure() -> None:
    page = code_of("monitoring", "python prometheus")
    figures = {
        *(one.name for one in fields(PoolStats) if one.name not in {"name", "holders"}),
        "requests_num",
    }

    assert {figure for figure in figures if f'"{figure}"' not in page} == set()
