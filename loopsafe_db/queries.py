"""Text with ``:name`` parameters -> one driver's SQL and the order of its arguments, compiled once."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from loopsafe_db import lexer
from loopsafe_db.control import end_in
from loopsafe_db.copies import refuse_copy
from loopsafe_db.drivers.session_state import Touched, touched_by
from loopsafe_db.drivers.url import describe_target
from loopsafe_db.errors import (
    ConfigurationError,
    MisuseError,
    PoolError,
    QueryError,
    StatementTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import URL, Dialect, Executable

Query: TypeAlias = "str | Executable"

_BUDGET = 4 << 20  # bytes of texts that are kept
_LONGEST = 64 << 10  # bytes: longer texts are hardly sent twice
_OVERHEAD = 1 << 10  # bytes that a text costs beside its characters
_SHOWN = 200  # characters of a text in an error
_PLACES_SHOWN = 20  # parameters that it names
_PASSWORD = re.compile(r"(?i)(\bpassword|\bidentified\s+by)\s+'[^']*('|$)")
_SEVERAL = re.compile("multiple commands|one statement at a time")  # asyncpg and psycopg; SQLite
_IN_LIST = re.compile(r"(?i)\bin\s*\(?\s*:(\w+)\s*(?:\)|\s|$)")  # with one parameter for all of it
# How parameters are written elsewhere, in capitals; operators are called so, too, and have something behind them.
_FOREIGN = re.compile(r"\$1\b|%S\b|%\(\w+\)S\b|\?(?=\s*(?:[,);]|\Z))")
_OF_A_TEXT = ("", "22", "42")  # SQLSTATE's classes of values and syntax; not every driver has them
_SPEAKS_ITSELF = (MisuseError, ConfigurationError, PoolError)
# How our own drivers take arguments; of others, SQLAlchemy's dialect knows.
_PARAMSTYLES = {
    "postgresql+loopsafe_asyncpg": "numeric_dollar",
    "postgresql+loopsafe_psycopg": "numeric_dollar",
    "sqlite+loopsafe_aiosqlite": "qmark",
}
_PLACES = {"qmark": "?", "format": "%s", "numeric": ":{}", "numeric_dollar": "${}"}


@dataclass(frozen=True, slots=True)
class CompiledText:
    """SQL in the driver's own parameter style, and the names in the order that it takes them.

    Attributes:
        sql: What the driver gets.
        order: The names; one may be there several times.
        names: Each once.
        keys: The driver's own names in that order, where it takes a mapping.
        text: What the user wrote.
        statements: What `lexer.statements` gives of it.
        touches: What it may change of its session.
        ends: The statement in it that the transaction of a block would end with; "" is none.
    """

    sql: str
    order: tuple[str, ...]
    names: frozenset[str]
    keys: tuple[str, ...] | None = None
    text: str = ""
    statements: tuple[str, ...] = ()
    touches: int = Touched.NOTHING
    ends: str = ""

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
            with suppress(KeyError, TypeError):
                return list(map(itemgetter(*self.order), rows))
        return [self.arguments(row) for row in rows]

    def _mismatch(self, values: object) -> str:
        if values is not None and not isinstance(values, Mapping):
            return (
                'values must be a mapping of parameter names, such as {"id": 1}, and of execute_many a list of '
                f"such mappings; not {type(values).__name__}"
            )
        given = set(values or ())
        missing, unknown = sorted(self.names - given), sorted(map(str, given - self.names))
        parts = [f"no value for :{name}" for name in missing] + [
            f"no parameter :{name}" for name in unknown
        ]
        place = self.text.find(f":{(missing or unknown)[0]}")
        return f"{', '.join(parts)} in: {_shown(self.text, place)}"


def _shown(text: str, place: int) -> str:
    """Give a text, or what is around a place in a long one."""
    start = max(place - _SHOWN // 2, 0) if len(text) > _SHOWN else 0
    end = start + _SHOWN
    return f"{'…' * (start > 0)}{text[start:end]}{'…' * (end < len(text))}"


def explain(error: BaseException, query: CompiledText | str | None, url: URL, place: str) -> None:
    """Add to what the driver, or a time-out, says of a query: which one, and where; no value of it."""
    if query is None or not isinstance(error, Exception) or isinstance(error, _SPEAKS_ITSELF):
        return
    if isinstance(error, StatementTimeout):
        error.locate(described(query), describe_target(url), place)
    else:
        hint = _list_hint(query, error) or _script_hint(query, error)
        error.add_note(f"query: {described(query)}{hint}\non {describe_target(url)}")


def described(query: CompiledText | str) -> str:
    """Give the beginning of a query for an error, without passwords, and what its numbers stand for."""
    text, meant = (query, "") if isinstance(query, str) else (query.text, _meant(query))
    return without_passwords(_shown(text, 0)) + meant


def without_passwords(text: str) -> str:
    """Give a text with stars for the passwords that stand in it as literals."""
    return _PASSWORD.sub(r"\1 '***'", text)


def _meant(query: CompiledText) -> str:
    """Tell what the driver's numbers stand for."""
    if not query.names:
        foreign = _FOREIGN.search("; ".join(query.statements))
        written = foreign.group().lower() if foreign else ""
        return f"\nHINT: write parameters as :name, not as {written}" if foreign else ""
    sign = "$" if "$1" in query.sql else "parameter "
    places = [f"{sign}{place} is :{name}" for place, name in enumerate(query.order, 1)]
    return f"\nwhere {', '.join(places[:_PLACES_SHOWN])}"


def _list_hint(query: CompiledText | str, error: Exception) -> str:
    """Tell how a list is written, where an error may be of one that no server takes."""
    found = None if isinstance(query, str) else _IN_LIST.search(query.text)
    if found is None or str(getattr(error, "sqlstate", None) or "")[:2] not in _OF_A_TEXT:
        return ""
    name = found.group(1)
    return f"\nHINT: a list is = ANY(:{name}) on PostgreSQL; on any database a clause, column.in_({name})"


def _script_hint(query: CompiledText | str, error: Exception) -> str:
    """Tell how several statements are sent, where a driver may have refused them in one text."""
    several = not isinstance(query, str) and len(query.statements) > 1
    if not several or not _SEVERAL.search(str(error)):
        return ""
    return "\nHINT: a call for each; on PostgreSQL, execute() takes several statements, without parameters"


class _Texts:
    """The texts of late, compiled. There are two generations: what is asked for again moves to the younger.

    No lock: a fork might copy it held. Threads that meet here may lose a text, or count one too few until the next
    generation.
    """

    def __init__(self) -> None:
        self.young: dict[tuple[str, str], CompiledText] = {}
        self._old: dict[tuple[str, str], CompiledText] = {}
        self._size = 0

    def get(self, key: tuple[str, str]) -> CompiledText:
        """Give what the younger generation has not."""
        compiled = self._old.get(key) or _compile(*key)
        size = _OVERHEAD + sum(map(sys.getsizeof, (*key, compiled.sql, *compiled.statements)))
        if size <= _LONGEST:
            if self._size + size > _BUDGET // 2:
                self._old, self.young, self._size = self.young, {}, 0
            self.young[key] = compiled
            self._size += size
        return compiled


_texts = _Texts()


def compile_text(sql: str, dialect: str) -> CompiledText:
    r"""Compile once per text and dialect (``postgresql+asyncpg``).

    Outside of literals, comments and names in quotes, ``:name`` is a parameter, unless a colon, a letter, a digit or
    an underscore is before it (``x::text``, ``a[1:n]``); and ``\:`` is a colon.
    """
    key = sql, dialect
    return _texts.young.get(key) or _texts.get(key)


def _compile(sql: str, dialect: str) -> CompiledText:
    tokens = list(lexer.tokens(sql, dialect))
    names = [text for kind, text in tokens if kind == "parameter"]
    statements = lexer.statements(tokens)
    if dialect.startswith("postgresql"):
        refuse_copy(statements, sql)
    places, order, keys = _arguments(names, dialect)
    double = bool(names) and _paramstyle(dialect) in (
        "format",
        "pyformat",
    )  # then a % is one of theirs
    written = "".join(
        places[text] if kind == "parameter" else text.replace("%", "%%") if double else text
        for kind, text in tokens
    )
    touches, ends = touched_by(statements, dialect), end_in(statements, dialect)
    return CompiledText(written, order, frozenset(names), keys, sql, statements, touches, ends)


def _arguments(
    names: Sequence[str], dialect: str
) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...] | None]:
    """Give how each name is written, in which order the driver takes them, and its own names for them."""
    style, distinct = _paramstyle(dialect), tuple(dict.fromkeys(names))
    place = _PLACES.get(style)
    if place is None and names:
        return _keyed(distinct, dialect)
    places = {name: (place or "").format(number) for number, name in enumerate(distinct, 1)}
    return places, distinct if style.startswith("numeric") else tuple(names), None


def _keyed(
    names: tuple[str, ...], dialect: str
) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """Do so for a driver that takes a mapping: SQLAlchemy knows how it wants each name."""
    from sqlalchemy import text

    compiled = text(" ".join(f":{name}" for name in names)).compile(dialect=_dialect(dialect))
    escaped = getattr(compiled, "escaped_bind_names", {})
    places = dict(zip(names, str(compiled).split(" "), strict=True))
    return places, names, tuple(escaped.get(name, name) for name in names)


@lru_cache
def _paramstyle(dialect: str) -> str:
    return _PARAMSTYLES.get(dialect) or _dialect(dialect).paramstyle


@lru_cache
def _dialect(name: str) -> Dialect:
    """Make one dialect for all texts: an engine's own would be pinned by the cache."""
    from sqlalchemy import make_url
    from sqlalchemy.engine.default import DefaultDialect

    kind: Any = make_url(f"{name}://").get_dialect()
    if kind.default_paramstyle == DefaultDialect.default_paramstyle:  # only its DBAPI knows better
        return kind(dbapi=kind.import_dbapi())  # type: ignore[no-any-return]
    return kind()  # type: ignore[no-any-return]
