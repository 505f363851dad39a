"""What a server gets is what the user wrote, but for the parameters: texts at random, and what servers make of them."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import make_url

from loopsafe_db import Database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hypothesis.strategies import DrawFn, SearchStrategy

SETTINGS = settings(
    max_examples=int(os.environ.get("LOOPSAFE_TEST_EXAMPLES", "120")),
    derandomize=bool(os.environ.get("CI")),
    database=None,
    deadline=None,
)
NAMES = ("p", "p_1", "größe", "_", "P")
BITS = st.sampled_from(
    [
        *("'", "''", '"', "`", "\\", "\\'", "\\:", ":", ":p", "::", ":=", ";", "$", "$$", "$t$"),
        *("$1", "--", "-- ", "#", "/", "*", "/*", "*/", "%", "%s", "%(p)s", "?", "[", "]", "{"),
        *("\n", "\r", " ", "\t", "a", "E", "e'", "U&'", "é", "0", "@p", "END", "(", ")"),
    ]
)
CONTENT = st.lists(BITS, max_size=6).map("".join)


class Piece(NamedTuple):
    """An expression, what it gives, and the values that it takes."""

    sql: str
    result: str
    values: dict[str, str]


def literal(write: Callable[[str], str]) -> SearchStrategy[Piece]:
    return CONTENT.map(lambda text: Piece(write(text), text, {}))


def quoted(mark: str, end: str = "") -> SearchStrategy[Piece]:
    """A column whose name is in quotes."""
    last = end or mark

    def column(text: str) -> Piece:
        # MariaDB leaves out the blanks that an alias begins with.
        kept = re.sub(r"[\r\n\t]", "", text.replace(last, last * 2 if not end else ""))
        name = kept.lstrip(" ") + "x"
        sql = f"(SELECT q.{mark}{name}{last} FROM (SELECT 'v' AS {mark}{name}{last}) AS q)"
        return Piece(sql, "v", {})

    return CONTENT.map(column)


def parameter(*ways: str) -> SearchStrategy[Piece]:
    def write(name: str, way: str, value: str) -> Piece:
        return Piece(way.format(f":{name}"), value, {name: value})

    return st.builds(write, st.sampled_from(NAMES), st.sampled_from(ways), CONTENT)


def fixed(**pieces: str) -> SearchStrategy[Piece]:
    return st.sampled_from([Piece(sql, result, {}) for result, sql in pieces.items()])


@st.composite
def dollars(draw: DrawFn) -> Piece:
    text, mark = draw(CONTENT), draw(st.sampled_from(["$$", "$t$", "$é_1$"]))
    if (text + mark).index(mark) < len(text):
        text = ""
    return Piece(f"{mark}{text}{mark}", text, {})


def without(text: str, *marks: str) -> str:
    while any(mark in text for mark in marks):
        for mark in marks:
            text = text.replace(mark, "")
    return text


def in_line(start: str) -> SearchStrategy[str]:
    return CONTENT.map(lambda text: f"{start}{without(text, chr(10), chr(13))}\n")


BLOCK = CONTENT.map(lambda text: f"/* {without(text, '*/')} */")
NESTED = CONTENT.map(lambda text: f"/* /*{without(text, '*/', '/*')} */ :p ' */")
BLANK = st.sampled_from([" ", "\n", "\t"])
DOUBLED = literal(lambda text: "'" + text.replace("'", "''") + "'")
BACKSLASHED = st.sampled_from(["''", "\\'"]).flatmap(
    lambda quote: literal(lambda text: "'" + text.replace("\\", "\\\\").replace("'", quote) + "'")
)


class Dialect(NamedTuple):
    """Expressions, and what may be between two tokens."""

    pieces: SearchStrategy[Piece]
    blanks: SearchStrategy[str]


POSTGRESQL = Dialect(
    st.one_of(
        DOUBLED,
        st.sampled_from("eE").flatmap(
            lambda mark: BACKSLASHED.map(lambda piece: piece._replace(sql=mark + piece.sql))
        ),
        dollars(),
        quoted('"'),
        parameter("{}::text", "CAST({} AS text)", "({})::varchar::text", "concat({}::text)"),
        fixed(
            v="(SELECT a$t$ FROM (SELECT 'v' AS a$t$) AS q)",
            b="((ARRAY['a', 'b', 'c'])[2:2])[1]",
            c="""('{"a:p": "c"}'::jsonb ->> 'a:p')""",
            true="""('{"k": 1}'::jsonb ? 'k')::text""",
        ),
    ),
    st.one_of(BLANK, NESTED, in_line("--")),
)
SQLITE = Dialect(
    st.one_of(
        DOUBLED,
        quoted('"'),
        quoted("`"),
        quoted("[", "]"),
        parameter("{}", "CAST({} AS text)", "({})"),
        fixed(c="""('{"a:p": "c"}' ->> '$.a:p')"""),
    ),
    st.one_of(BLANK, BLOCK, in_line("--")),
)
MYSQL = Dialect(
    st.one_of(
        BACKSLASHED,
        literal(lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'),
        quoted("`"),
        parameter("{}", "CONCAT({}, '')", "({})"),
        fixed(v="(@v := 'v')", x="/*!50000 'x' */"),
    ),
    st.one_of(BLANK, BLOCK, in_line("-- "), in_line("#")),
)


@st.composite
def texts(draw: DrawFn, dialect: Dialect) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """A text, the row that it gives, and its values: a name that is there twice has one value."""
    pieces = draw(st.lists(dialect.pieces, min_size=1, max_size=5))
    values = {name: value for piece in pieces for name, value in piece.values.items()}
    sql = "SELECT" + ",".join(
        f"{draw(dialect.blanks)}{piece.sql}{draw(dialect.blanks)}" for piece in pieces
    )
    row = tuple(next((values[name] for name in piece.values), piece.result) for piece in pieces)
    return sql + draw(st.sampled_from(["", ";", ";\n-- ; :p"])), row, values


@pytest.fixture(params=["asyncpg", "psycopg", "aiosqlite", "aiomysql", "asyncmy"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "aiosqlite":
        return make_url(f"sqlite:///{tmp_path}/test.db")
    server = "mariadb_url" if "my" in request.param else "postgres_url"
    given_url = make_url(request.getfixturevalue(server))
    return given_url.set(drivername=f"{given_url.get_backend_name()}+{request.param}")


def test_a_server_gets_what_the_user_wrote(url: Any) -> None:
    dialect = {"postgresql": POSTGRESQL, "sqlite": SQLITE}.get(url.get_backend_name(), MYSQL)
    database = Database(url)

    with asyncio.Runner() as runner:

        @SETTINGS
        @given(texts(dialect))
        def ask(given_text: tuple[str, tuple[str, ...], dict[str, str]]) -> None:
            sql, row, values = given_text
            seen = runner.run(database.fetch_one(sql, values))
            assert seen is not None
            assert tuple(seen) == row
            assert runner.run(database.execute(sql, values)) == row[0]

        try:
            ask()
        finally:
            runner.run(database.disconnect())
