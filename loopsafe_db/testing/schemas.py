"""What a database of tests is made of, and how what tests have written into it is taken out again."""

from __future__ import annotations

import asyncio
import inspect
import re
import warnings
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import MetaData
from sqlalchemy.schema import CreateSchema

from loopsafe_db import default
from loopsafe_db.database import Database, _configuration
from loopsafe_db.engines.factory import make_options
from loopsafe_db.errors import InvalidSettingError, MissingDriverError, StatementTimeout
from loopsafe_db.testing.servers import call_apart
from loopsafe_db.url import hidden

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from alembic.config import Config
    from sqlalchemy import Connection

    from loopsafe_db.connection import Connection as LoopsafeConnection

__all__ = ["Schema", "apply_schema", "configured", "has_rows", "truncate_all"]

Builder: TypeAlias = Callable[[Database], Awaitable[object] | object]
Schema: TypeAlias = "MetaData | Path | str | Config | Builder | Sequence[Schema] | None"

FIXTURE = "loopsafe_db_schema"
KEPT = ("alembic_version",)
PATIENCE = 5.0  # seconds for what a test has left open
_RESTRICT = re.compile(r"^\\(un)?restrict\b.*$", re.MULTILINE)  # pg_dump's, for psql alone

_handles: dict[str, Database] = {}  # of `configured`, for those who hold one already


# -- what is built


def apply_schema(schema: Schema, url: str) -> None:
    """Build in the database `url` what `schema` says; works in a running loop, too, and lets go of the database.

    Args:
        schema: SQLAlchemy's ``MetaData`` (``create_all``, and the schemas that it names), the path of an
            ``.sql`` file (sent as it is), Alembic's ``Config`` or the path of its ``.ini`` file (upgraded to
            ``head``), a sync or async callable that is given a `Database`, a list of these, or None: nothing.
            Meanwhile `get_database` gives that database.
        url: As for `Database`.

    Raises:
        InvalidSettingError: It is none of these, or there is no such file.
    """
    for step in _steps(schema):
        call_apart(lambda step=step: step(url))  # type: ignore[misc]


def _steps(schema: Any) -> list[Callable[[str], None]]:
    """Say what is to be done, one for each part; what cannot be done is refused before anything is."""
    if schema is None:
        return []
    if isinstance(schema, list | tuple):
        return [step for part in schema for step in _steps(part)]
    if isinstance(schema, MetaData):
        return [lambda url: asyncio.run(_create_all(schema, url))]
    if isinstance(schema, str | Path):
        return [_file_step(Path(schema).absolute())]
    if _is_alembic_config(schema):
        return [lambda url: _upgrade(schema, url)]
    if callable(schema) and not isinstance(schema, type):
        return [lambda url: _build(schema, url)]
    raise _refusal(schema)


def _refusal(schema: object, why: str = "") -> InvalidSettingError:
    hint = ""
    if isinstance(getattr(schema, "metadata", None), MetaData):
        hint = f". Of {getattr(schema, '__name__', 'it')} give the metadata: .metadata"
    return InvalidSettingError(
        f"the fixture {FIXTURE} gave {schema!r}{why}: it may give MetaData, the path of an .sql file or of an "
        f"alembic.ini, Alembic's Config, a function of a Database, a list of these, or None{hint}"
    )


async def _create_all(metadata: MetaData, url: str) -> None:
    names = sorted({table.schema for table in metadata.tables.values() if table.schema})

    def create(connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            for name in names:
                connection.execute(CreateSchema(name, if_not_exists=True))
        metadata.create_all(connection)

    async with Database(url, scope="loop") as database, database.engine.begin() as connection:
        await connection.run_sync(create)


def _file_step(path: Path) -> Callable[[str], None]:
    if not path.is_file():
        raise _refusal(str(path), ", where there is no file")
    if path.suffix == ".sql":
        script = _RESTRICT.sub("", path.read_text(encoding="utf-8"))
        return lambda url: asyncio.run(_run_script(script, url))
    if path.suffix == ".ini":
        return lambda url: _upgrade(_read_config(path), url)
    raise _refusal(str(path), ", whose name ends in neither .sql nor .ini")


async def _run_script(script: str, url: str) -> None:
    """Send it all at once; what it sets for its session (a dump does) ends with it."""
    async with Database(url, scope="loop") as database, database.connection() as connection:
        raw = connection.raw_connection
        send = raw.executescript if hasattr(raw, "executescript") else raw.execute
        await send(script)


def _is_alembic_config(schema: object) -> bool:
    return any(
        f"{kind.__module__}.{kind.__name__}" == "alembic.config.Config"
        for kind in type(schema).__mro__
    )


def _read_config(path: Path) -> Config:
    try:
        from alembic.config import Config
    except ImportError as error:
        raise MissingDriverError("alembic", "alembic") from error
    return Config(str(path))


def _upgrade(config: Config, url: str) -> None:
    """Migrate; an ``env.py`` that asks `get_database` and one that reads ``sqlalchemy.url`` are told the same."""
    from alembic import command

    before = config.get_main_option("sqlalchemy.url")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    try:
        with configured(url):
            command.upgrade(config, "head")
    finally:
        if before is None:
            config.remove_main_option("sqlalchemy.url")
        else:
            config.set_main_option("sqlalchemy.url", before.replace("%", "%%"))


def _build(builder: Builder, url: str) -> None:
    async def wait(result: Awaitable[object]) -> None:
        await result

    with configured(url) as database:
        result = builder(database)
        if inspect.isawaitable(result):
            asyncio.run(wait(result))


# -- whom get_database() gives


@contextmanager
def configured(url: str, name: str = "default") -> Iterator[Database]:
    """Have `get_database` give a handle on `url` in this block; then whatever it gave before.

    What the program configures meanwhile holds afterwards. Who got a handle in such a block and keeps it (a module's
    global) has it on the right database in the next.
    """
    handles: dict[str, Any] = default._handles  # noqa: SLF001 (it has no way back)
    before = handles.get(name)
    options = make_options(hidden(url), {})
    database = _handles[name] = before or _handles.get(name) or default._named(name, options)  # noqa: SLF001
    handles[name] = database
    configuration = _configuration(options)
    try:
        with database._overrides.override(configuration):  # noqa: SLF001
            yield database
    finally:
        if before is None:
            handles.pop(name, None)
        configuration.retire()


# -- what is taken out again


async def has_rows(database: Database, *, keep: Collection[str] = KEPT) -> bool:
    """Tell whether any table has rows, but for those named in `keep`."""
    kind = _kind(database)
    async with database.connection() as connection:
        return bool(await _written(connection, kind, keep))


async def truncate_all(database: Database, *, keep: Collection[str] = KEPT) -> None:
    """Remove all rows of all tables, and let keys begin at 1 again; ready in a moment if nothing was written.

    That goes for rows of the schema itself, too (countries, roles): where there are any, take a copy of the
    template for each test instead. What another session has locked for more than five seconds is taken from it:
    its connection is ended, with a `ResourceWarning` (PostgreSQL).

    Args:
        database: A handle on PostgreSQL or SQLite.
        keep: Tables that keep what they have.

    Raises:
        InvalidSettingError: It is another kind of database.
    """
    try:
        await _truncate(database, keep)
    except StatementTimeout:
        await database.execute(_END_OTHERS)
        await _truncate(database, keep)
        warnings.warn(
            "a session that this test left open had locked a table: it was ended",
            ResourceWarning,
            stacklevel=2,
        )


async def _truncate(database: Database, keep: Collection[str]) -> None:
    kind = _kind(database)
    async with database.connection() as connection:
        names = await _written(connection, kind, keep)
        if names and kind == "postgresql":
            statement = f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE"
            await connection.execute(statement, timeout=PATIENCE)
        elif names:
            await _delete(connection, names)


async def _delete(connection: LoopsafeConnection, names: Sequence[str]) -> None:
    """Empty tables of SQLite, in any order; ``sqlite_sequence`` is one of them."""
    before = await connection.fetch_val("PRAGMA foreign_keys")
    await connection.execute("PRAGMA foreign_keys = off")
    try:
        async with connection.transaction():
            for name in names:
                await connection.execute(f"DELETE FROM {name}")
    finally:
        await connection.execute(f"PRAGMA foreign_keys = {before}")


async def _written(connection: LoopsafeConnection, kind: str, keep: Collection[str]) -> list[str]:
    """Name, quoted, the tables that have rows or have given a key: to look costs less than to truncate them all."""
    tables = await connection.fetch_all(_TABLES[kind], timeout=PATIENCE)
    rows = [row for row in tables if row["name"] not in keep]
    found: list[bool] = []
    for start in range(0, len(rows), _COLUMNS):
        part = rows[start : start + _COLUMNS]
        look = ", ".join(f"EXISTS (SELECT 1 FROM {row['quoted']})" for row in part)
        answer = await connection.fetch_one(f"SELECT {look}", timeout=PATIENCE)
        found += [] if answer is None else answer.values()
    return [row["quoted"] for row, full in zip(rows, found, strict=True) if full or row["used"]]


def _kind(database: Database) -> str:
    kind = database.url.get_backend_name()
    if kind not in _TABLES:
        raise InvalidSettingError(f"only PostgreSQL and SQLite can be cleaned, not {kind}")
    return kind


_COLUMNS = 1000  # of one answer; PostgreSQL gives up to 1664, SQLite 2000
_END_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_TABLES = {
    # Neither a partition (its parent is there) nor a table that an extension brought.
    "postgresql": """
        SELECT c.relname AS name, format('%I.%I', n.nspname, c.relname) AS quoted, EXISTS (
            SELECT 1 FROM pg_depend d JOIN pg_sequence s ON s.seqrelid = d.objid
            WHERE d.classid = CAST('pg_class' AS regclass) AND d.refobjid = c.oid AND d.deptype IN ('a', 'i')
            AND pg_sequence_last_value(CAST(s.seqrelid AS regclass)) IS NOT NULL
        ) AS used
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
        AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
        AND NOT EXISTS (
            SELECT 1 FROM pg_depend e
            WHERE e.classid = CAST('pg_class' AS regclass) AND e.objid = c.oid AND e.deptype = 'e'
        )
    """,
    # A shadow table belongs to a virtual one, and is emptied with it.
    "sqlite": """
        SELECT name, '"' || replace(name, '"', '""') || '"' AS quoted, 0 AS used FROM pragma_table_list
        WHERE schema = 'main' AND type IN ('table', 'virtual')
        AND (name = 'sqlite_sequence' OR name NOT LIKE 'sqlite\\_%' ESCAPE '\\')
    """,
}
