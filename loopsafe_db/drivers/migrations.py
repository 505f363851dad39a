"""Alembic on SQLite, which alters a table by making it anew: no row of another table goes with the old one.

``DROP TABLE`` deletes the rows of the table first, and does with those that refer to them what ``ON DELETE`` says. To
keep SQLite from it, foreign keys have to be off before the transaction begins. They are checked when it ends.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from loopsafe_db.drivers.handed_out import plain_connection
from loopsafe_db.errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

_DROPS = re.compile(r"\s*DROP\s+TABLE\s+(?:IF\s+EXISTS\s+)?(.+?)\s*;?\s*$", re.IGNORECASE)
_REFERRING = """
    SELECT DISTINCT it.name FROM sqlite_master AS it, pragma_foreign_key_list(it.name) AS key
    WHERE it.type = 'table' AND key."table" = ? COLLATE NOCASE AND it.name <> key."table" COLLATE NOCASE
"""
_SHOWN = 5  # rows in the text of an error


def watch(engine: Engine, note: Callable[[Any], None]) -> None:
    """Call `note` with the driver's connection when Alembic begins a transaction; keep its DROP TABLE from deleting."""

    def begins(connection: Connection) -> None:
        if _is_alembics(connection):
            note(plain_connection(connection.connection))

    event.listen(engine, "begin", begins)
    event.listen(engine, "before_cursor_execute", _before_execute)


def check_foreign_keys(raw: Any) -> None:
    """Refuse what refers to nothing; in the connection's thread.

    Raises:
        MigrationError: There is such a row.
    """
    found = raw.execute("PRAGMA foreign_key_check").fetchall()
    if found:
        shown = [f"row {row} of {table} to {parent}" for table, row, parent, _ in found[:_SHOWN]]
        more = ["..."] if len(found) > _SHOWN else []
        raise MigrationError(
            f"rows that refer to nothing after the migration, {len(found)}: "
            + ", ".join([*shown, *more])
        )


def _is_alembics(connection: Connection) -> bool:
    context: Any = sys.modules.get("alembic.context")
    if context is None:
        return False
    try:
        return context.get_context().connection is connection
    except Exception:  # noqa: BLE001 (Alembic has no other for: no env.py runs, or it has configured nothing yet)
        return False


def _before_execute(connection: Connection, _cursor: Any, statement: str, *_: object) -> None:
    found = _DROPS.match(statement) if "DROP" in statement[:10].upper() else None
    if found and _is_alembics(connection) and _keys_are_on(connection):
        _refuse(connection, found[1].split(".")[-1].strip('"`[]'))


def _keys_are_on(connection: Connection) -> bool:
    return bool(_ask(connection, "PRAGMA foreign_keys")[0][0])


def _refuse(connection: Connection, table: str) -> None:
    """Refuse to drop a table while others have rows that may refer to it."""
    for (name,) in _ask(connection, _REFERRING, table):
        quoted = name.replace('"', '""')
        if _ask(connection, f'SELECT 1 FROM "{quoted}" LIMIT 1'):
            raise MigrationError(
                f"DROP TABLE {table} would delete or change rows of {name}, for its foreign keys are on"
            )


def _ask(connection: Connection, query: str, *args: Any) -> Any:
    cursor = connection.connection.cursor()
    try:
        cursor.execute(query, args)
        return cursor.fetchall()
    finally:
        cursor.close()
