"""What a database of tests may be made of, and that what tests wrote is taken out again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import sqlalchemy as sa
from alembic.config import Config
from sqlalchemy.orm import DeclarativeBase

from loopsafe_db import Database, configure, default, get_database
from loopsafe_db.errors import ConfigurationError, InvalidSettingError
from loopsafe_db.testing.schemas import apply_schema, configured, has_rows, truncate_all
from loopsafe_db.testing.servers import run_apart
from tests.integrations.pages import code_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loopsafe_db.testing.schemas import Schema

INI = "[alembic]\nscript_location = %(here)s/migrations\npath_separator = os\n"
READS_INI = """
import asyncio
from alembic import context
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import async_engine_from_config


def run(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def migrate():
    options = context.config.get_section("alembic")
    async with async_engine_from_config(options, poolclass=NullPool).connect() as connection:
        await connection.run_sync(run)


asyncio.run(migrate())
"""
SCRIPT = """
-- several statements; in one of them a semicolon and what looks like a parameter
CREATE TABLE meeting (id integer, title text, seats integer);
INSERT INTO meeting VALUES (1, 'a;b :c', 2);
"""

metadata = sa.MetaData()
meeting = sa.Table("meeting", metadata, sa.Column("id", sa.Integer), sa.Column("title", sa.Text))


def sync_builder(database: Database) -> None:
    assert get_database() is database
    asyncio.run(async_builder(database))


async def async_builder(database: Database) -> None:
    await database.execute("CREATE TABLE meeting (id integer)")


def run(url: str, *queries: str) -> Any:
    """The answer to the last of some queries."""

    async def ask() -> Any:
        answer = None
        async with Database(url, scope="loop") as database:
            for query in queries:
                answer = await database.fetch_val(query)
        return answer

    return run_apart(ask)


@pytest.fixture(params=["postgresql+asyncpg", "postgresql+psycopg", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    given = sa.make_url(request.getfixturevalue("postgres_url"))
    return given.set(drivername=request.param).render_as_string(hide_password=False)


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default, "_handles", {})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the env.py and the migration of the page on Alembic."""
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (tmp_path / "alembic.ini").write_text(INI, encoding="utf-8")
    (versions.parent / "env.py").write_text(code_of("alembic", "python env"), encoding="utf-8")
    (versions / "1.py").write_text(code_of("alembic", "python migration"), encoding="utf-8")
    return tmp_path


# -- what is built


@pytest.mark.parametrize(
    "schema", [metadata, sync_builder, async_builder, [None, async_builder], (async_builder,)]
)
def test_a_schema_is_built(url: str, schema: Schema) -> None:
    apply_schema(schema, url)

    assert run(url, "SELECT count(*) FROM meeting") == 0


async def test_a_schema_is_built_inside_a_running_loop(url: str) -> None:
    apply_schema(sync_builder, url)

    assert run(url, "SELECT count(*) FROM meeting") == 0


def test_nothing_is_built_of_none(url: str) -> None:
    apply_schema(None, url)

    assert run(url, "SELECT 1") == 1


@pytest.mark.parametrize("kind", [str, "path"])
def test_a_script_is_sent_as_it_is(url: str, tmp_path: Path, kind: Any) -> None:
    script = tmp_path / "schema.sql"
    script.write_text(SCRIPT, encoding="utf-8")

    apply_schema(script if kind == "path" else str(script), url)

    assert run(url, "SELECT title FROM meeting") == "a;b :c"


def test_a_dump_is_read_without_psql(postgres_url: str, tmp_path: Path) -> None:
    dump = tmp_path / "dump.sql"
    head = "\\restrict x\nSELECT pg_catalog.set_config('search_path', '', false);\n"
    dump.write_text(f"{head}CREATE TABLE public.meeting (id integer);\n\\unrestrict x\n")

    apply_schema([dump, lambda database: database.execute("DELETE FROM meeting")], postgres_url)

    assert run(postgres_url, "SELECT count(*) FROM meeting") == 0


@pytest.mark.parametrize("kind", ["path", "config"])
@pytest.mark.parametrize("env", ["of the page", "of alembic init"])
def test_alembic_upgrades_to_its_head(url: str, project: Path, kind: str, env: str) -> None:
    if env == "of alembic init":
        (project / "migrations" / "env.py").write_text(READS_INI, encoding="utf-8")
        name = sa.make_url(url).drivername.replace("sqlite", "sqlite+aiosqlite")
        url = sa.make_url(url).set(drivername=name).render_as_string(hide_password=False)
    ini = project / "alembic.ini"
    config = Config(str(ini))

    apply_schema(ini if kind == "path" else config, url)

    assert run(url, "SELECT version_num FROM alembic_version") == "1"
    assert run(url, "SELECT count(*) FROM meeting") == 0
    assert config.get_main_option("sqlalchemy.url") is None


def test_a_config_keeps_the_url_that_it_has(project: Path, tmp_path: Path) -> None:
    config = Config(str(project / "alembic.ini"))
    config.set_main_option("sqlalchemy.url", "postgresql://u:p%%40@host/mine")

    apply_schema(config, f"sqlite:///{tmp_path}/100%.db")

    assert config.get_main_option("sqlalchemy.url") == "postgresql://u:p%40@host/mine"


def test_named_schemas_of_metadata_are_made(postgres_url: str) -> None:
    named = sa.MetaData()
    sa.Table("things", named, sa.Column("id", sa.Integer), schema="a b")

    apply_schema(named, postgres_url)

    assert run(postgres_url, 'SELECT count(*) FROM "a b".things') == 0


class Base(DeclarativeBase):
    pass


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (42, "gave 42: it may give"),
        (Base, r"\.metadata"),
        ([metadata, {}], r"gave \{\}"),
        ("no/such.sql", "where there is no file"),
    ],
)
def test_what_cannot_be_built_is_refused_by_the_name_of_the_fixture(
    tmp_path: Path, schema: Any, says: str
) -> None:
    with pytest.raises(InvalidSettingError, match=f"(?s)fixture loopsafe_db_schema.*{says}"):
        apply_schema(schema, f"sqlite:///{tmp_path}/test.db")
    assert not (tmp_path / "test.db").exists()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "schema.txt").touch()

    with pytest.raises(InvalidSettingError, match=r"neither \.sql nor \.ini"):
        apply_schema(tmp_path / "schema.txt", "sqlite://")


def test_what_a_builder_raises_comes_out(tmp_path: Path) -> None:
    def build(_: Database) -> None:
        raise LookupError("no countries")

    with pytest.raises(LookupError, match="no countries"):
        apply_schema(build, f"sqlite:///{tmp_path}/test.db")


# -- whom get_database() gives


def test_what_was_configured_before_is_configured_afterwards(tmp_path: Path) -> None:
    before = configure(f"sqlite:///{tmp_path}/before.db")
    with configured(f"sqlite:///{tmp_path}/test.db") as database:
        assert get_database() is before is database
        assert str(database.url).endswith("/test.db")

    assert str(get_database().url).endswith("/before.db")


def test_where_nothing_was_configured_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOOPSAFE_DB_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with configured(f"sqlite:///{tmp_path}/first.db"):
        kept = get_database()  # as a module's global would
    with pytest.raises(ConfigurationError):
        get_database()

    with configured(f"sqlite:///{tmp_path}/second.db"):
        assert get_database() is kept
        assert str(kept.url).endswith("/second.db")


# -- what is taken out again


KEYS = {"postgresql": "serial PRIMARY KEY", "sqlite": "integer PRIMARY KEY AUTOINCREMENT"}


@pytest.fixture
def cleaned(url: str) -> Iterator[Database]:
    """Two tables that refer to each other, one with an odd name, and Alembic's."""
    key = KEYS[sa.make_url(url).get_backend_name()]
    reference = "integer REFERENCES"
    add = "ALTER TABLE parent ADD COLUMN favourite integer REFERENCES"
    run(
        url,
        f"CREATE TABLE parent (id {key}, name text)",
        f'CREATE TABLE "a :child""" (id {key}, parent {reference} parent (id))',
        f'{add} "a :child""" (id)',
        "CREATE TABLE alembic_version (version_num text)",
        "INSERT INTO alembic_version VALUES ('1')",
    )
    database = Database(url)
    yield database
    run_apart(database.disconnect)


FILL = (
    "INSERT INTO parent (name) VALUES ('x'), ('y')",
    'INSERT INTO "a :child""" (parent) VALUES (1), (2)',
    "UPDATE parent SET favourite = id",
)


def test_all_rows_are_removed_and_keys_begin_at_one(cleaned: Database, url: str) -> None:
    for _ in range(2):
        run(url, *FILL)
        assert run_apart(lambda: has_rows(cleaned))
        run_apart(lambda: truncate_all(cleaned))

        assert not run_apart(lambda: has_rows(cleaned))
        assert run(url, 'SELECT count(*) FROM "a :child"""') == 0
    assert run(url, FILL[0], "SELECT min(id) FROM parent") == 1
    assert run(url, "SELECT version_num FROM alembic_version") == "1"


def test_keys_begin_at_one_after_an_insert_that_was_undone(cleaned: Database, url: str) -> None:
    async def insert() -> None:
        async with cleaned.transaction(force_rollback=True):
            await cleaned.execute(FILL[0])

    run_apart(insert)
    run_apart(lambda: truncate_all(cleaned))

    assert run(url, FILL[0], "SELECT min(id) FROM parent") == 1


def test_a_named_table_is_kept(cleaned: Database, url: str) -> None:
    run(url, FILL[0])
    run_apart(lambda: truncate_all(cleaned, keep=["parent"]))

    assert run(url, "SELECT count(*) FROM parent") == 2
    assert run(url, "SELECT count(*) FROM alembic_version") == 0


def test_references_are_checked_again_after_a_cleaning(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/test.db?foreign_keys=on")

    async def clean() -> Any:
        await database.execute("CREATE TABLE things (id integer)")
        await database.execute("INSERT INTO things VALUES (1)")
        await truncate_all(database)
        return await database.fetch_val("PRAGMA foreign_keys")

    assert run_apart(clean) == 1
    run_apart(database.disconnect)


def test_a_table_that_nobody_wrote_into_is_not_truncated(postgres_url: str) -> None:
    """TRUNCATE gives a table a new file: a hundred of them cost ten times what it costs to look."""
    run(postgres_url, "CREATE TABLE a (id integer)", "CREATE TABLE b (id integer)")
    run(postgres_url, "INSERT INTO b VALUES (1)")
    file = "SELECT CAST(pg_relation_filenode('{}') AS text) || ' '"
    files = f"{file.format('a')} || ({file.format('b')})"
    before = run(postgres_url, files).split()

    database = Database(postgres_url)
    run_apart(lambda: truncate_all(database))

    after = run(postgres_url, files).split()
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_partitions_and_other_schemas_are_cleaned_too(postgres_url: str) -> None:
    run(
        postgres_url,
        "CREATE SCHEMA other",
        "CREATE TABLE other.things AS SELECT 1 AS id",
        "CREATE TABLE parts (id integer) PARTITION BY RANGE (id)",
        "CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (9)",
        "INSERT INTO parts VALUES (1)",
    )
    database = Database(postgres_url)
    run_apart(lambda: truncate_all(database))

    assert run(postgres_url, "SELECT count(*) FROM other.things") == 0
    assert run(postgres_url, "SELECT count(*) FROM parts") == 0


async def test_a_session_left_open_does_not_stop_the_cleaning(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopsafe_db.testing.schemas.PATIENCE", 0.2)
    left = await asyncpg.connect(postgres_url)
    await left.execute("CREATE TABLE things AS SELECT 1 AS id")
    await left.execute("BEGIN; SELECT * FROM things")
    database = Database(postgres_url)

    with pytest.warns(ResourceWarning, match="session that this test left open"):
        await truncate_all(database)

    assert await database.fetch_val("SELECT count(*) FROM things") == 0
    left.terminate()
    await database.disconnect()


async def test_a_shadow_table_is_emptied_with_its_virtual_one(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/test.db")
    await database.execute("CREATE VIRTUAL TABLE texts USING fts5(body)")
    await database.execute("INSERT INTO texts VALUES ('to be found')")

    await truncate_all(database)

    assert await database.fetch_val("SELECT count(*) FROM texts WHERE texts MATCH 'found'") == 0
    await database.execute("INSERT INTO texts VALUES ('to be found')")
    assert await database.fetch_val("SELECT count(*) FROM texts WHERE texts MATCH 'found'") == 1
    await database.disconnect()


async def test_no_other_kind_of_database_is_cleaned() -> None:
    database = Database("mysql+aiomysql://nobody@127.0.0.1/none")

    with pytest.raises(InvalidSettingError, match=r"only PostgreSQL and SQLite"):
        await truncate_all(database)
