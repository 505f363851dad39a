"""Where literals, comments, names and parameters are in a text of SQL, as the server of each dialect reads it.

Settings that change how a server reads a text are taken to be at their defaults: ``standard_conforming_strings`` is
on (PostgreSQL), ``ANSI_QUOTES`` and ``NO_BACKSLASH_ESCAPES`` are not set (MySQL).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LONG = 4_000  # characters; longer texts are hardly sent twice, and would be kept
Token = tuple[str, str]  # a kind, which is the name of a group below or nothing, and the text


# What is not closed goes on to the end of the text: the server will refuse it.
_STRING = r"'[^']*(?:'|\Z)"
_NAME = r'"[^"]*(?:"|\Z)'
_BACKTICKS = r"`[^`]*(?:`|\Z)"
_BRACKETS = r"\[[^\]]*(?:\]|\Z)"
_ESCAPED = r"'[^'\\]*+(?:(?:\\.|'')[^'\\]*+)*+(?:'|\Z)"
# PostgreSQL's E'…' goes on in the next line, if that begins with a quote.
_NEXT_LINE = r"(?:[ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:[ \t\f\v\n\r]|--[^\n\r]*+)*+"
_E_STRING = rf"(?<![\w$].)(?<=[eE]){_ESCAPED}(?:{_NEXT_LINE}{_ESCAPED})*+"
_DOLLARS = r"(?<![\w$\x80-\U0010ffff])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)"
_COMMENT = r"(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))"
_NESTED = r"(?P<comment>--[^\n\r]*)|(?P<nested>/\*)"  # `_end_of_comment` finds where that ends
_MYSQL_COMMENT = (  # it executes what stands in /*! … */
    r"(?P<comment>--(?=[\s\x00-\x1f]|\Z)[^\n]*|\#[^\n]*|/\*(?!M?!).*?(?:\*/|\Z))|(?P<mark>/\*M?!\d*)"
)


def _grammar(special: str, string: str, name: str, comment: str) -> re.Pattern[str]:
    """Make the pattern of one token; `special` are the characters that begin a string, a name or a ``#`` comment."""
    return re.compile(
        rf"[^{special}:;\\/-]+|(?P<string>{string})|(?P<name>{name})|{comment}"
        r"|\\(?P<colon>:)|(?<![:\w]):(?P<parameter>\w+)|(?P<end>;)|.",
        re.DOTALL,
    )


_STANDARD = _grammar("'\"", _STRING, _NAME, _COMMENT)
_MYSQL = _grammar("'\"`#", f"{_ESCAPED}|{_ESCAPED.translate({39: 34})}", _BACKTICKS, _MYSQL_COMMENT)
_GRAMMARS = {
    "postgresql": _grammar("'\"$", f"{_E_STRING}|{_STRING}|{_DOLLARS}", _NAME, _NESTED),
    "sqlite": _grammar(r"'\"`\[", _STRING, f"{_NAME}|{_BACKTICKS}|{_BRACKETS}", _COMMENT),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "mssql": _grammar(r"'\"\[", _STRING, f"{_NAME}|{_BRACKETS}", _NESTED),
}
_IN_COMMENT = re.compile(r"/\*|\*/")
_BARE = {"string": "''", "comment": " ", "mark": " ", "colon": ":"}
# Statements with others inside, each with its semicolon: BEGIN ATOMIC … END, the triggers of SQLite.
_COMPOUND = re.compile(r"CREATE\b.*?\b(?:FUNCTION|PROCEDURE|TRIGGER|EVENT)\b", re.DOTALL)
_OPENING = re.compile(r"(?<!\bEND )\b(?:BEGIN|CASE)\b")
_CLOSING = re.compile(r"\bEND\b(?! (?:IF|LOOP|WHILE|REPEAT|FOR)\b)")


def tokens(sql: str, dialect: str) -> Iterator[Token]:
    r"""Give the tokens of a text, of these kinds, and with no kind what is between them.

    ``string``; ``name``, in quotes; ``comment``; ``parameter``, without its colon; ``colon``, that was written
    as ``\:``; ``end``, a semicolon.

    Args:
        sql: The text.
        dialect: SQLAlchemy's name of it, with or without a driver: ``postgresql+asyncpg``.
    """
    match = _GRAMMARS.get(dialect.partition("+")[0], _STANDARD).match
    at = 0
    while (found := match(sql, at)) is not None:
        kind, end = found.lastgroup or "", found.end()
        if kind == "nested":
            kind, end = "comment", _end_of_comment(sql, end)
        yield kind, found[kind] if kind in ("parameter", "colon") else sql[at:end]
        at = end


def _end_of_comment(sql: str, start: int) -> int:
    """Find where a comment ends that may have others inside."""
    depth = 1
    for found in _IN_COMMENT.finditer(sql, start):
        depth += 1 if found[0] == "/*" else -1
        if not depth:
            return found.end()
    return len(sql)


def statements(found: Iterable[Token]) -> tuple[str, ...]:
    """Give the statements that tokens make, for patterns to look at.

    Each is in capitals, and without comments and what is in strings: ``INSERT INTO T VALUES (:A, '')``. Names in
    quotes keep them; white space is one blank.
    """
    whole: list[str] = []
    piece: list[str] = []
    for kind, text in (*found, ("end", ";")):
        if kind != "end":
            piece.append(f":{text}" if kind == "parameter" else _BARE.get(kind, text))
            continue
        statement, piece = " ".join("".join(piece).upper().split()), []
        if whole and _goes_on(whole[-1]):
            whole[-1] += f"; {statement}"
        elif statement:
            whole.append(statement)
    return tuple(whole)


def statements_of(sql: str, dialect: str) -> tuple[str, ...]:
    """Give the statements of a text that was not compiled by us; of a short one, found once."""
    return _read(sql, dialect) if len(sql) > _LONG else _known(sql, dialect)


def _read(sql: str, dialect: str) -> tuple[str, ...]:
    return statements(tokens(sql, dialect))


_known = lru_cache(512)(_read)


def _goes_on(statement: str) -> bool:
    """Tell whether the semicolon behind a statement is inside of it."""
    if statement.count("(") > statement.count(")"):  # CREATE RULE … DO (…; …)
        return True
    return _COMPOUND.match(statement) is not None and (
        len(_OPENING.findall(statement)) > len(_CLOSING.findall(statement))
    )
