"""The page on testing, as a project: its program, its conftest.py and its tests are what a reader copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.docs.test_docs import ROOT, fences

if TYPE_CHECKING:
    import pytest

    from loopsafe_db.testing.servers import PostgresServer

pytest_plugins = ["pytester"]

ASYNCIO = ("-oasyncio_mode=auto", "-oasyncio_default_fixture_loop_scope=function")


def test_the_project_of_the_page_passes(
    pytester: pytest.Pytester, postgres_server: PostgresServer
) -> None:
    page = ROOT / "docs/how-to/testing.md"
    (program,) = fences(page, "python program")
    tests = "\n\n".join(fences(page, "python test"))
    pytester.makeconftest("\n".join(fences(page, "python conftest")))
    pytester.makepyfile(shop=program, test_shop=tests)
    options = (*ASYNCIO, "-Werror", "--loopsafe-leaks=error")
    result = pytester.runpytest_subprocess(*options, "--loopsafe-url", postgres_server.url)
    result.assert_outcomes(passed=tests.count("def test_") + 3)  # two of them with parameters
