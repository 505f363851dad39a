"""A DatabaseURL is the text that it was given as, and its parts; options mean one thing by keyword and in the URL."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import sqlite3
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiosqlite
import pytest
import sqlalchemy as sa
from sqlalchemy import URL, make_url

from loopsafe_db import (
    Database,
    DatabaseURL,
    PoolLimits,
    Timeouts,
    configure,
    create_async_engine,
    get_database,
    register_driver,
)
from loopsafe_db.drivers.generic import GenericDriver
from loopsafe_db.engines.factory import connect_options, make_options
from loopsafe_db.errors import (
    ConfigurationError,
    ConnectError,
    InvalidSettingError,
    InvalidURLError,
    UnknownDriverError,
)
from tests.drivers.tls import TlsServer, tls_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopsafe_db.options import DatabaseOptions

FULL = "postgresql+asyncpg://ann:p%40ss@localhost:123/mydatabase?min_size=2&ssl=true"
TEXTS = (
    FULL,
    "postgresql://LocalHost/Name",
    "postgresql:///name?host=/var/run/postgresql",
    "postgresql://me@[::1]:5433/name",
    "postgresql://me:@localhost/name",
    "postgresql://localhost/my%20name",
    "postgres://me@localhost/name",
    "sqlite://",
    "sqlite:///my.db",
    "sqlite:////tmp/my.db?timeout=3",
    "mysql://me:p@localhost/name?charset=utf8mb4",
)
HIDDEN = (  # hunter2 stands where urlsplit() and SQLAlchemy read a password, or only one of them
    "postgresql://me:hunter2@host/db",
    "postgresql://me:hunter2@/db?host=/var/run",
    "postgresql://me:/hunter2@host/db",
    "postgresql://me:?hunter2@host/db",
    "postgresql://me:#hunter2@host/db",
    "postgresql://me:[hunter2@host/db",
    "postgresql://me:%68unter2@host/db",
    "postgres://me:hunter2@[::1]:5432/db?max_size=3",
)


# -- the text


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_as_it_is(text: str) -> None:
    url = DatabaseURL(text)
    assert f"{url}" == str(url) == str(Database(text).url) == text
    assert Database(url).url == Database(text).url == url == text
    assert url != f"{text}x"
    assert {url: 1}[DatabaseURL(url)] == {text: 1}[url] == 1  # type: ignore[index]


@pytest.mark.parametrize("text", TEXTS)
def test_copies_are_the_same(text: str) -> None:
    for url in (DatabaseURL(text), DatabaseURL(text).set(port=1), DatabaseURL.create("sqlite")):
        for same in (pickle.loads(pickle.dumps(url)), copy.copy(url), copy.deepcopy(url)):
            assert type(same) is DatabaseURL
            assert (same, tuple(same), str(same)) == (url, tuple(url), str(url))
    assert str(pickle.loads(pickle.dumps(Database(text))).url) == text


@pytest.mark.parametrize("text", TEXTS)
def test_sqlalchemy_has_its_own_parts(text: str) -> None:
    url, plain = DatabaseURL(text), make_url(text.replace("postgres:", "postgresql:"))
    assert make_url(url) is url
    assert url.drivername == plain.drivername
    assert url.query == plain.query
    assert (url == DatabaseURL(plain)) == (str(url) == str(DatabaseURL(plain)))
    if text.startswith("postgres:"):
        assert url != make_url(text)
        assert url.scheme == "postgres"
    elif "%" not in (plain.database or ""):  # SQLAlchemy 2.0 decodes no database's name
        assert url == plain
        assert plain == url
        assert not url != plain  # noqa: SIM202 (its own method)


@pytest.mark.parametrize("text", TEXTS)
def test_what_sqlalchemy_makes_of_it_has_a_text_that_says_the_same(text: str) -> None:
    changed = DatabaseURL(text).set(database="x y?z#%/ä").update_query_dict({"mine": "a&b"})
    again = DatabaseURL(str(changed))
    assert type(changed) is DatabaseURL
    assert again.database == "x y?z#%/ä"
    assert again.query["mine"] == again.options["mine"] == "a&b"
    assert tuple(again) == tuple(changed)


def test_a_plain_url_becomes_one() -> None:
    plain = URL.create("postgresql", "me", "p@ss", "host", 1, "name")
    url = DatabaseURL(plain)
    assert str(url) == "postgresql://me:p%40ss@host:1/name"
    assert url == plain
    assert str(DatabaseURL(plain.set(drivername="postgres"))).startswith("postgres://me")


def test_the_name_of_a_database_is_decoded() -> None:
    assert DatabaseURL("postgresql://localhost/my%20name").database == "my name"
    arguments = connect_options(make_options("sqlite:///my%20file.db", {}))[1].arguments
    assert arguments["database"] == os.path.abspath("my file.db")


# -- its parts

PARTS: list[tuple[str, dict[str, Any]]] = [
    (
        FULL,
        {
            "scheme": "postgresql+asyncpg",
            "dialect": "postgresql",
            "driver": "asyncpg",
            "username": "ann",
            "password": "p@ss",
            "hostname": "localhost",
            "port": 123,
            "database": "mydatabase",
            "options": {"min_size": "2", "ssl": "true"},
            "netloc": "ann:p%40ss@localhost:123",
            "userinfo": b"ann:p%40ss",
        },
    ),
    ("sqlite:////tmp/my.db", {"database": "/tmp/my.db", "driver": "", "hostname": None}),
    ("postgresql:///x?host=/run", {"hostname": "/run", "netloc": "", "userinfo": None}),
    ("postgresql:///x?unix_sock=/run", {"hostname": "/run"}),
    ("postgresql://u@[::1]:5/x", {"hostname": "::1", "port": 5, "userinfo": b"u"}),
    ("postgresql://u:a/b@h/x", {"hostname": "h", "password": "a/b", "netloc": "u:a%2Fb@h"}),
]


@pytest.mark.parametrize(("text", "parts"), PARTS, ids=lambda value: str(value)[:40])
def test_it_has_parts(text: str, parts: dict[str, Any]) -> None:
    url = DatabaseURL(text)
    assert {name: getattr(url, name) for name in parts} == parts


REPLACED: list[tuple[str, dict[str, Any], str]] = [
    (FULL, {"database": "other"}, FULL.replace("mydatabase", "other")),
    (FULL, {"driver": "psycopg"}, FULL.replace("asyncpg", "psycopg")),
    (FULL, {"driver": None}, FULL.replace("+asyncpg", "")),
    (FULL, {"dialect": "mysql"}, FULL.replace("postgresql", "mysql")),
    (FULL, {"hostname": "db", "port": 5}, FULL.replace("localhost:123", "db:5")),
    (FULL, {"hostname": "::1"}, FULL.replace("localhost", "[::1]")),
    (FULL, {"port": None}, FULL.replace(":123", "")),
    (FULL, {"username": "b:b"}, FULL.replace("ann", "b%3Ab")),
    (FULL, {"password": "a:b/c@d%2F"}, FULL.replace("p%40ss", "a:b%2Fc%40d%2F")),
    (FULL, {"password": None}, FULL.replace(":p%40ss", "")),
    (FULL, {"query": ""}, FULL.partition("?")[0]),
    ("postgresql:///x?host=/run", {"username": "me"}, "postgresql://me@/x?host=/run"),
    ("postgres://h/x", {"database": "a?b#c"}, "postgres://h/a%3Fb%23c"),
    ("postgresql://h/x", {"database": "a@b"}, "postgresql://h/a%40b"),
    ("sqlite:///my", {"database": "a@b"}, "sqlite:///a@b"),
    ("sqlite:///my", {"database": "my_test"}, "sqlite:///my_test"),
    ("sqlite:////tmp/my", {"database": "/tmp/my_test"}, "sqlite:////tmp/my_test"),
]


@pytest.mark.parametrize(("text", "changes", "expected"), REPLACED, ids=str)
def test_parts_are_replaced(text: str, changes: dict[str, Any], expected: str) -> None:
    replaced = DatabaseURL(text).replace(**changes)
    assert type(replaced) is DatabaseURL
    assert str(replaced) == expected


def test_what_is_no_part_is_not_replaced() -> None:
    with pytest.raises((TypeError, ValueError), match="nothing"):
        DatabaseURL(FULL).replace(nothing="x")


# -- what is not shown, and what cannot be


@pytest.mark.parametrize("text", HIDDEN)
def test_no_password_is_shown(text: str) -> None:
    url, database = DatabaseURL(text), Database(text)
    assert url.password is not None
    assert "hunter2" in url.password
    shown = f"{url!r}{url.obscure_password}{url.set(port=1)!r}{database!r}{database.url!r}"
    assert "unter2" not in shown
    assert "unter2" not in f"{database.engine!r}{database.engine.url}"


def test_a_repr_is_that_of_databases() -> None:
    text = "postgresql://u:p@localhost/name"
    assert repr(DatabaseURL(text)) == f"DatabaseURL({text.replace(':p@', ':********@')!r})"
    assert repr(DatabaseURL("sqlite:///my.db")) == "DatabaseURL('sqlite:///my.db')"


@pytest.mark.parametrize("given", [None, 5, b"sqlite://", ("postgresql", "name")])
def test_it_is_made_of_a_text_or_a_url(given: Any) -> None:
    with pytest.raises(TypeError, match="a text or a URL"):
        DatabaseURL(given)
    for make in (Database, create_async_engine):
        with pytest.raises(InvalidURLError, match="a text or a URL"):
            make(given)


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        (None, "is the environment variable set"),
        (b"sqlite://:hunter2@", "not bytes: give its text"),
    ],
)
def test_what_is_no_url_is_told_with_the_cure_and_not_shown(given: Any, cure: str) -> None:
    with pytest.raises(InvalidURLError, match=cure) as caught:
        Database(given)
    assert "hunter2" not in f"{caught.value!r}"


@pytest.mark.parametrize("text", ["me:hunter2@host", "x://me:h@unter2@h/x", "x://u:hunter2@h:p/x"])
def test_what_cannot_be_read_is_not_shown(text: str) -> None:
    with pytest.raises(InvalidURLError) as caught:
        DatabaseURL(text)
    assert "unter2" not in f"{caught.value}{caught.value!r}{caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("postgresql://u:p@h/a%40b", "a@b"),
        ("postgresql://u:p@h/x?application_name=me@host", "x"),
        (URL.create("postgresql", "u", "p", "h", database="a@b"), "a@b"),
        ("sqlite:////home/me@host/a@b/x.db", "/home/me@host/a@b/x.db"),
        ("sqlite:///me@host/x.db", "me@host/x.db"),
    ],
    ids=str,
)
def test_an_at_that_ends_no_password_is_taken(url: str | URL, database: str) -> None:
    made = DatabaseURL(url)
    assert made.database == DatabaseURL(str(made)).database == database
    assert Database(url).url.database == database


def test_a_url_that_was_read_wrongly_before_it_came_here_is_not_shown() -> None:
    read = make_url("postgresql://ann:hunt@er2/Hunter2@host:5432/app")
    with pytest.raises(InvalidURLError, match="%40, and a / is %2F") as caught:
        Database(read)
    assert "unter2" not in f"{caught.value!r}"


def test_a_dialect_that_nobody_knows_is_a_matter_of_the_handle() -> None:
    assert DatabaseURL("nosuch://localhost/x").dialect == "nosuch"
    with pytest.raises(UnknownDriverError):
        Database("nosuch://localhost/x")
    assert DatabaseURL("postgresql://localhost").replace(database="x").database == "x"


# -- options: by keyword, and in the URL

POSTGRESQL, PSYCOPG, SQLITE = "postgresql://h/x", "postgresql+psycopg://h/x", "sqlite:///x.db"
MYSQL = "mysql+aiomysql://h/x"
EVERY = (POSTGRESQL, PSYCOPG, SQLITE, MYSQL)


def of_pool(options: DatabaseOptions) -> dict[str, Any]:
    pool = options.pool
    return {
        "most": pool.max_connections,
        "least": pool.min_connections,
        "idle": pool.idle_timeout,
        "life": pool.recycle,
        "statement": options.timeouts.statement,
    }


@pytest.mark.parametrize("url", EVERY)
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_size", 3, {"most": 3}),
        ("min_size", 2, {"least": 2}),
        ("max_inactive_connection_lifetime", 2.5, {"idle": 2.5}),
        ("max_inactive_connection_lifetime", 0, {"idle": None}),
        ("max_lifetime", 3600, {"life": 3600}),
        ("max_lifetime", 0, {"life": None}),
        ("command_timeout", 0.5, {"statement": 0.5}),
        ("max_queries", 7, {}),
    ],
)
def test_the_pool_is_told_either_way(
    url: str, name: str, value: float, expected: dict[str, Any]
) -> None:
    default = of_pool(make_options(url, {}))
    keywords: Any = {name: value}
    for options in (make_options(url, keywords), make_options(f"{url}?{name}={value}", {})):
        assert of_pool(options) == {**default, **expected}
        arguments = connect_options(options)[1].arguments
        assert name not in str({**arguments, "application_name": ""})


def test_a_keyword_goes_before_the_url_and_both_before_the_rest() -> None:
    url = f"{POSTGRESQL}?max_size=3&min_size=3&command_timeout=3"
    rest: Any = {"pool": PoolLimits(20, recycle=7.0), "timeouts": Timeouts(4, 5, 6)}
    assert of_pool(make_options(POSTGRESQL, rest))["most"] == 20
    options = make_options(url, rest)
    assert options.pool == PoolLimits(3, recycle=7.0, min_connections=3)
    assert options.timeouts == Timeouts(4, 5, 3)
    told: Any = {**rest, "max_size": 1, "min_size": 0, "command_timeout": 1}
    options = make_options(url, told)
    assert options.pool == PoolLimits(1, recycle=7.0)
    assert options.timeouts == Timeouts(4, 5, 1)
    assert make_options(url, {"max_size": None}).pool.max_connections == 3


CONNECTING: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    (POSTGRESQL, {"ssl": True}, "", {"ssl": "verify-full", "files": {"sslrootcert": "system"}}),
    (POSTGRESQL, {"ssl": False}, "", {"ssl": "disable", "files": {}}),
    (POSTGRESQL, {"ssl": "require"}, "ssl=true", {"ssl": "require", "files": {}}),
    (POSTGRESQL, {"ssl": False}, "sslmode=require", {"ssl": "disable"}),
    (POSTGRESQL, {}, "ssl=True", {"ssl": "verify-full", "files": {"sslrootcert": "system"}}),
    (POSTGRESQL, {}, "ssl=false", {"ssl": "disable", "files": {}}),
    (POSTGRESQL, {}, "ssl=true&sslmode=require", {"ssl": "require", "files": {}}),
    (
        POSTGRESQL,
        {},
        "ssl=true&sslrootcert=a",
        {"ssl": "verify-full", "files": {"sslrootcert": "a"}},
    ),
    (POSTGRESQL, {"statement_cache_size": 0}, "", {"prepares": False}),
    (POSTGRESQL, {}, "statement_cache_size=0", {"prepares": False}),
    (POSTGRESQL, {"statement_cache_size": 9}, "statement_cache_size=0", {"prepares": True}),
    (POSTGRESQL, {"statement_cache_size": 9}, "", {"statement_cache_size": 9}),
    (PSYCOPG, {"ssl": True}, "", {"sslmode": "verify-full", "sslrootcert": "system"}),
    (PSYCOPG, {"ssl": False}, "sslmode=require", {"sslmode": "disable"}),
    (PSYCOPG, {"statement_cache_size": 0}, "", {"prepare_threshold": None}),
    (SQLITE, {"timeout": 3.5}, "timeout=9", {"patience": 3.5}),
    (SQLITE, {"timeout": 0}, "", {"patience": 0.0}),
    (SQLITE, {"cached_statements": 10}, "", {"keywords": {"cached_statements": 10}}),
    (SQLITE, {"detect_types": 1}, "detect_types=2", {"keywords": {"detect_types": 1}}),
    (SQLITE, {}, "detect_types=2", {"keywords": {"detect_types": 2}}),
    (SQLITE, {"uri": True}, "", {"database": os.path.abspath("x.db"), "keywords": {}}),
]


@pytest.mark.parametrize(("url", "keywords", "query", "expected"), CONNECTING, ids=str)
def test_the_driver_is_told_either_way(
    url: str, keywords: Any, query: str, expected: dict[str, Any]
) -> None:
    arguments = connect_options(make_options(f"{url}?{query}", keywords))[1].arguments
    assert {name: arguments.get(name, "nothing") for name in expected} == expected


@pytest.mark.parametrize(
    ("keywords", "query", "seconds"),
    [
        ({"timeout": 3}, "", 3),
        ({"timeout": 3}, "timeout=4&connect_timeout=5", 3),
        ({}, "timeout=4", 4),
        ({}, "timeout=4&connect_timeout=5", 5),
        ({"timeouts": Timeouts(connect=6)}, "", 6),
    ],
    ids=str,
)
def test_a_connection_may_take_so_long(keywords: Any, query: str, seconds: float) -> None:
    for url in (POSTGRESQL, PSYCOPG):
        _, options = connect_options(make_options(f"{url}?{query}", keywords))
        assert options.timeout == seconds
        assert "timeout" not in options.arguments
    query = query.replace("timeout=4&", "")  # aiomysql's own, if there were one
    if "timeout=4" not in query:
        assert connect_options(make_options(f"{MYSQL}?{query}", keywords))[1].timeout == seconds


@pytest.mark.parametrize(
    ("url", "keywords", "said"),
    [
        (POSTGRESQL, {"max_size": 0}, "max_size must be a whole number, 1 or more"),
        (POSTGRESQL, {"max_size": 2.5}, "max_size must be"),
        (POSTGRESQL, {"min_size": -1}, "min_size must be"),
        (POSTGRESQL, {"min_size": 5, "max_size": 4}, "min_connections must be"),
        (POSTGRESQL, {"command_timeout": 0}, "command_timeout must be more than 0 seconds"),
        (POSTGRESQL, {"command_timeout": float("nan")}, "command_timeout must be"),
        (POSTGRESQL, {"max_inactive_connection_lifetime": float("inf")}, "lifetime must be"),
        (POSTGRESQL, {"timeout": 0}, "^.LDB205. timeout must be more than 0 seconds"),
        (POSTGRESQL, {"ssl": "on"}, "ssl must be one of"),
        (POSTGRESQL, {"statement_cache_size": -1}, "statement_cache_size must be"),
        (POSTGRESQL, {"cached_statements": 1}, "cached_statements is not for postgresql"),
        pytest.param(
            PSYCOPG, {"ssl": ssl.create_default_context()}, "sslrootcert", id="psycopg-context"
        ),
        (SQLITE, {"ssl": True}, "ssl is not for sqlite"),
        pytest.param(
            SQLITE, {"ssl": ssl.create_default_context()}, "ssl is for", id="sqlite-context"
        ),
        (SQLITE, {"detect_types": "all"}, "detect_types must be"),
        (MYSQL, {"ssl": True}, "ssl is not for mysql"),
        (MYSQL, {"statement_cache_size": 0}, "statement_cache_size is not for mysql"),
    ],
    ids=str,
)
def test_a_keyword_that_cannot_be_is_a_wrong_setting(url: str, keywords: Any, said: str) -> None:
    with pytest.raises(InvalidSettingError, match=said):
        Database(url, **keywords)


@pytest.mark.parametrize(
    ("url", "query"),
    [
        (POSTGRESQL, "max_size=none"),
        (POSTGRESQL, "command_timeout=0"),
        (POSTGRESQL, "statement_cache_size=x"),
        (POSTGRESQL, "cached_statements=1"),
        (SQLITE, "ssl=true"),
        (SQLITE, "detect_types=x"),
        (SQLITE, "timeout=soon"),
        (MYSQL, "min_size=x"),
    ],
)
def test_a_name_in_the_url_that_cannot_be_is_a_wrong_url(url: str, query: str) -> None:
    with pytest.raises(InvalidURLError, match=query.partition("=")[0]):
        Database(f"{url}?{query}")


@pytest.mark.parametrize("url", EVERY)
def test_an_unknown_keyword_is_a_type_error(url: str) -> None:
    keywords: Any = {"no_such_option": 1}
    with pytest.raises(TypeError, match="no_such_option"):
        Database(url, **keywords)
    for name in ("connecting", "ssl_context", "keywords"):  # fields of ours, and no options
        with pytest.raises(TypeError, match=name):
            make_options(url, {name: {}})  # type: ignore[misc]


def test_what_the_keywords_were_is_kept() -> None:
    options = make_options(POSTGRESQL, {"min_size": 1, "max_size": 3, "force_rollback": True})
    assert options.keywords == {"min_size": 1, "max_size": 3}
    assert options.force_rollback


@pytest.mark.parametrize(
    ("variables", "most"),
    [
        ({}, 3),
        ({"MAX_CONNECTIONS": "7"}, 3),
        ({"FLEET_CONNECTIONS": "8", "FLEET_WORKERS": "2"}, 3),
        ({"FLEET_CONNECTIONS": "4", "FLEET_WORKERS": "2"}, 2),
    ],
    ids=str,
)
def test_the_environments_url_takes_them_too(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], most: int
) -> None:
    name = f"options {most} {len(variables)} {sorted(variables.values())}"
    prefix = "LOOPSAFE_DB_" + "".join(c if c.isalnum() else "_" for c in name).upper()
    monkeypatch.setenv(f"{prefix}_URL", f"{POSTGRESQL}?max_size=3&min_size=2&command_timeout=9")
    monkeypatch.setenv(f"{prefix}_STATEMENT_TIMEOUT", "5")
    for variable, value in variables.items():
        monkeypatch.setenv(f"{prefix}_{variable}", value)
    options = get_database(name)._options  # noqa: SLF001 (no public way shows it)
    assert (options.pool.max_connections, options.pool.min_connections) == (most, 2)
    assert options.timeouts.statement == 9
    assert configure(POSTGRESQL, name="options", max_size=4).url == POSTGRESQL


# -- what they do


async def test_a_handle_counts_its_connections(postgres_url: str) -> None:
    database = Database(f"{postgres_url}?max_size=1", max_size=2, min_size=1)
    async with database:
        query = "SELECT pg_backend_pid() FROM pg_sleep(0.05)"
        pids = await asyncio.gather(*(database.fetch_val(query) for _ in range(6)))
        assert len(set(pids)) == 2


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_nothing_is_prepared_if_nothing_may_be(postgres_url: str, driver: str) -> None:
    url = DatabaseURL(postgres_url).replace(driver=driver)
    prepared = "SELECT count(*) FROM pg_prepared_statements"
    for size, least in ((0, 0), (100, 1)):
        async with Database(url, statement_cache_size=size, max_size=1) as database:
            for _ in range(7):
                assert await database.fetch_val("SELECT CAST(:n AS int)", {"n": 1}) == 1
                assert await database.fetch_val(sa.select(sa.literal(1))) == 1
            count = await database.fetch_val(prepared)
        assert (count == 0) == (least == 0), (size, count)


SETTING = "SHOW application_name"


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(
    ("options", "query", "expected"),
    [
        ({"server_settings": {"application_name": "it is {pid}"}}, "", "it is {pid}"),
        (
            {"server_settings": {"application_name": "set"}, "application_name": "named"},
            "",
            "set",
        ),
        ({"server_settings": {"application_name": "set"}}, "application_name=url", "url"),
        ({"server_settings": {"work_mem": "8MB"}, "application_name": "named"}, "", "named"),
        (
            {"server_settings": {"application_name": "set"}, "pgbouncer": "transaction"},
            "",
            "set",
        ),
    ],
    ids=str,
)
async def test_a_session_is_called(
    postgres_url: str, driver: str, options: Any, query: str, expected: str
) -> None:
    url = DatabaseURL(postgres_url).replace(driver=driver, query=query)
    async with Database(url, **options) as database:
        assert await database.fetch_val(SETTING) == expected


async def test_a_new_connection_is_initialised_once(database: Database) -> None:
    seen: list[Any] = []
    sql = "PRAGMA user_version" if database.url.dialect == "sqlite" else SETTING

    async def init(raw: Any) -> None:
        seen.append(raw)
        await raw.execute(sql.replace("SHOW", "SET") + " = 7")

    async with Database(database.url, init=init, max_size=1) as other:
        assert str(await other.fetch_val(sql)) == "7"
        async with other.engine.connect() as connection:
            assert str(await connection.scalar(sa.text(sql))) == "7"
    assert len(seen) == 1


async def test_a_connection_of_the_generic_driver_is_initialised_too(tmp_path: Path) -> None:
    register_driver("sqlite+initialised", GenericDriver("sqlite+aiosqlite"))

    async def init(raw: Any) -> None:
        assert type(raw) is aiosqlite.Connection
        await raw.execute("PRAGMA user_version = 7")

    async with Database(f"sqlite+initialised:///{tmp_path}/a.db", init=init) as database:
        assert await database.fetch_val("PRAGMA user_version") == 7


async def test_an_initialisation_that_fails_leaves_nothing(database: Database) -> None:
    answers = iter([ZeroDivisionError("once"), asyncio.CancelledError("twice"), None])
    opened: list[Any] = []

    async def init(raw: Any) -> None:
        opened.append(raw)
        if (error := next(answers)) is not None:
            raise error

    other = Database(database.url, init=init, max_size=1)
    with pytest.raises(ZeroDivisionError, match="once"):
        await other.fetch_val("SELECT 1")
    with pytest.raises(asyncio.CancelledError, match="twice"):
        await other.fetch_val(sa.select(1))
    assert await other.fetch_val("SELECT 1") == 1
    stats = other.stats()
    assert (stats.idle, stats.in_use, stats.opened, stats.terminated) == (1, 0, 3, 2)
    assert [other._pool().driver.is_closed(raw) for raw in opened] == [True, True, False]  # noqa: SLF001
    await other.disconnect()


async def test_a_codec_of_the_users_stays(postgres_url: str) -> None:
    async def init(connection: Any) -> None:
        await connection.set_type_codec(
            "jsonb", schema="pg_catalog", encoder=json.dumps, decoder=lambda text: ("mine", text)
        )

    async with Database(postgres_url, init=init) as database:
        row = await database.fetch_one(
            "SELECT CAST(:it AS jsonb), CAST('[1]' AS json)", {"it": {"a": 1}}
        )
        assert row is not None
        assert tuple(row) == (("mine", '{"a": 1}'), [1])


@pytest.fixture(scope="module")
def server() -> Iterator[TlsServer]:
    with tls_server() as server:
        yield server


def encryption_of(url: str | DatabaseURL, **options: Any) -> str:
    async def connect() -> str:
        async with asyncio.timeout(10), Database(url, **options) as database:
            query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            return "tls" if await database.fetch_val(query) else "clear"

    try:
        return asyncio.run(connect())
    except ConnectError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_true_is_a_certificate_that_the_system_trusts_for_that_host(
    server: TlsServer, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = DatabaseURL(server.url).replace(driver=driver)
    server.use("good")
    assert encryption_of(url, ssl=True).startswith("refused")
    assert encryption_of(f"{url}?ssl=true").startswith("refused")
    assert encryption_of(f"{url}?ssl=true", ssl="require") == "tls"
    assert encryption_of(f"{url}?sslmode=require", ssl=False) == "clear"
    monkeypatch.setenv("SSL_CERT_FILE", server.ca)  # the system's authorities, to OpenSSL
    assert encryption_of(url, ssl=True) == "tls"
    server.use("wrong host")
    assert encryption_of(url, ssl=True).startswith("refused")


def test_a_context_of_the_users_decides_alone(
    server: TlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql" / "root.crt").write_bytes(Path(server.ca).read_bytes())
    url = f"{server.url}?sslmode=disable"
    server.use("good")
    trusting = ssl.create_default_context(cafile=server.ca)
    assert encryption_of(url, ssl=trusting) == "tls"
    assert encryption_of(url, ssl=ssl.create_default_context()).startswith("refused")
    server.use("unknown")
    assert encryption_of(url, ssl=trusting).startswith("refused")
    blind = ssl.create_default_context()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    assert encryption_of(url, ssl=blind) == "tls"
    server.use("none")
    assert encryption_of(url, ssl=blind).startswith("refused")


async def test_a_memory_with_a_name_outlives_idle_connections() -> None:
    url = "sqlite:///file:outlives?mode=memory&cache=shared"
    database = Database(url, uri=True, max_inactive_connection_lifetime=0.05, max_size=5)
    await database.execute("CREATE TABLE t (x INTEGER)")
    await asyncio.gather(*(database.execute("INSERT INTO t VALUES (1)") for _ in range(9)))
    await asyncio.sleep(0.2)
    assert await database.fetch_val("SELECT count(*) FROM t") == 9
    await database.disconnect()


async def test_sqlites_types_are_detected(tmp_path: Path) -> None:
    sqlite3.register_converter("shout", lambda blob: blob.decode().upper())
    url = f"sqlite:///{tmp_path}/a.db?detect_types={sqlite3.PARSE_DECLTYPES}"
    async with Database(url) as database:
        await database.execute("CREATE TABLE t (it shout)")
        await database.execute("INSERT INTO t VALUES ('low')")
        assert await database.fetch_val("SELECT it FROM t") == "LOW"


def test_a_configuration_error_is_what_a_wrong_handle_raises() -> None:
    for wrong in ("nosuch://h/x", None, "postgresql://h"):
        with pytest.raises(ConfigurationError):
            Database(wrong)  # type: ignore[arg-type]
