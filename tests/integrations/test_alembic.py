"""Alembic on the handle's engine, by the env.py of its page: from a shell, offline, inside a warm program."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect

from loopsafe_db import Database, PoolLimits, configure
from tests.conftest import SCOPE
from tests.integrations.pages import code_of

if TYPE_CHECKING:
    from pathlib import Path

INI = "[alembic]\nscript_location = %(here)s/migrations\npath_separator = os\n"
FAILS = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "2", "1"


def upgrade():
    op.create_table("half", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("SELECT no_such_column FROM meeting")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with the page's env.py and migration."""
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (tmp_path / "alembic.ini").write_text(INI, encoding="utf-8")
    (versions.parent / "env.py").write_text(code_of("alembic", "python env"), encoding="utf-8")
    (versions / "1.py").write_text(code_of("alembic", "python migration"), encoding="utf-8")
    return tmp_path


@pytest.fixture
def config(folder: Path) -> Config:
    return Config(str(folder / "alembic.ini"))


@pytest.fixture
def default(database: Database) -> Database:
    """The handle of `get_database`, on this test's database."""
    return configure(database.url, pool=PoolLimits(max_connections=4), scope=SCOPE)


def python(folder: Path, url: str, *arguments: str) -> str:
    """Run it where the page's reader would; give what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "LOOPSAFE_DB_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def columns(connection: Connection) -> dict[str, str]:
    inspector = inspect(connection)
    if not inspector.has_table("meeting"):
        return {}
    return {column["name"]: str(column["type"]) for column in inspector.get_columns("meeting")}


async def schema(database: Database) -> dict[str, str]:
    async with database.engine.connect() as connection:
        return await connection.run_sync(columns)


def secret(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


MIGRATED = {"id": "INTEGER", "title": "TEXT", "seats": "INTEGER"}


def test_one_migration_up_and_down_from_the_shell(database: Database, folder: Path) -> None:
    python(folder, secret(database), "-m", "alembic", "upgrade", "head")
    assert asyncio.run(schema(database)) == MIGRATED

    python(folder, secret(database), "-m", "alembic", "downgrade", "base")
    assert asyncio.run(schema(database)) == {}


@pytest.mark.parametrize(
    "url",
    ["postgresql://nobody:hunter2@nowhere.invalid/db", "postgresql+psycopg://nowhere.invalid/db"],
)
def test_offline_asks_no_server(folder: Path, url: str) -> None:
    printed = python(folder, url, "-m", "alembic", "upgrade", "head", "--sql")

    assert "CREATE TABLE meeting" in printed
    assert "ADD COLUMN seats INTEGER" in printed
    assert "hunter2" not in printed


def test_the_program_of_the_page(database: Database, folder: Path) -> None:
    (folder / "program.py").write_text(code_of("alembic", "python program"), encoding="utf-8")

    printed = python(folder, secret(database), "program.py")

    assert printed == code_of("alembic", "text shown")
    assert asyncio.run(schema(database)) == {}


def test_a_program_migrates_while_its_other_tasks_query(default: Database, config: Config) -> None:
    asked = 0

    async def keep_asking(done: asyncio.Event) -> None:
        nonlocal asked
        while not done.is_set():
            assert await default.fetch_val("SELECT 1") == 1
            asked += 1

    async def main() -> None:
        done = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(keep_asking(done))
            await asyncio.to_thread(command.upgrade, config, "head")
            assert await schema(default) == MIGRATED
            await default.execute("INSERT INTO meeting (title) VALUES ('standup')")
            await asyncio.to_thread(command.downgrade, config, "base")
            assert await schema(default) == {}
            done.set()

    asyncio.run(main())
    assert asked > 0
    assert default.stats().in_use == 0
    if SCOPE != "loop":
        assert default.stats().opened <= 4


def test_migrations_between_loops_use_the_warm_connection(
    default: Database, config: Config
) -> None:
    asyncio.run(default.fetch_val("SELECT 1"))
    for _ in range(2):
        command.upgrade(config, "head")
        assert asyncio.run(schema(default)) == MIGRATED
        command.downgrade(config, "base")
        assert asyncio.run(schema(default)) == {}

    assert default.stats().in_use == 0
    if SCOPE != "loop":
        assert default.stats().opened == 1


def test_a_migration_that_fails_leaves_the_pool_clean(
    default: Database, config: Config, folder: Path
) -> None:
    (folder / "migrations" / "versions" / "2.py").write_text(FAILS, encoding="utf-8")
    command.upgrade(config, "1")

    with pytest.raises(Exception, match="no_such_column"):
        command.upgrade(config, "head")

    assert default.stats().in_use == 0
    assert asyncio.run(default.fetch_val("SELECT version_num FROM alembic_version")) == "1"
    if default.url.get_backend_name() == "postgresql":  # where DDL is part of the transaction
        query = "SELECT to_regclass('half')"
        assert asyncio.run(default.fetch_val(query)) is None
