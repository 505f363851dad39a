"""A host that vanishes in mid-transaction keeps its row locks only for as long as its URL says."""

from __future__ import annotations

import pytest

from tests.faults.own_network import ROOT, run_in_own_network
from tests.faults.vanished_host import LOOKS


@pytest.mark.timeout(200)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_rows_that_a_vanished_host_has_locked_are_free_when_the_server_has_looked_for_it(
    driver: str,
) -> None:
    written = run_in_own_network("tests.faults.vanished_host", driver)
    assert written == [1]  # the other one is locked still


def test_the_page_says_how() -> None:
    page = (ROOT / "docs/explanation/reliability.md").read_text(encoding="utf-8")
    names = [setting.partition("=")[0] for setting in LOOKS.split() if "=" in setting]
    assert all(name in page for name in names)
