"""The table of neighbours names the versions that are installed here, where its rows are tested."""

from __future__ import annotations

import importlib.metadata
import re

import pytest

from tests.docs.test_docs import ROOT
from tests.integrations.neighbours_page import NamedVersion, named_versions, rows


@pytest.mark.parametrize("named", named_versions(), ids=str)
def test_a_row_names_the_version_that_its_test_runs(named: NamedVersion) -> None:
    if named.by_hand:
        pytest.skip(f"{named.package} IS TRIED BY HAND, SO NOTHING IS PROVED HERE")
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf'"{named.package}\b', declared, re.IGNORECASE), "no environment has it"
    try:
        installed = importlib.metadata.version(named.package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"NO {named.package.upper()}, SO NOTHING IS PROVED HERE")

    assert f"{installed}.".startswith(f"{named.version}.")


def test_every_row_names_a_version() -> None:
    assert [row[0] for row in rows() if not re.search(r"\d", row[-1])] == []
