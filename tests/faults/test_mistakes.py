"""What new users mistype ends with a message that names what, where and the cure."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import sys
import traceback
import warnings
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, Timeouts, configure, create_async_engine, get_database
from loopsafe_db.errors import (
    AcquireTimeout,
    ConnectError,
    InvalidSettingError,
    InvalidURLError,
    LockTimeout,
    LoopsafeError,
    MissingURLError,
    QueryError,
    StatementTimeout,
    TransactionError,
    TransactionOptionsError,
    UnknownDriverError,
)
from loopsafe_db.testing.conformance import SLOW

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

URL = "postgresql://u:hunter2@host/db"


def printed(error: BaseException) -> str:
    """What a user sees of an error that nobody handles."""
    return "".join(traceback.format_exception(error))


async def failing(work: Awaitable[Any]) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  (each driver has its own)
        await work
    return printed(caught.value)


@pytest.mark.parametrize("url", [f" {URL}", f"{URL}\n", f'"{URL}"', f"'{URL}'", f"{URL} "])
def test_quotes_and_blanks_around_a_url_are_named(url: str) -> None:
    with pytest.raises(
        InvalidURLError, match="quotes, blanks or a newline around the URL"
    ) as caught:
        Database(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "it is empty"),
        ("localhost/hunter2", "there is no :// in it"),
        ("postgres//u:hunter2@host/db", "there is no :// in it"),
        ("postgresql://u:hunter2@host:port/db", "the port, is no number"),
        ("postgresql://u:hunter2@host:5432x", "the port, is no number"),
    ],
)
def test_what_is_no_url_is_told_why(url: str, reason: str) -> None:
    with pytest.raises(InvalidURLError, match=f"not a database URL: .*{reason}") as caught:
        Database(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("driver", ["postgresql+psycopg2", "mysql+pymysql"])
def test_a_driver_without_asyncio_names_those_of_its_database(driver: str) -> None:
    pytest.importorskip(driver.partition("+")[2])
    with pytest.raises(UnknownDriverError, match="is not async") as caught:
        Database(f"{driver}://host/db")
    assert {name.partition("+")[0] for name in caught.value.known} == {driver.partition("+")[0]}


@pytest.mark.parametrize(
    ("option", "cure"),
    [("pool_sise", "did you mean pool_size?"), ("ecko", "did you mean echo?")],
)
def test_an_unknown_option_of_an_engine_names_what_may_be_meant(option: str, cure: str) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        create_async_engine(URL, **{option: 1})
    assert f"{option}: {cure}" in str(caught.value)


@pytest.mark.parametrize("values", [None, {"a": 1}])
async def test_several_statements_in_one_text_get_the_cure(
    database: Database, values: dict[str, int] | None
) -> None:
    if values is None and database.url.driver == "psycopg":
        pytest.skip("psycopg sends them, and gives the last one's rows")
    text = "SELECT 1; SELECT 2" if values is None else "SELECT 1; SELECT :a"
    assert "HINT: a call for each" in await failing(database.fetch_all(text, values))


async def test_a_begin_as_text_is_undone_with_its_line_and_the_cure(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await Database(postgres_url).execute("BEGIN")
    (told,) = [one.getMessage() for one in caplog.records if "left open" in one.getMessage()]
    assert f"{__file__}:" in told
    assert "`async with db.transaction()`, not by BEGIN" in told


def test_two_slashes_before_a_sqlite_path_are_refused_at_once() -> None:
    with pytest.raises(InvalidURLError, match=r"three slashes before a path, sqlite:///x\.db"):
        Database("sqlite://x.db")


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"pool": {"max_connections": 5}}, r"pool=PoolLimits\(max_connections=5\), not dict"),
        ({"pool": 5}, r"pool=PoolLimits\(max_connections=5\), not int"),
        ({"timeouts": 5}, r"timeouts=Timeouts\(statement=5\), not int"),
    ],
)
def test_limits_of_another_type_name_the_right_form(options: Any, cure: str) -> None:
    with pytest.raises(InvalidSettingError, match=cure):
        Database(URL, **options)


@pytest.mark.parametrize("name", ["echo", "echo_pool"])
def test_an_engine_says_what_its_echo_takes(name: str) -> None:
    with pytest.raises(InvalidSettingError, match=rf"{name} must be True, False or 'debug'"):
        create_async_engine(URL, **{name: "values"})


@pytest.mark.parametrize(
    ("option", "cure"),
    [
        ("pool_size", "max_size"),
        ("pgbounce", "did you mean pgbouncer?"),
        ("colour", "known: application_name, "),
    ],
)
def test_an_unknown_option_names_what_may_be_meant(option: str, cure: str) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        Database(URL, **{option: 1})  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)
    assert str(caught.value).startswith("[LDB205]")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert f"no such option: {option} (" in str(caught.value)
    assert cure in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "cure"),
    [
        ("MAX_CONECTIONS", "did you mean MAX_CONNECTIONS?"),
        ("POOL_SIZE", "here that is MAX_CONNECTIONS"),
        ("MAX_LIFETIME", "here that is RECYCLE"),
    ],
)
def test_a_variable_that_nobody_reads_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, variable: str, cure: str
) -> None:
    monkeypatch.setenv(f"LOOPSAFE_DB_NO_{variable}_URL", URL)
    monkeypatch.setenv(f"LOOPSAFE_DB_NO_{variable}_{variable}", "5")
    with pytest.warns(UserWarning, match=f"_{variable}_{variable} is not read") as warned:
        get_database(f"no_{variable}")
    assert cure in str(warned[0].message)
    assert warned[0].filename == __file__


def test_variables_of_a_named_database_are_no_mistakes_of_the_default_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOOPSAFE_DB_OUTER_URL", URL)
    monkeypatch.setenv("LOOPSAFE_DB_OUTER_INNER_URL", URL)
    monkeypatch.setenv("LOOPSAFE_DB_OUTER_INNER_MAX_CONNECTIONS", "5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_database("outer")


def test_a_name_without_a_url_tells_which_names_there_are() -> None:
    configure(URL, name="reports")
    with pytest.raises(MissingURLError, match=r"database 'alice'; there is .*'reports'") as caught:
        get_database("alice")
    assert pickle.loads(pickle.dumps(caught.value)).known == caught.value.known


def test_a_missing_package_and_a_missing_url_are_one_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    monkeypatch.delitem(sys.modules, "loopsafe_db.drivers.aiosqlite", raising=False)
    mistakes: list[Callable[[], Database]] = [
        lambda: Database("sqlite:///x.db"),
        lambda: get_database("nobody"),
    ]
    for mistake in mistakes:
        with pytest.raises(LoopsafeError) as caught:
            mistake()
        assert printed(caught.value).count("Traceback") == 1


async def test_values_of_many_rows_are_a_list_of_mappings(database: Database) -> None:
    query = "INSERT INTO things (id) VALUES (:id)"
    wrong: list[Any] = [{"id": 1}, [(1,)], [1]]
    for values in wrong:
        with pytest.raises(QueryError, match=r'such as \{"id": 1\}, and of execute_many a list'):
            await database.execute_many(query, values)
    rows: Any = [(1, 2), (3, 4)]
    with pytest.raises(QueryError, match="of such mappings; not tuple"):
        await database.execute_many("INSERT INTO things (a, b) VALUES (:a, :b)", rows)


async def test_an_unknown_isolation_level_names_those_that_there_are(database: Database) -> None:
    with pytest.raises(
        TransactionOptionsError,
        match=r"(?s)no isolation level 'seriaizable', only.*HINT: the outermost transaction",
    ):
        async with database.transaction(isolation="seriaizable"):  # type: ignore[arg-type]  # mypy says it, too
            pass


@pytest.mark.parametrize("level", ["SERIALIZABLE", "repeatable read", "", 1, ["serializable"]])
@pytest.mark.parametrize("url", [URL, "postgresql+psycopg://h/d", "sqlite://", "mysql://h/d"])
def test_what_is_no_isolation_level_is_refused_alike_by_every_driver(url: str, level: Any) -> None:
    with pytest.raises(TransactionError, match=r"there is no isolation level .*'read_committed'"):
        Database(url).transaction(isolation=level)


@pytest.mark.parametrize("path", ["direct", "connection", "iterate"])
async def test_what_the_server_refuses_is_shown_with_the_query(
    database: Database, path: str
) -> None:
    query = "SELECT name FROM nowhere WHERE id = :id AND name = :name"
    values = {"id": 1, "name": "hunter2"}

    async def ask() -> None:
        if path == "direct":
            await database.fetch_all(query, values)
        elif path == "iterate":
            await anext(database.iterate(query, values))
        else:
            async with database.connection() as connection:
                await connection.fetch_all(query, values)

    told = await failing(ask())

    assert f"query: {query}" in told
    assert "1 is :id" in told
    assert "2 is :name" in told
    assert "hunter2" not in told


async def test_a_clause_that_the_server_refuses_is_shown(database: Database) -> None:
    told = await failing(
        database.fetch_all(sa.select(sa.column("a")).select_from(sa.text("nowhere")))
    )
    assert "query: SELECT a" in told


async def test_a_literal_password_is_not_shown(database: Database) -> None:
    told = await failing(database.execute("ALTER ROLES me PASSWORD 'hunter2'"))
    assert "query: ALTER ROLES me PASSWORD '***'" in told


async def test_a_value_of_a_wrong_type_names_its_parameter(postgres_url: str) -> None:
    told = await failing(Database(postgres_url).fetch_val("SELECT CAST(:id AS int)", {"id": "x"}))
    assert "$1 is :id" in told


async def test_a_number_in_place_of_a_name_gets_the_cure(postgres_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        db = Database(postgres_url.replace("postgresql", f"postgresql+{driver}", 1))
        told = await failing(db.fetch_val("SELECT $1::int"))
        assert "write parameters as :name, not as $1" in told


@pytest.mark.parametrize(
    ("query", "written"),
    [
        ("SELECT * FROM nowhere WHERE id = $1", "$1"),
        ("SELECT * FROM nowhere WHERE id = %s", "%s"),
        ("SELECT * FROM nowhere WHERE id = %(Id)s AND name = ''", "%(id)s"),
        ("INSERT INTO nowhere VALUES (?, ?)", "?"),
        ("SELECT * FROM nowhere WHERE id = ?", "?"),
    ],
)
async def test_a_parameter_as_others_write_it_gets_the_cure(
    database: Database, query: str, written: str
) -> None:
    told = await failing(database.fetch_all(query))
    assert f"HINT: write parameters as :name, not as {written}" in told


@pytest.mark.parametrize(
    "query", ["SELECT '$1, ?, %s' FROM nowhere", "SELECT a ? 'b', a ?| c, 7 %size FROM nowhere"]
)
async def test_an_operator_or_a_literal_is_taken_for_no_parameter(
    database: Database, query: str
) -> None:
    assert "write parameters" not in await failing(database.fetch_all(query))


async def ask_directly(database: Database, query: str) -> None:
    await database.fetch_val(query)


async def ask_in_a_transaction(database: Database, query: str) -> None:
    async with database.transaction():
        await database.fetch_all(query)


async def ask_by_clause(database: Database, query: str) -> None:
    async with database.connection() as connection:
        await connection.fetch_all(sa.text(query))


async def ask_by_session(database: Database, query: str) -> None:
    async with database.session() as session:
        await session.execute(sa.text(query))


@pytest.mark.parametrize("ask", [ask_directly, ask_in_a_transaction, ask_by_clause, ask_by_session])
async def test_a_statement_that_takes_too_long_is_named_with_its_database_and_its_place(
    database: Database, ask: Callable[[Database, str], Awaitable[None]]
) -> None:
    impatient = Database(database.url, timeouts=Timeouts(statement=0.05))
    query = SLOW[database.url.dialect]
    with pytest.raises(StatementTimeout) as caught:
        await ask(impatient, query)
    await impatient.disconnect()
    told = pickle.loads(pickle.dumps(caught.value)).args[0]
    assert f"query: {query[:20]}" in told
    assert f"on {database.url.drivername}://" in told
    last = ask.__code__.co_firstlineno + len(inspect.getsourcelines(ask)[0]) - 1
    assert f"at {__file__}:{last}" in told


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("{}/no/x.db", "there is no folder {}/no; make it first"),
        ("{}", "{} is a folder; name a file in it"),
        ("{}/x.db?mode=ro", "there is no file {}/x.db, and it may not be made"),
    ],
)
def test_a_sqlite_file_that_cannot_be_opened_tells_why(tmp_path: Path, url: str, cure: str) -> None:
    db = Database(f"sqlite:///{url.format(tmp_path)}")
    with pytest.raises(ConnectError) as caught:
        asyncio.run(db.fetch_val("SELECT 1"))
    assert cure.format(tmp_path) in str(caught.value)
    assert "HINT: check the path, and who may read and write there" in str(caught.value)
    assert "port" not in str(caught.value)


def test_no_hint_leads_to_a_page_that_is_not_installed() -> None:
    kinds = [LoopsafeError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        assert "docs/" not in kind.hint


async def test_who_waits_for_a_connection_is_told_the_line_of_a_query_under_way(
    database: Database,
) -> None:
    narrow = Database(database.url, max_size=1, timeouts=Timeouts(acquire=0.2))

    await narrow.fetch_val("SELECT 1")  # then the next one is sent at once
    first = asyncio.create_task(ask_directly(narrow, SLOW[database.url.dialect]), name="report")
    await asyncio.sleep(0)
    with pytest.raises(AcquireTimeout) as caught:
        await narrow.fetch_val("SELECT 1")
    first.cancel()
    await asyncio.wait([first])
    await narrow.disconnect()
    (holder,) = caught.value.holders
    line = ask_directly.__code__.co_firstlineno + 1
    assert holder.startswith("report for ")
    assert holder.endswith(f" s, {__file__}:{line}")
    assert not caught.value.is_own


@pytest.mark.parametrize("block", ["session", "stream"])
async def test_who_waits_for_what_it_holds_itself_is_told_so(
    database: Database, block: str
) -> None:
    narrow = Database(database.url, max_size=1, timeouts=Timeouts(acquire=0.1))
    with pytest.raises(AcquireTimeout, match="the task that waits holds one itself") as caught:  # noqa: PT012
        if block == "session":
            async with narrow.session() as session:
                await session.execute(sa.text("SELECT 1"))
                await narrow.fetch_val("SELECT 1")
        else:
            query = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 2000) SELECT n FROM c"
            async with aclosing(narrow.iterate(query)) as rows:
                async for _ in rows:
                    await narrow.fetch_val("SELECT 1")
    assert not caught.value.retryable
    await narrow.disconnect()


@pytest.mark.parametrize("text", ["SELECT 1 WHERE 1 IN :ids", "SELECT 1 WHERE 1 IN (:ids)"])
async def test_a_list_where_no_server_takes_one_gets_the_cure(
    database: Database, text: str
) -> None:
    told = await failing(database.fetch_all(text, {"ids": [1, 2]}))

    assert f"query: {text}" in told
    assert "HINT: a list is = ANY(:ids) on PostgreSQL" in told


@pytest.mark.parametrize("query", ["SELECT 1 AS a", sa.select(sa.literal(1).label("a"))])
async def test_a_column_that_is_not_there_names_those_that_are(
    database: Database, query: Any
) -> None:
    row = await database.fetch_one(query)
    assert row is not None

    with pytest.raises(KeyError) as caught:
        row["b"]
    with pytest.raises(AttributeError, match=r"the row has no column 'b'; it has \['a'\]"):
        row.b  # noqa: B018

    assert caught.value.args == ("b",)
    is_asyncpgs = database.url.driver == "asyncpg" and isinstance(query, str)
    assert ("it has ['a']" in printed(caught.value)) is not is_asyncpgs  # see decision 0008


async def test_a_mysql_row_names_its_columns_too(mariadb_url: str) -> None:
    database = Database(mariadb_url)
    row = await database.fetch_one("SELECT 1 AS a")
    await database.disconnect()
    assert row is not None

    with pytest.raises(KeyError) as caught:
        row["b"]
    assert "it has ['a']" in printed(caught.value)


async def test_a_transaction_that_cannot_begin_tells_what_and_where(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    holder, other = (Database(f"{url}?timeout={seconds}") for seconds in (30, 0.1))
    impatient = Database(f"{url}?timeout=30", timeouts=Timeouts(statement=0.1))
    async with holder.transaction():
        for database, kind in ((other, LockTimeout), (impatient, StatementTimeout)):
            with pytest.raises(kind) as caught:
                async with database.transaction():
                    pass
            told = str(caught.value)
            assert "query: BEGIN\n" in told
            assert f"at {__file__}:" in told
            assert f"on {url}" in told


@pytest.mark.parametrize(
    "text",
    [
        "'it is 12:30 :ok', CAST(:a AS int)",
        """'{"day": "mon:fri", "all":true}', CAST(:a AS int)""",
        "1, -- not :this\n CAST(:a AS int)",
        "1, /* nor :that */ CAST(:a AS int)",
    ],
)
async def test_a_colon_in_a_literal_or_a_comment_is_no_parameter(
    database: Database, text: str
) -> None:
    row = await database.fetch_one(f"SELECT {text}", {"a": 7})
    assert row is not None
    assert row[1] == 7


async def test_a_cast_behind_a_parameter_is_no_parameter(postgres_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        database = Database(postgres_url.replace("postgresql", f"postgresql+{driver}", 1))
        assert await database.fetch_val("SELECT :a::int", {"a": 7}) == 7


async def test_a_block_without_async_and_a_call_without_await_are_named_by_python(
    database: Database,
) -> None:
    missing = r"does not support the context manager protocol"
    with pytest.raises(TypeError, match=missing), database.transaction():  # type: ignore[attr-defined]
        pass
    with pytest.warns(RuntimeWarning, match=r"'Database\.fetch_all' was never awaited"):
        database.fetch_all("SELECT 1")  # type: ignore[unused-coroutine]
