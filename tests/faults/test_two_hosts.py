"""The budget of a fleet is for all its hosts together, and the doctor counts over them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import skip_without_postgres
from tests.faults.test_vanished_host import OWN_NETWORK, ROOT, can_have_a_network


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
    if not can_have_a_network():
        pytest.skip("ONLY ROOT, ON LINUX, MAY MAKE A NETWORK: SO NOTHING IS PROVED HERE")
    with skip_without_postgres():
        done = subprocess.run(
            (*OWN_NETWORK, sys.executable, "-m", "tests.faults.two_hosts", counted),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=150,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {each["what"]: each for each in json.loads(done.stdout)}
    assert (found[what]["code"], found[what]["evidence"]) == (code, seen)
