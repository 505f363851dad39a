"""The budget of a fleet is for all its hosts together, and the doctor counts over them."""

from __future__ import annotations

import pytest

from tests.conftest import skip_without
from tests.drivers.pgbouncer import SERVERS, find_pgbouncer
from tests.faults.own_network import run_in_own_network


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("counted", "code", "what", "seen"),
    [
        (
            "2",
            "D100",
            "4 sessions of 'reflector', from 2 hosts",
            "2 of 10.77.0.2, 2 of 10.77.0.3",
        ),
        (
            "1",
            "D105",
            "8 sessions of 'reflector', from 2 hosts: the fleet's budget is 4",
            "4 of 10.77.0.2, 4 of 10.77.0.3",
        ),
    ],
    ids=["the workers of both", "its own workers"],
)
def test_the_budget_holds_where_each_host_counts(
    counted: str, code: str, what: str, seen: str
) -> None:
    findings = run_in_own_network("tests.faults.two_hosts", counted)
    found = {each["what"]: each for each in findings}
    assert (found[what]["code"], found[what]["evidence"]) == (code, seen)


@pytest.mark.timeout(200)
def test_through_a_pgbouncer_no_host_has_to_know_of_the_others() -> None:
    with skip_without("PgBouncer"):
        find_pgbouncer(keeps=False)

    assert run_in_own_network("tests.faults.two_hosts", "pgbouncer") == SERVERS
