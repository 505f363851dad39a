"""The page on testing, as a project: its program, its conftest.py and its tests are what a reader copies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.docs.test_docs import ROOT, fences

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from loopsafe_db import Database
    from loopsafe_db.testing.servers import PostgresServer

pytest_plugins = ["pytester"]

PAGE = ROOT / "docs/how-to/testing.md"
ASYNCIO = ("-oasyncio_mode=auto", "-oasyncio_default_fixture_loop_scope=function")


def test_the_project_of_the_page_passes(
    pytester: pytest.Pytester, postgres_server: PostgresServer
) -> None:
    (program,) = fences(PAGE, "python program")
    tests = "\n\n".join(fences(PAGE, "python test"))
    pytester.makeconftest("\n".join(fences(PAGE, "python conftest")))
    pytester.makepyfile(shop=program, test_shop=tests)
    options = (*ASYNCIO, "-Werror", "--loopsafe-leaks=error")
    result = pytester.runpytest_subprocess(*options, "--loopsafe-url", postgres_server.url)
    result.assert_outcomes(passed=tests.count("def test_") + 3)  # two of them with parameters


def test_unittest_alone_undoes_what_a_case_does_in_all_of_its_tasks(
    database: Database, tmp_path: Path
) -> None:
    async def rows_of_users() -> list[object]:
        async with database:
            return list(await database.fetch_all("SELECT * FROM users"))

    async def make_table() -> None:
        key = "integer" if database.url.dialect == "sqlite" else "serial"
        async with database:
            await database.execute(f"CREATE TABLE users (id {key} PRIMARY KEY, name text)")

    asyncio.run(make_table())
    for name, fence in (("shop", "python program"), ("test_users", "python unittest")):
        (text,) = fences(PAGE, fence)
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "unittest", "test_users"],
        cwd=tmp_path,
        env={
            **os.environ,
            "LOOPSAFE_DB_URL": database.url.render_as_string(hide_password=False),
            "PYTHONPATH": f"{tmp_path}:{ROOT}",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Ran 2 tests" in done.stderr
    assert asyncio.run(rows_of_users()) == []
