"""The same code does the same with loopsafe_db as with databases, but for what the guide lists.

The tables in ``docs/how-to/from-databases.md`` are the only list of differences. A scenario that ``differences.toml``
has for one of their rows must differ (``name[sqlite]``: on SQLite alone), one that it has not must not.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import loopsafe_db
from tests.compatibility.environment import ROOT, one_at_a_time, run_with_databases
from tests.compatibility.world import World, find_scenarios, play

if TYPE_CHECKING:
    from loopsafe_db.testing.servers import PostgresServer

pytestmark = pytest.mark.timeout(500)  # the first of a dialect waits for all of databases' outcomes

GUIDE = ROOT / "docs/how-to/from-databases.md"
DIFFERENCES = tomllib.loads(
    Path(__file__).with_name("differences.toml").read_text(encoding="utf-8")
)
NAME = re.compile(r"(\w+\.\w+)(?:\[(\w+)\])?")
POSTGRESQL, SQLITE = find_scenarios("postgresql"), find_scenarios("sqlite")


def named_scenarios() -> list[tuple[str, str]]:
    """Pairs of scenario and the one dialect that is meant, or "", of each row of the guide."""
    scenarios = [name for names in DIFFERENCES.values() for name in names]
    found = [NAME.fullmatch(name) for name in scenarios]
    assert all(found), scenarios
    return [(match[1], match[2] or "") for match in found if match]


def listed_differences() -> set[tuple[str, str]]:
    """Pairs of scenario and dialect."""
    return {
        (name, dialect)
        for name, only in named_scenarios()
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


def outcomes(factory: pytest.TempPathFactory, names: list[str], url: str) -> dict[str, Any]:
    """What each scenario sees with databases: one of xdist's processes finds out, for all of them."""
    folder = factory.getbasetemp()
    path = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / url.partition(":")[
        0
    ]
    with one_at_a_time(path):
        if not path.exists():
            path.write_text(json.dumps(run_with_databases(url, names)), encoding="utf-8")
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def databases_on_postgresql(
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> dict[str, Any]:
    url = postgres_server.create_database()
    return outcomes(tmp_path_factory, chosen(request, "postgresql"), url)


@pytest.fixture(scope="session")
def databases_on_sqlite(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("databases") / "test.db"
    return outcomes(tmp_path_factory, chosen(request, "sqlite"), f"sqlite:///{path}")


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


def test_the_guide_has_a_row_for_each_difference() -> None:
    tables = re.findall(
        r"^\| behaviour .*\n\|-.*\n((?:\|.*\n)+)", GUIDE.read_text(encoding="utf-8"), re.MULTILINE
    )
    rows = [
        row.split(" | ")[0].removeprefix("| ") for table in tables for row in table.splitlines()
    ]

    assert rows == list(DIFFERENCES)


def test_the_differences_name_scenarios_that_exist() -> None:
    known = {(name, "postgresql") for name in POSTGRESQL} | {(name, "sqlite") for name in SQLITE}

    assert listed_differences() <= known
    assert {name for name, _ in named_scenarios()} == {name for name, _ in listed_differences()}
