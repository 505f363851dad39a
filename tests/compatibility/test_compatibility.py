"""The same code does the same with loopsafe_db as with databases, but for what the guide lists.

The table in ``docs/how-to/from-databases.md`` is the only list of differences: a scenario named there must
differ (``name[sqlite]``: on SQLite alone), one that is not named must not.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

import loopsafe_db
from tests.compatibility.environment import ROOT, run_with_databases
from tests.compatibility.world import World, find_scenarios, play

if TYPE_CHECKING:
    from pathlib import Path

    from loopsafe_db.testing.servers import PostgresServer

pytestmark = pytest.mark.timeout(500)  # the first of a dialect waits for all of databases' outcomes

GUIDE = ROOT / "docs/how-to/from-databases.md"
NAME = re.compile(r"`(\w+\.\w+)(?:\[(\w+)\])?`")
POSTGRESQL, SQLITE = find_scenarios("postgresql"), find_scenarios("sqlite")


def listed_differences() -> set[tuple[str, str]]:
    """Pairs of scenario and dialect, of the first column of the guide's tables."""
    rows = re.findall(r"^\|(.*?)\|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    named = [pair for row in rows for pair in NAME.findall(row)]
    return {
        (name, dialect)
        for name, only in named
        for dialect in ([only] if only else ["postgresql", "sqlite"])
        if only or name in find_scenarios(dialect)
    }


def chosen(request: pytest.FixtureRequest, dialect: str) -> list[str]:
    """The scenarios of this run, which may have been asked for a few."""
    return [
        item.callspec.params["scenario"]
        for item in request.session.items
        if getattr(item, "originalname", "") == f"test_on_{dialect}" and hasattr(item, "callspec")
    ]


@pytest.fixture(scope="session")
def databases_on_postgresql(
    postgres_server: PostgresServer, request: pytest.FixtureRequest
) -> dict[str, Any]:
    return run_with_databases(postgres_server.create_database(), chosen(request, "postgresql"))


@pytest.fixture(scope="session")
def databases_on_sqlite(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("databases") / "test.db"
    return run_with_databases(f"sqlite:///{path}", chosen(request, "sqlite"))


@pytest.mark.parametrize("scenario", POSTGRESQL)
async def test_on_postgresql(
    scenario: str, databases_on_postgresql: dict[str, Any], postgres_url: str
) -> None:
    ours = await play(POSTGRESQL[scenario], World(loopsafe_db, postgres_url))

    judge(scenario, "postgresql", databases_on_postgresql[scenario], ours)


@pytest.mark.parametrize("scenario", SQLITE)
async def test_on_sqlite(
    scenario: str, databases_on_sqlite: dict[str, Any], tmp_path: Path
) -> None:
    ours = await play(SQLITE[scenario], World(loopsafe_db, f"sqlite:///{tmp_path}/test.db"))

    judge(scenario, "sqlite", databases_on_sqlite[scenario], ours)


def judge(scenario: str, dialect: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    shown = f"databases: {json.dumps(theirs)}\nloopsafe_db: {json.dumps(ours)}"
    assert "saw" in ours, f"the scenario did not come to its end\n{shown}"
    if (scenario, dialect) in listed_differences():
        assert ours != theirs, f"the guide says that this differs\n{shown}"
    else:
        assert ours == theirs, f"the guide does not say that this differs\n{shown}"


def test_the_guide_names_scenarios_that_exist() -> None:
    known = {(name, "postgresql") for name in POSTGRESQL} | {(name, "sqlite") for name in SQLITE}
    named = {name for row in listed_differences() for name in row[:1]}

    assert listed_differences() <= known
    assert named >= set(re.findall(r"`(\w+\.\w+)`", _first_columns()))


def _first_columns() -> str:
    rows = re.findall(r"^\|(.*?)\|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    return "\n".join(rows)
