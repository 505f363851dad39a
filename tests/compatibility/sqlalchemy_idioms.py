"""What idioms of SQLAlchemy Core compile to, with whatever SQLAlchemy runs this: 1.4 or 2.

As a script, it reads a list of expressions as JSON and prints what each gave.
"""

from __future__ import annotations

import datetime
import json
import sys
import warnings
from typing import Any

import sqlalchemy
from sqlalchemy.dialects import postgresql, sqlite

metadata = sqlalchemy.MetaData()
table = sqlalchemy.Table(
    "notes",
    metadata,
    sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
    sqlalchemy.Column("x", sqlalchemy.Integer),
    sqlalchemy.Column("text", sqlalchemy.String(100)),
    sqlalchemy.Column("made", sqlalchemy.DateTime, server_default=sqlalchemy.func.now()),
)
other = sqlalchemy.Table(
    "readers",
    metadata,
    sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
    sqlalchemy.Column("note_id", sqlalchemy.ForeignKey("notes.id")),
)
NAMES = {
    **vars(sqlalchemy),
    "sqlalchemy": sqlalchemy,
    "datetime": datetime,
    "table": table,
    "other": other,
    "condition": table.c.x == 1,
}
INSERTS = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
# No driver's own: what SQLAlchemy 2 has drivers do with parameters is not what this is about.
DIALECTS: dict[str, Any] = {"postgresql": postgresql.base.PGDialect, "sqlite": sqlite.dialect}


def make(idiom: str, dialect: str) -> Any:
    """Evaluate one, as a program would write it; its `dialect_insert` has on_conflict."""
    return eval(idiom, NAMES | {"dialect_insert": INSERTS[dialect]})  # the suite's own lines


def compiled(idiom: str) -> dict[str, Any]:
    """Compile one for each dialect: text and parameters, or the exception; and the warnings meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = {name: _compiled(idiom, name) for name in DIALECTS}
    return {**outcome, "warnings": [type(warning.message).__name__ for warning in caught]}


def _compiled(idiom: str, dialect: str) -> Any:
    how = {"dialect": DIALECTS[dialect](), "compile_kwargs": {"render_postcompile": True}}
    try:
        done = make(idiom, dialect).compile(**how)
    except Exception as error:  # noqa: BLE001 (whatever it is, is the outcome)
        return f"raised {type(error).__name__}"
    return [str(done), {name: str(value) for name, value in done.params.items()}]


if __name__ == "__main__":
    print(json.dumps([(idiom, compiled(idiom)) for idiom in json.load(sys.stdin)]))
