"""A text means what its server says it means, parameters apart."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import make_url

from loopsafe_db import Database
from loopsafe_db.errors import QueryError
from loopsafe_db.lexer import statements, tokens
from loopsafe_db.queries import compile_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# What texts give, if the value of each parameter is "V".
STANDARD = {
    "SELECT 'see :p ' || CAST(:p AS char(1))": "see :p V",
    "SELECT 'it''s :p ' || CAST(:p AS char(1))": "it's :p V",
    "SELECT /* as :p says; it's */ CAST(:p AS char(1))": "V",
    "SELECT CAST(:p AS char(1)) -- it's :p; and :p": "V",
    'SELECT "a :p" || CAST(:p AS char(1)) FROM (SELECT CAST(1 AS char(1)) AS "a :p") AS q': "1V",
    r"SELECT '12\:30' || CAST(:p AS char(1))": r"12\:30V",
    r"SELECT 'it\' || CAST(:p AS char(1)) || ' :p\'": r"it\V :p" + "\\",
    "SELECT CAST(:p AS char(1)) || '%s %(p)s %% ? $1 :p'": "V%s %(p)s %% ? $1 :p",
}
TEXTS: dict[str, dict[str, Any]] = {
    "postgresql": {
        **STANDARD,
        "SELECT :p::text": "V",
        "SELECT :p::varchar::text": "V",
        "SELECT :p::text || :p::text": "VV",
        "SELECT (:p)::text || '::1'::inet::text": "V::1/128",
        "SELECT $$ :p; $$ || CAST(:p AS text)": " :p; V",
        "SELECT $t$ $$ :p $u$ $t$ || :p::text": " $$ :p $u$ V",
        "SELECT a$b$ || :p::text || a$b$ FROM (SELECT 'x' AS a$b$) AS q": "xVx",
        r"SELECT E'it\'s :p ' || CAST(:p AS text)": "it's :p V",
        "SELECT E'a' -- it's :p\n  '\\':p' || :p::text": "a':pV",
        "SELECT /* a /* :p */ it's :p */ CAST(:p AS text)": "V",
        "SELECT (ARRAY['a', 'b'])[1:1] || ARRAY[:p::text]": ["a", "V"],
        "SELECT (a[n:n])[1] || :p::text FROM (SELECT 2 AS n, ARRAY['a', 'b'] AS a) AS q": "bV",
        r"SELECT (a[(n)\:n])[1] || :p::text FROM (SELECT 2 AS n, ARRAY['a', 'b'] AS a) AS q": "bV",
        """SELECT ('{"a": ":p"}'::jsonb ->> 'a') || :p::text""": ":pV",
        """SELECT ('{"V": 1}'::jsonb ? :p)::text""": "true",
        "SELECT make_interval(days := 5 % 3)::text || :p::text": "2 daysV",
    },
    "sqlite": {
        **STANDARD,
        "SELECT [a :p] || `b :p` || :p FROM (SELECT 1 AS [a :p], 2 AS `b :p`)": "12V",
        """SELECT ('{"a": ":p"}' ->> '$.a') || :p""": ":pV",
        "SELECT /* /* it's */ :p": "V",
    },
    "mysql": {
        r"SELECT CONCAT('it\'s :p ', 'it''s ', :p)": "it's :p it's V",
        r'SELECT CONCAT("it\"s :p ", "it\'s ", :p)': "it\"s :p it's V",
        "SELECT CONCAT(`a :p`, :p) FROM (SELECT 1 AS `a :p`) AS q": "1V",
        "SELECT :p # it's :p": "V",
        "SELECT :p -- it's :p": "V",
        "SELECT CONCAT(5--3, :p)": "8V",
        "SELECT /*! :p */ /* /* it's :p */": "V",
        "SELECT CONCAT(@x := 5, :p, @x:=7)": "5V7",
        "SELECT CONCAT('5%', 7 % 4, '%s', :p)": "5%3%sV",
    },
}


@pytest.fixture(params=["asyncpg", "psycopg", "aiosqlite", "aiomysql", "asyncmy"])
async def server(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[Database]:
    if request.param == "aiosqlite":
        url = make_url(f"sqlite:///{tmp_path}/test.db")
    else:
        dialect = "mariadb" if "my" in request.param else "postgres"
        url = make_url(request.getfixturevalue(f"{dialect}_url"))
        url = url.set(drivername=f"{url.get_backend_name()}+{request.param}")
    async with Database(url) as database:
        yield database


def dialect_of(database: Database) -> str:
    return database.url.get_backend_name()


async def test_only_parameters_of_a_text_are_replaced(server: Database) -> None:
    texts = TEXTS[dialect_of(server)]
    seen = {}
    for text in texts:
        try:
            seen[text] = await server.fetch_val(text, {"p": "V"})
        except Exception as error:  # noqa: BLE001 (which it is stands in the difference)
            seen[text] = repr(error)
    assert seen == texts


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_slice_may_have_parameters(postgres_url: str, driver: str) -> None:
    values = {"lo": 2, "hi": 3}
    async with Database(make_url(postgres_url).set(drivername=f"postgresql+{driver}")) as database:
        for text in (
            "[:lo::int : :hi::int]",
            "[(:lo)::int:(:hi)::int]",
            "[CAST(:lo AS int) : :hi]",
        ):
            query = f"SELECT ('{{1, 2, 3, 4}}'::int[]){text}"
            assert await database.fetch_val(query, values) == [2, 3], text
        lower = "SELECT (a[:lo:n])[1] FROM (SELECT '{1, 2, 3}'::int[] AS a, 3 AS n) AS q"
        assert await database.fetch_val(lower, {"lo": 2}) == 2


async def test_execute_gives_what_comes_back_whatever_semicolons_there_are(
    server: Database,
) -> None:
    await server.execute("DROP TABLE IF EXISTS returned")
    await server.execute("CREATE TABLE returned (id int, t varchar(9))")
    for number, text in enumerate(
        (
            "INSERT INTO returned VALUES (0, 'a;b') RETURNING id",
            "INSERT INTO returned VALUES (1, 'c') RETURNING id; -- done",
            "INSERT INTO returned /* a;b */ VALUES (2, 'd') RETURNING id",
            "INSERT INTO returned VALUES (3, 'e') RETURNING id -- one; two",
            "SELECT 4 WHERE 'p;q' = 'p;q'",
        )
    ):
        assert await server.execute(text) == number


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_of_several_statements_the_last_one_counts(postgres_url: str, driver: str) -> None:
    async with Database(make_url(postgres_url).set(drivername=f"postgresql+{driver}")) as database:
        await database.execute("CREATE TABLE one (i int); CREATE TABLE two (i int)")
        for _ in range(8):  # more often than it takes to be prepared
            script = "INSERT INTO one VALUES (1); INSERT INTO two VALUES (1), (2) -- ;"
            assert await database.execute(script) == 2
        assert await database.fetch_val("SELECT count(*) FROM one") == 8


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite", "mysql", "oracle"])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        (" ; -- nothing\n;", ()),
        ("Select 'x;' /* ; */ ,\n :p ; commit;", ("SELECT '' , :P", "COMMIT")),
        (
            "create trigger t after insert on x begin select case 1 when 1 then 2 end; select 2; end; end",
            (
                "CREATE TRIGGER T AFTER INSERT ON X BEGIN SELECT CASE 1 WHEN 1 THEN 2 END; "
                "SELECT 2; END",
                "END",
            ),
        ),
        ("create rule r as on insert to t do (select 1; select 2)",) * 2,
    ],
)
def test_the_statements_of_a_text_are_those_of_its_server(
    dialect: str, text: str, found: Any
) -> None:
    expected = (found.upper(),) if isinstance(found, str) else found
    assert statements(tokens(text, dialect)) == expected


def test_what_nobody_closes_goes_on_to_the_end() -> None:
    for dialect in ("postgresql", "sqlite", "mysql", "mssql"):
        for start in ("'", '"', "/*", "/* /*", "$$", "$a$ $$", "E'\\'", "`", "[", "-- "):
            text = f"SELECT :a {start} x"
            assert "".join(
                f":{part}" if kind == "parameter" else part for kind, part in tokens(text, dialect)
            ) == (text)


async def test_an_error_shows_what_the_user_wrote_near_the_parameter(database: Database) -> None:
    with pytest.raises(QueryError, match=r"no value for :y in: SELECT :x, :y::text\n"):
        await database.fetch_val("SELECT :x, :y::text", {"x": 1})
    long = f"SELECT {'1, ' * 500} :here, {'2, ' * 500} 3"
    with pytest.raises(QueryError, match=r"in: ….*:here.*…\n") as caught:
        await database.fetch_val(long, {})
    assert len(str(caught.value)) < 500
    with pytest.raises(QueryError, match=r"no parameter :p in: SELECT ':p'\n"):
        await database.fetch_val("SELECT ':p'", {"p": 1})


def test_texts_are_compiled_once_and_kept_within_a_budget() -> None:
    dialect = "postgresql+loopsafe_asyncpg"
    assert compile_text("SELECT :x", dialect) is compile_text("SELECT :x", dialect)
    tracemalloc.start()
    try:
        for number in range(3000):
            compile_text(f"SELECT {number} /* {'x' * 6000} */", dialect)
            compile_text("SELECT :x", dialect)
        for number in range(200):
            compile_text(f"SELECT {number} /* {'x' * 200_000} */", dialect)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 6 << 20


async def test_long_clauses_are_not_kept(database: Database) -> None:
    async def ask(number: int) -> None:
        query = sa.text(f"SELECT '{number}{'x' * 100_000}'")
        await database.fetch_val(query)
        async with database.session() as session:
            await session.execute(query)

    await ask(0)
    tracemalloc.start()
    try:
        for number in range(1, 200):
            await ask(number)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 16 << 20  # sqlite3 keeps some itself
