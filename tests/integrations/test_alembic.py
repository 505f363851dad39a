"""Alembic on the handle's engine, by the env.py of its page: from a shell, offline, inside a warm program."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import asyncpg
import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, text

from loopsafe_db import Database, PoolLimits, configure
from loopsafe_db.errors import MigrationError
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
PARENT_AND_CHILD = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "1", None


def upgrade():
    op.create_table(
        "meeting",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("title", sa.String(20), nullable=False),
        sa.Column("after", sa.Integer, sa.ForeignKey("meeting.id", ondelete={ondelete!r})),
    )
    meeting = sa.ForeignKey("meeting.id", ondelete={ondelete!r})
    op.create_table(
        "booking",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("meeting_id", sa.Integer, meeting, server_default="1"),
    )


def downgrade():
    op.drop_table("booking")
    op.drop_table("meeting")
"""
ALTERS_THE_PARENT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "2", "1"


def upgrade():
    with op.batch_alter_table("meeting") as meeting:
        meeting.alter_column("title", type_=sa.Text)
        meeting.add_column(sa.Column("seats", sa.Integer))


def downgrade():
    with op.batch_alter_table("meeting") as meeting:
        meeting.alter_column("title", type_=sa.String(20))
        meeting.drop_column("seats")
"""
DELETES_THE_PARENT = """
from alembic import op

revision, down_revision = "2", "1"


def upgrade():
    op.execute("DELETE FROM meeting WHERE id = 2")
"""
WAITS = """
import threading

from alembic import context, op

revision, down_revision = "2", "1"


def upgrade():
    assert op.get_bind().exec_driver_sql("PRAGMA foreign_keys").scalar() == 0
    meanwhile = threading.Thread(target=context.config.attributes["meanwhile"])
    meanwhile.start()
    meanwhile.join()
"""
FILL = [
    "INSERT INTO meeting (id, title, after) VALUES (1, 'standup', NULL), (2, 'retro', 1)",
    "INSERT INTO booking (id, meeting_id) VALUES (1, 1), (2, 2), (3, NULL)",
]
VIOLATIONS = (
    sqlite3.IntegrityError,
    asyncpg.ForeignKeyViolationError,
    psycopg.errors.ForeignKeyViolation,
)
ROWS = [(1, 1), (2, 2), (3, None)]


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


@pytest.fixture
def sqlite_default(tmp_path: Path) -> Database:
    """The same, on SQLite."""
    return configure(
        f"sqlite:///{tmp_path}/test.db", pool=PoolLimits(max_connections=4), scope=SCOPE
    )


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


def versions_of(folder: Path, first: str, second: str) -> None:
    versions = folder / "migrations" / "versions"
    (versions / "1.py").write_text(first, encoding="utf-8")
    (versions / "2.py").write_text(second, encoding="utf-8")


async def fill(database: Database) -> None:
    for statement in FILL:
        await database.execute(statement)


async def rows(database: Database) -> list[tuple[object, ...]]:
    assert [tuple(row) for row in await database.fetch_all("SELECT id, after FROM meeting")] == [
        (1, None),
        (2, 1),
    ]
    found = await database.fetch_all("SELECT id, meeting_id FROM booking ORDER BY id")
    return [tuple(row) for row in found]


async def keys_hold(database: Database) -> bool:
    try:
        await database.execute("INSERT INTO booking (id, meeting_id) VALUES (9, 99)")
    except VIOLATIONS:
        return True
    return False


@pytest.mark.parametrize("ondelete", ["CASCADE", "SET NULL", "SET DEFAULT", "RESTRICT", None])
def test_a_batch_migration_keeps_the_rows_of_other_tables(
    default: Database, config: Config, folder: Path, ondelete: str | None
) -> None:
    versions_of(folder, PARENT_AND_CHILD.format(ondelete=ondelete), ALTERS_THE_PARENT)
    command.upgrade(config, "1")
    asyncio.run(fill(default))

    for go, target, title in (
        (command.upgrade, "head", "TEXT"),
        (command.downgrade, "1", "VARCHAR(20)"),
    ):
        go(config, target)
        assert asyncio.run(rows(default)) == ROWS
        assert asyncio.run(schema(default))["title"] == title
        assert asyncio.run(keys_hold(default))
    command.downgrade(config, "base")
    assert asyncio.run(schema(default)) == {}


@pytest.mark.parametrize("ondelete", ["CASCADE", None])
def test_a_migration_that_leaves_rows_without_their_parent_is_undone(
    sqlite_default: Database, config: Config, folder: Path, ondelete: str | None
) -> None:
    versions_of(folder, PARENT_AND_CHILD.format(ondelete=ondelete), DELETES_THE_PARENT)
    command.upgrade(config, "1")
    asyncio.run(fill(sqlite_default))

    with pytest.raises(MigrationError, match="row 2 of booking to meeting"):
        command.upgrade(config, "head")

    assert asyncio.run(rows(sqlite_default)) == ROWS
    assert asyncio.run(sqlite_default.fetch_val("SELECT version_num FROM alembic_version")) == "1"
    assert asyncio.run(keys_hold(sqlite_default))
    assert sqlite_default.stats().in_use == 0


@pytest.mark.parametrize("ondelete", ["CASCADE", "SET NULL", None])
def test_a_migration_whose_transaction_began_too_early_is_refused(
    sqlite_default: Database, config: Config, folder: Path, ondelete: str | None
) -> None:
    versions_of(folder, PARENT_AND_CHILD.format(ondelete=ondelete), ALTERS_THE_PARENT)
    env = folder / "migrations" / "env.py"
    env.write_text(env.read_text().replace("engine.connect()", "engine.begin()"), encoding="utf-8")
    command.upgrade(config, "1")
    asyncio.run(fill(sqlite_default))

    with pytest.raises(MigrationError, match="DROP TABLE meeting would delete or change rows of "):
        command.upgrade(config, "head")

    assert asyncio.run(rows(sqlite_default)) == ROWS
    assert asyncio.run(keys_hold(sqlite_default))
    for table in ("booking", "meeting"):
        asyncio.run(sqlite_default.execute(f"DELETE FROM {table}"))
    command.upgrade(config, "head")
    assert asyncio.run(schema(sqlite_default))["title"] == "TEXT"


def test_what_the_program_does_during_a_migration_has_its_foreign_keys(
    sqlite_default: Database, config: Config, folder: Path
) -> None:
    """The migration stops in the middle, and another connection of the same pool begins then."""
    versions_of(folder, PARENT_AND_CHILD.format(ondelete="CASCADE"), WAITS)
    command.upgrade(config, "1")
    asyncio.run(fill(sqlite_default))
    asked: list[object] = []

    async def ask() -> None:
        async with sqlite_default.engine.connect() as connection:
            deferred = await connection.execution_options(isolation_level="DEFERRED")
            asked.append(await deferred.scalar(text("PRAGMA foreign_keys")))

    config.attributes["meanwhile"] = lambda: asyncio.run(ask())
    command.upgrade(config, "head")

    assert asked == [1]
