"""What README and docs show is what happens: their code runs, every error code has its section.

A fence ``python run`` is part of its page's script, and ``text output`` is what that script prints.
``python fails`` is a script of its own, which must fail with one of the lines of ``text error``.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import loopsafe_db
from loopsafe_db import Database, Record, errors, testing
from loopsafe_db.settings import LoopsafeSettings

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<kind>[a-z]+ [a-z]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
ANCHOR = re.compile(r'<a id="([a-z0-9-]+)"></a>')
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
PYTHON = re.compile(r"^```python[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMPORT = re.compile(r"^ *(?:from|import) ([\w.]+)", re.MULTILINE)
OF_THE_READER = ("app", "jobs", "mydriver", "shop")  # modules that pages make
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fences(page: Path, kind: str) -> list[str]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [fence["text"] for fence in found if fence["kind"] == kind]


def run_script(text: str, folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    script = folder / "page.py"
    script.write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env={**os.environ, "LOOPSAFE_DB_URL": url, "DATABASE_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize(
    "page", [page for page in PAGES if fences(page, "python run")], ids=name_of
)
def test_a_page_does_what_it_shows(page: Path, postgres_url: str, tmp_path: Path) -> None:
    for _ in range(2):  # who tries a page tries it again
        done = run_script("\n".join(fences(page, "python run")), tmp_path, postgres_url)

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "".join(fences(page, "text output"))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if fences(page, "python fails")], ids=name_of
)
def test_a_page_fails_where_it_says_so(page: Path, postgres_url: str, tmp_path: Path) -> None:
    for text in fences(page, "python fails"):
        done = run_script(text, tmp_path, postgres_url)

        assert done.returncode != 0
        shown = "".join(fences(page, "text error")).splitlines()
        assert set(shown) & set(done.stderr.splitlines()), done.stderr


def test_sql_and_toml_of_the_pages_are_read_by_what_reads_them(postgres_url: str) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    queries = re.findall(r"^```sql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    tables = map(tomllib.loads, re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))

    async def ask() -> list[list[Record]]:
        async with Database(postgres_url) as database:
            return [await database.fetch_all(query) for query in queries]

    answers = asyncio.run(ask())
    assert len(answers) >= 2
    assert all(any(row["application_name"] for row in rows) for rows in answers)
    assert [[*table["project"]["entry-points"]] for table in tables] == [["loopsafe_db.drivers"]]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{path}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Those written out, and those that a renderer makes of headings."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(ANCHOR.findall(text))


def test_every_error_code_has_a_section() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
    documented = set(
        re.findall(r'^<a id="(ldb\d{3})"></a>\n\n## LDB\d{3} (\w+)$', page, re.MULTILINE)
    )
    boundary = pytest.importorskip("loopsafe_db.integrations.conductor.boundary")
    raised = {
        (error.code.lower(), name)
        for module in (errors, testing, boundary)
        for name, error in inspect.getmembers(module, inspect.isclass)
        if issubclass(error, errors.LoopsafeError) and not error.code.endswith("00")
    }

    assert documented == raised


@pytest.mark.parametrize("page", [page for page in PAGES if "how-to" in str(page)], ids=name_of)
def test_what_a_how_to_imports_is_in_a_pip_line(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = "".join(PYTHON.findall(text))
    imported = {name.partition(".")[0] for name in IMPORT.findall(code)}
    installed = " ".join(re.findall(r"pip install ([^`\n]*)", text)).replace("-", "_")

    beside = {*sys.stdlib_module_names, *OF_THE_READER, "loopsafe_db", "sqlalchemy"}
    assert {name for name in imported - beside if not re.search(rf"\b{name}", installed)} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_extras_of_pip_lines_are_there(page: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = re.findall(r"loopsafe-db\[([\w,-]+)\]", page.read_text(encoding="utf-8"))

    assert {extra for line in lines for extra in line.split(",")} <= {
        *project["optional-dependencies"]
    }


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    page = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\.\. auto\w+:: (?:[\w.]+\.)?(\w+)", page, re.MULTILINE))

    assert {*loopsafe_db.__all__} <= documented


def test_every_page_is_listed_in_the_index() -> None:
    index = ROOT / "docs/index.md"
    listed = {index.parent / path for path, _ in LINK.findall(index.read_text(encoding="utf-8"))}
    decisions = set(ROOT.glob("docs/explanation/decisions/0*.md"))
    fragments = set(ROOT.glob("docs/changelog.d/*.md"))

    assert set(ROOT.glob("docs/**/*.md")) - decisions - fragments - {index} <= listed


@pytest.mark.parametrize("fragment", sorted(ROOT.glob("docs/changelog.d/*.md")), ids=name_of)
def test_a_change_is_told_in_one_line(fragment: Path) -> None:
    text = fragment.read_text(encoding="utf-8")

    assert re.fullmatch(r"\d+\.(added|changed|fixed|removed|security)(\.\d+)?\.md", fragment.name)
    assert re.fullmatch(r"\S.+\S\n", text)


def test_every_setting_is_in_the_table() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE))
    prefix = LoopsafeSettings.model_config["env_prefix"]
    read = {f"{prefix}{field}".upper() for field in LoopsafeSettings.model_fields}

    assert documented == read | {"DATABASE_URL"}
