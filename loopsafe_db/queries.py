"""Text with ``:name`` parameters -> one driver's SQL and the order of its arguments, compiled once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url, text
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.dml import ValuesBase
from sqlalchemy.sql.elements import ClauseElement

from loopsafe_db.errors import QueryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.engine import Dialect

Query = str | Executable


@dataclass(frozen=True, slots=True)
class CompiledText:
    """SQL in the driver's own parameter style, and the names in the order that it takes them.

    `keys` are the driver's own names in that order, where it takes a mapping.
    """

    sql: str
    order: tuple[str, ...]
    names: frozenset[str]
    keys: tuple[str, ...] | None = None

    def arguments(self, values: Mapping[str, Any] | None) -> Any:
        """Put the values in order, or under the driver's names where it takes a mapping.

        Raises:
            QueryError: A name has no value, or a value no name.
        """
        if not values and not self.names:
            return ()
        try:
            arguments = [values[name] for name in self.order]  # type: ignore[index]
            if len(values) == len(self.names):  # type: ignore[arg-type]
                return (
                    arguments if self.keys is None else dict(zip(self.keys, arguments, strict=True))
                )
        except (KeyError, TypeError):
            pass
        raise QueryError(self._mismatch(values))

    def many(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[Any]]:
        """Put the values of many rows in order.

        Raises:
            QueryError: In some row, a name has no value, or a value no name.
        """
        in_order = self.keys is None and len(self.order) > 1
        if in_order and all(map(len(self.names).__eq__, map(len, rows))):
            with suppress(KeyError):
                return list(map(itemgetter(*self.order), rows))
        return [self.arguments(row) for row in rows]

    def _mismatch(self, values: object) -> str:
        if values is not None and not isinstance(values, Mapping):
            return f"values must be a mapping of parameter names, not {type(values).__name__}"
        given = set(values or ())
        missing, unknown = sorted(self.names - given), sorted(map(str, given - self.names))
        parts = [f"no value for :{name}" for name in missing] + [
            f"no parameter :{name}" for name in unknown
        ]
        return f"{', '.join(parts)} in: {self.sql[:200]}"


def with_values(query: Any, values: Any) -> tuple[Any, Any]:
    """Give a clause and what SQLAlchemy binds: SQL among the values, as ``func.now()``, goes into the clause."""
    if not (isinstance(query, ValuesBase) and isinstance(values, Mapping) and _has_sql(values)):
        return query, values
    sql = {name: value for name, value in values.items() if isinstance(value, ClauseElement)}
    return query.values(sql), {name: values[name] for name in values if name not in sql}


def batches(query: Any, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, Any]]:
    """Put neighbours of the same names together, for SQLAlchemy takes the names of the first for all.

    A row with SQL among its values is alone.
    """
    for _, group in groupby(rows, lambda row: object() if _has_sql(row) else frozenset(row)):
        batch = list(group)
        yield with_values(query, batch[0]) if _has_sql(batch[0]) else (query, batch)


def _has_sql(values: Mapping[str, Any]) -> bool:
    return any(isinstance(value, ClauseElement) for value in values.values())


@lru_cache(maxsize=2048)
def compile_text(sql: str, dialect: str) -> CompiledText:
    r"""Compile once per text and dialect (``postgresql+asyncpg``); ``\:`` is a colon, ``::`` a cast."""
    clause = text(sql)
    if not clause._bindparams:  # noqa: SLF001 (nothing to translate but the escapes)
        return CompiledText(sql.replace("\\:", ":"), (), frozenset())
    compiled = clause.compile(dialect=_dialect(dialect))
    order = getattr(compiled, "positiontup", None)
    if order is not None:
        return CompiledText(str(compiled), tuple(order), frozenset(order))
    names = tuple(clause._bindparams)  # noqa: SLF001
    escaped = getattr(compiled, "escaped_bind_names", {})
    return CompiledText(
        str(compiled), names, frozenset(names), tuple(escaped.get(name, name) for name in names)
    )


@lru_cache
def _dialect(name: str) -> Dialect:
    """Make one dialect for all texts: an engine's own would be pinned by the cache."""
    kind: Any = make_url(f"{name}://").get_dialect()
    if kind.default_paramstyle == DefaultDialect.default_paramstyle:  # only its DBAPI knows better
        return kind(dbapi=kind.import_dbapi())  # type: ignore[no-any-return]
    return kind()  # type: ignore[no-any-return]
