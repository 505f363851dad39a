"""The table of ``docs/reference/servers.md``: what it shows of a server that this run has is so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.compatibility.abilities import PAGE, lines, rows
from tests.compatibility.backends import BACKENDS
from tests.conftest import skip_without

if TYPE_CHECKING:
    from tests.compatibility.backends import Backend

TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "backend", [one for one in BACKENDS if one.is_near], ids=lambda one: one.name
)
def test_what_the_page_shows_of_a_server_is_so(backend: Backend) -> None:
    with skip_without(backend.name):
        found = lines(backend, rows(backend))
    assert [line for line in TEXT.splitlines() if line.startswith(f"| {backend.name} |")] == found
