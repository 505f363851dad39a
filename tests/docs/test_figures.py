"""The defaults and limits that the pages name are those of the code."""

from __future__ import annotations

import inspect
import re

import pytest

from loopsafe_db import PoolLimits, Timeouts
from loopsafe_db.settings import LoopsafeSettings
from tests.docs.test_docs import ROOT

WORDS = {"no": False, "none": None, "no limit": None}  # of what has no number
ABOUT_SIXTY = range(55, 75)


def text_of(page: str) -> str:
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def test_the_page_of_settings_shows_their_defaults() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `LOOPSAFE_DB_(\w+)` \|.* \| ([^|]+) \|$", page, re.MULTILINE)
    shown = {name.lower(): WORDS.get(default, default) for name, default in rows}
    told_in_words = {"url", "max_connections", "max_waiting", "application_name", "replicas"}

    for name in {*LoopsafeSettings.model_fields} - told_in_words:
        default = LoopsafeSettings.model_fields[name].default
        if isinstance(default, float | int) and not isinstance(default, bool):
            default = f"{default:g}"
        assert shown[name] == default, name
    assert str(shown["max_connections"]).startswith(f"{PoolLimits().max_connections},")
    assert (shown["max_waiting"], PoolLimits().max_waiting) == (None, 0)  # 0 is no limit


def test_settings_and_a_handle_have_the_same_defaults() -> None:
    fields = LoopsafeSettings.model_fields
    limits, timeouts = PoolLimits(), Timeouts()

    assert fields["idle_timeout"].default == limits.idle_timeout
    assert fields["acquire_timeout"].default == timeouts.acquire
    assert fields["connect_timeout"].default == timeouts.connect
    assert fields["statement_timeout"].default == timeouts.statement


def test_what_readme_says_of_the_cost_is_what_was_measured() -> None:
    page = (ROOT / "docs/reference/benchmarks.md").read_text(encoding="utf-8")
    run = page[page.index("### A query in `asyncio.run`") : page.index("### The same under uvloop")]
    loop = page[page.index("### `fetch_val` in one long loop") :]
    ours = "loopsafe_db ÷ (empty asyncio.run + asyncpg, held connection)"

    def measured(where: str, what: str) -> str:
        (row,) = re.findall(rf"^\| {re.escape(what)} \| \*\*([\d.]+)x", where, re.MULTILINE)[:1]
        return str(row)

    assert re.findall(r"takes ([\d.]+) times", text_of("README.md")) == [
        measured(run, ours),
        measured(run, "asyncpg, connect per run ÷ loopsafe_db"),
        measured(loop, "loopsafe_db ÷ asyncpg, held connection"),
        measured(loop, "asyncpg.Pool ÷ loopsafe_db"),
    ]


def test_a_default_in_the_text_of_a_page_holds() -> None:
    limits, timeouts = PoolLimits(), Timeouts()

    for page in ("README.md", "docs/tutorial/first-steps.md"):
        assert "are given back after five minutes" in text_of(page)
    assert limits.idle_timeout == 5 * 60
    assert f"`LOOPSAFE_DB_IDLE_TIMEOUT`, {limits.idle_timeout:g} s." in text_of(
        "docs/how-to/debugging.md"
    )
    assert f"at most, {limits.max_connections} unless told otherwise" in text_of(
        "docs/how-to/job-queues.md"
    )
    assert f"{timeouts.connect:g} s by default" in text_of("docs/reference/errors.md")


def test_the_doctor_warns_where_its_page_says_so() -> None:
    checks = pytest.importorskip("loopsafe_db.cli.database_checks")
    page = text_of("docs/reference/command.md")

    assert f"more than {checks.FULL * 100:g} % of the server's connections" in page
    assert f"idle in a transaction for more than {checks.IDLE_SECONDS:g} s" in page
    assert f"another one's lock for more than {checks.BLOCKED_SECONDS:g} s" in page


def test_a_fleet_has_ended_after_the_seconds_that_its_page_names() -> None:
    fleet = pytest.importorskip("loopsafe_db.integrations.conductor.fleet")
    grace = inspect.signature(fleet.Fleet).parameters["grace"].default

    page = text_of("docs/how-to/conductor.md")
    assert f"`grace={grace}` seconds" in page
    assert f"After {grace + fleet.KILL_SECONDS:g} seconds nothing is left" in page


def test_the_worker_of_the_tutorial_has_about_sixty_lines() -> None:
    page = (ROOT / "docs/tutorial/first-steps.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python run\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)

    assert "a worker of about sixty lines" in page
    assert sum(block.count("\n") for block in blocks) in ABOUT_SIXTY
