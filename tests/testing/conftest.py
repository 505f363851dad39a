"""What the tests of the plugin share: pytest in pytest, without the plugins that no test there asks for."""

from __future__ import annotations

import pytest

# They import all of conductor-python, and all of hypothesis: more than half of what a run in a run costs.
_WITHOUT = "-p no:conductor-agents-testing -p no:hypothesispytest"


@pytest.fixture(autouse=True)
def quick_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave them out of the runs of `pytester`, which forgets the options of this run first."""
    if "pytester" in request.fixturenames:
        request.getfixturevalue("pytester")
        monkeypatch.setenv("PYTEST_ADDOPTS", _WITHOUT)
