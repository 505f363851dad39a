"""Clauses with values, the way SQLAlchemy takes them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from sqlalchemy.sql.dml import ValuesBase
from sqlalchemy.sql.elements import BindParameter, ClauseElement
from sqlalchemy.sql.sqltypes import NULLTYPE, NullType
from sqlalchemy.util import LRUCache

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Engine

_LONGEST = 64 << 10  # characters: a longer statement is hardly sent twice


class _CompiledClauses(LRUCache[Any, Any]):
    """SQLAlchemy's cache of an engine, which is bounded by their number, without those that are very long."""

    __slots__ = ()

    def __setitem__(self, key: Any, compiled: Any) -> None:
        if len(str(compiled)) <= _LONGEST:
            super().__setitem__(key, compiled)


def forget_long_clauses(engine: Engine) -> None:
    """Have an engine keep no compiled clause that is very long."""
    before: Any = engine._compiled_cache  # noqa: SLF001
    engine._compiled_cache = _CompiledClauses(before.capacity, size_alert=before.size_alert)  # noqa: SLF001


def keyed(query: Any) -> Any:
    """Have an upsert of SQLite return its key: the last row id that SQLite has is that of a real insert before."""
    upsert = getattr(query, "_post_values_clause", None) is not None
    if not upsert or query.stringify_dialect != "sqlite" or query._returning:  # noqa: SLF001
        return query
    return query.return_defaults(*query.table.primary_key)


def with_values(query: Any, values: Any) -> tuple[Any, Any]:
    """Give a clause and what SQLAlchemy binds: SQL among the values, as ``func.now()``, goes into the clause."""
    if not (
        values
        and isinstance(query, ValuesBase)
        and isinstance(values, Mapping)
        and _has_sql(values)
    ):
        return query, values
    sql = {name: value for name, value in values.items() if isinstance(value, ClauseElement)}
    return query.values(sql), {name: values[name] for name in values if name not in sql}


def know_null_types(query: Any) -> None:
    """Tell the values of ``insert().values()`` and ``update().values()`` what their type is to the cache of clauses.

    SQLAlchemy gives each value a `NullType` of its own, which would look through its classes to find what all know.
    """
    for value in (query._values or {}).values():  # noqa: SLF001
        if type(value) is BindParameter and type(value.type) is NullType:
            value.type._static_cache_key = NULLTYPE._static_cache_key  # noqa: SLF001


def batches(query: Any, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, Any]]:
    """Put neighbours of the same names together, for SQLAlchemy takes the names of the first for all.

    A row with SQL among its values is alone.
    """
    for _, group in groupby(rows, lambda row: object() if _has_sql(row) else frozenset(row)):
        batch = list(group)
        yield with_values(query, batch[0]) if _has_sql(batch[0]) else (query, batch)


def _has_sql(values: Mapping[str, Any]) -> bool:
    return any(isinstance(value, ClauseElement) for value in values.values())
