"""The table of ``docs/explanation/reliability.md``: our columns are what happens, however long it takes."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from tests.faults.peers import OURS, PEERS
from tests.faults.reliability import FAULTS, PAGE, outcome, promises

if TYPE_CHECKING:
    from loopsafe_db.testing.servers import PostgresServer
    from tests.faults.reliability import Fault

TEXT = PAGE.read_text(encoding="utf-8")
_TIME = re.compile(r", (at once|[\d.]+ s)")


def shown(library: str) -> dict[str, str]:
    """Give what the page shows of a library, without times."""
    table = TEXT.partition("| | ours, asyncpg |")[2]
    column = 1 + list(PEERS).index(library)
    rows = [line.strip("|").split(" | ") for line in table.splitlines()[2:]]
    cells = {row[0].strip(): row[column].strip(" |") for row in rows if len(row) > column}
    return {name: _TIME.sub("", cell) for name, cell in cells.items()}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("library", OURS)
def test_what_the_page_shows_of_ours_happens(postgres_server: PostgresServer, library: str) -> None:
    def happens(fault: Fault) -> str:
        url = postgres_server.create_database()
        try:
            return "; ".join(outcome(fault, library, url, sys.executable).holds)
        finally:
            postgres_server.drop_database(make_url(url).database or "")

    with ThreadPoolExecutor(6) as workers:
        found = list(workers.map(happens, FAULTS))
    assert dict(zip([fault.name for fault in FAULTS], found, strict=True)) == shown(library)


def test_the_page_has_the_promise_of_each_fault() -> None:
    assert promises() in TEXT
