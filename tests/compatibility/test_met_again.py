"""The comparison in README is what a run of all libraries gives, and what the pages say that it takes figures from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from tests.compatibility.environment import DATABASES, ROOT, python_with
from tests.compatibility.met_again import EVENTS, LIBRARIES, PLACES, WITHOUT_A_POOL

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(500)  # the package `databases` is installed by the first run

README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs/reference/benchmarks.md").read_text(encoding="utf-8")
REMEMBERED = (ROOT / "docs/explanation/what-a-connection-remembers.md").read_text(encoding="utf-8")
BENCHMARKED = ("loopsafe_db", "asyncpg.Pool", "psycopg_pool", "SQLAlchemy, one engine", "databases")


IN_A_RUN, IN_A_LOOP = "A query in `asyncio.run`, again and again", "`fetch_val` in one long loop"


def section_of(title: str) -> str:
    return BENCHMARKS.partition(f"### {title}\n")[2].partition("\n### ")[0]


def outcomes_of(library: str, url: str) -> dict[str, str]:
    python: str | Path = sys.executable
    if library == "databases":
        python = python_with("databases", DATABASES)
    # Into a file: a forked child of a peer's may hang, and keep a pipe open.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as told:
        subprocess.run(
            (python, "-W", "ignore", "-m", "tests.compatibility.met_again", library, url),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=told,
            timeout=100,
            check=True,
        )
        told.seek(0)
        return dict(json.load(told))


def rows_of(page: str) -> dict[str, list[str]]:
    """Give the cells of each line of a table, by its first one without links."""
    found = {}
    for line in page.splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        found[re.sub(r"\[(.*?)\]\(.*?\)", r"\1", name)] = cells
    return found


def test_readme_shows_where_a_handle_works(postgres_url: str) -> None:
    found = {library: outcomes_of(library, postgres_url) for library in LIBRARIES}
    for place in (*PLACES, *EVENTS):
        assert rows_of(README)[place] == [found[library][place] for library in LIBRARIES], place


def test_sqlalchemy_without_a_pool_works_everywhere(postgres_url: str) -> None:
    found = outcomes_of(WITHOUT_A_POOL, postgres_url)
    assert {found[place] for place in PLACES} == {"works"}


@pytest.mark.parametrize(
    ("in_readme", "on_the_page"),
    [
        ("what a `SET` is to the next user", "a setting, `SET`"),
        ("a `SET ROLE`", "`SET ROLE`"),
        ("a session's advisory lock", "a session's advisory lock"),
    ],
)
def test_readme_shows_what_a_connection_remembers(in_readme: str, on_the_page: str) -> None:
    assert rows_of(README)[in_readme] == rows_of(REMEMBERED)[on_the_page]


def test_every_cell_of_the_comparison_is_checked() -> None:
    table = README.partition("## Beside others")[2].partition("\n## ")[0]
    rows = {name for name, cells in rows_of(table).items() if name and len(cells) == len(LIBRARIES)}
    checked = {*PLACES, *EVENTS, *(name for name in rows if "SET" in name)}
    others = {"a session's advisory lock", "a `fetch_val` in one long loop"}
    assert rows == {*checked, *others, "---"}


def test_readme_shows_the_times_of_the_benchmark() -> None:
    times = rows_of(section_of(IN_A_LOOP).partition("time of one operation")[2])
    shown = rows_of(README)["a `fetch_val` in one long loop"]
    assert shown == [times[library][0] for library in BENCHMARKED]


# In the order in which README tells them: which section of the benchmarks they are from, and which line.
RATIOS = (
    (IN_A_RUN, "loopsafe_db ÷ (empty asyncio.run + asyncpg, held connection)"),
    (IN_A_RUN, "asyncpg, connect per run ÷ loopsafe_db"),
    (IN_A_LOOP, "loopsafe_db ÷ asyncpg, held connection"),
    (IN_A_LOOP, "asyncpg.Pool ÷ loopsafe_db"),
)


def test_ratios_in_readme_are_those_of_the_benchmark() -> None:
    shown = [f"**{ratio}x**" for ratio in re.findall(r"([\d.]+) times", README)]
    assert shown == [rows_of(section_of(title))[line][0] for title, line in RATIOS]
