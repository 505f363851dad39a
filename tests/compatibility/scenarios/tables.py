"""The tables that the scenarios use."""

from __future__ import annotations

import datetime
import enum
import itertools
import uuid
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class DaysSinceEpoch(sa.types.TypeDecorator[datetime.date]):
    """A date that is stored as an integer."""

    impl = sa.Integer
    cache_ok = True
    epoch = datetime.date(1970, 1, 1)

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else (value - self.epoch).days

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else self.epoch + datetime.timedelta(days=value)


class Shouted(sa.types.TypeDecorator[str]):
    """A text that is stored in lower case and read in upper case."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value and value.lower()

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value and value.upper()


class LocalTime(sa.types.TypeDecorator[str]):
    """A text that is stored as a timestamp: the value from the driver is no text."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return datetime.datetime.fromisoformat(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value.isoformat()


notes = sa.Table(
    "notes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("text", sa.String(100)),
    sa.Column("completed", sa.Boolean),
)

people = sa.Table(
    "people",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("email", sa.String(100), unique=True, nullable=False),
    sa.Column("note_id", sa.Integer, sa.ForeignKey("notes.id")),
    sa.Column("age", sa.Integer, sa.CheckConstraint("age >= 0")),
)

pairs = sa.Table(
    "pairs",
    metadata,
    sa.Column("a", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("b", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("text", sa.String),
)

words = sa.Table(
    "words",
    metadata,
    sa.Column("word", sa.String, primary_key=True),
    sa.Column("count", sa.Integer),
)

keyless = sa.Table("keyless", metadata, sa.Column("x", sa.Integer))

_numbers = itertools.count(1)

with_defaults = sa.Table(
    "with_defaults",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String),
    sa.Column("constant", sa.String, default="constant"),
    sa.Column("called", sa.String, default=lambda: "called"),
    sa.Column("token", sa.String, default=lambda: uuid.uuid4().hex),
    sa.Column("in_sql", sa.Integer, default=sa.text("40 + 2")),
    sa.Column("by_server", sa.String, server_default="server"),
    sa.Column("changed", sa.String, default="new", onupdate=lambda: "changed"),
    sa.Column("from_context", sa.String, default=lambda context: "from context"),
)

with_keys = sa.Table(
    "with_keys",
    metadata,
    sa.Column("id", sa.String, primary_key=True, default=lambda: "made by default"),
    sa.Column("name", sa.String),
)


def one_column(kind: Any) -> sa.Table:
    """Make a table with a column of that type."""
    return sa.Table(
        "typed", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("x", kind)
    )
