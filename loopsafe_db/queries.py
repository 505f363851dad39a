"""Text with ``:name`` parameters -> one driver's SQL and the order of its arguments, compiled once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url, text
from sqlalchemy.sql.base import Executable

from loopsafe_db.errors import QueryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Dialect

Query = str | Executable


@dataclass(frozen=True, slots=True)
class CompiledText:
    """SQL in the driver's own parameter style, and the names in the order that it takes them."""

    sql: str
    order: tuple[str, ...]
    names: frozenset[str]

    def arguments(self, values: Mapping[str, Any] | None) -> Sequence[Any]:
        """Put the values in order.

        Raises:
            QueryError: A name has no value, or a value no name.
        """
        if not values and not self.names:
            return ()
        if not isinstance(values, Mapping) or values.keys() != self.names:
            raise QueryError(self._mismatch(values))
        return [values[name] for name in self.order]

    def _mismatch(self, values: object) -> str:
        if values is not None and not isinstance(values, Mapping):
            return f"values must be a mapping of parameter names, not {type(values).__name__}"
        given = set(values or ())
        missing, unknown = sorted(self.names - given), sorted(map(str, given - self.names))
        parts = [f"no value for :{name}" for name in missing] + [
            f"no parameter :{name}" for name in unknown
        ]
        return f"{', '.join(parts)} in: {self.sql[:200]}"


@lru_cache(maxsize=2048)
def compile_text(sql: str, dialect: str) -> CompiledText:
    r"""Compile once per text and dialect (``postgresql+asyncpg``); ``\:`` is a colon, ``::`` a cast."""
    clause = text(sql)
    if not clause._bindparams:  # noqa: SLF001 (nothing to translate but the escapes)
        return CompiledText(sql.replace("\\:", ":"), (), frozenset())
    compiled = clause.compile(dialect=_dialect(dialect))
    order = tuple(getattr(compiled, "positiontup", None) or ())
    return CompiledText(str(compiled), order, frozenset(order))


@lru_cache
def _dialect(name: str) -> Dialect:
    """Make one dialect for all texts: an engine's own would be pinned by the cache."""
    return make_url(f"{name}://").get_dialect()()
