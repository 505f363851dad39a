"""Bad input gives one clear error, with code and cure; no error shows a password, each survives a pickle."""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import pickle
import re
import sys
import threading
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, LoopKey, PoolLimits, Timeouts, configure, errors, get_database
from loopsafe_db.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    InvalidSettingError,
    InvalidURLError,
    LoopsafeError,
    MissingDriverError,
    MissingURLError,
    StatementTimeout,
    UnknownDriverError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from sqlalchemy import URL

    from loopsafe_db import Connection

SAMPLES: dict[str, object] = {
    "what": "it",
    "where": "there",
    "owner": LoopKey(1, 2),
    "caller": LoopKey(3, 4),
    "taken_at": "a.py:1",
    "user": "task",
    "library": "Trio",
    "name": "default",
    "variables": ("A",),
    "driver": "d",
    "known": ("a",),
    "package": "p",
    "extra": "e",
    "waited": 1.0,
    "waiting": 3,
    "size": 2,
    "holder": "a task",
    "holders": ("x",),
    "target": "t",
    "reason": "r",
    "timeout": 1.5,
    "text": "a text",
}
AT: Any = partial(Database, "postgresql://h/x")
TREE = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, LoopsafeError)
]


def sample(kind: type[LoopsafeError]) -> LoopsafeError:
    """Make an error of a kind."""
    names = [name for name in inspect.signature(kind.__init__).parameters if name in SAMPLES]
    return kind(*(SAMPLES[name] for name in names))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_survives_a_pickle(kind: type[LoopsafeError]) -> None:
    error = sample(kind)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))
    assert str(error).startswith(f"[{kind.code}] ")


@pytest.mark.parametrize("kind", TREE)
def test_the_text_of_every_error_is_what_a_queue_reports(kind: type[LoopsafeError]) -> None:
    error = sample(kind)
    for one in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert one.args == (str(one),)


def test_every_code_is_used_once() -> None:
    codes = [kind.code for kind in TREE]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("not an url: hunter2", InvalidURLError),
        ("postgresql://u:hunter2@host", InvalidURLError),
        ("postgresql://u:hunter2@host/db?sslmod=require", InvalidURLError),
        ("postgresql://u:hunter2@host/db?sslmode=hunter", InvalidURLError),
        ("oracle://u:hunter2@host/db", UnknownDriverError),
        ("postgresql+pg8000://u:hunter2@host/db", UnknownDriverError),
    ],
)
def test_a_wrong_url_is_refused_at_once(url: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        Database(url)
    assert "hunter2" not in f"{caught.value}{caught.value!r}"


def test_a_missing_package_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    monkeypatch.delitem(sys.modules, "loopsafe_db.drivers.aiosqlite", raising=False)
    with pytest.raises(MissingDriverError, match=r"pip install 'loopsafe-db\[sqlite\]'"):
        Database("sqlite:///file.db")


def test_no_url_names_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LOOPSAFE_DB_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingURLError, match=r"LOOPSAFE_DB_MISSING_URL"):
        get_database("missing")


def test_a_wrong_setting_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPSAFE_DB_WRONG_MAX_CONNECTIONS", "none")
    with pytest.raises(InvalidSettingError, match="LOOPSAFE_DB_WRONG_MAX_CONNECTIONS"):
        get_database("wrong")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"URL": "foo"}, "[LDB202] LOOPSAFE_DB_MINE_URL: not a database URL"),
        ({"URL": "oracle://h/x"}, "[LDB203] LOOPSAFE_DB_MINE_URL: no driver"),
        ({"URL": "postgresql://h/x?colour=red"}, "[LDB202] LOOPSAFE_DB_MINE_URL: unknown in"),
        ({"REPLICAS": "postgres//x"}, "[LDB202] LOOPSAFE_DB_MINE_REPLICAS: not a database URL"),
        ({"REPLICAS": "sqlite:// oracle://h/x"}, "[LDB203] LOOPSAFE_DB_MINE_REPLICAS: no driver"),
        ({"PGBOUNCER": "session"}, "[LDB205] LOOPSAFE_DB_MINE_PGBOUNCER: pgbouncer is for"),
        ({"SLOW_QUERY": "soon"}, "[LDB205] LOOPSAFE_DB_MINE_SLOW_QUERY: Input should be"),
        ({"FLEET_CONNECTIONS": "1", "FLEET_WORKERS": "2"}, "LOOPSAFE_DB_MINE_FLEET_CONNECTIONS=1"),
    ],
)
def test_what_cannot_be_in_the_environment_names_the_variable(
    variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"URL": "sqlite:///:memory:", **variables}.items():
        monkeypatch.setenv(f"LOOPSAFE_DB_MINE_{name}", value)
    with pytest.raises(ConfigurationError) as caught:
        get_database("mine")
    assert told in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("make", "given", "told"),
    [
        (
            Timeouts,
            {"statement": "3"},
            "timeout statement must be more than 0 seconds, not '3' (str)",
        ),
        (Timeouts, {"connect": -1}, "timeout connect must be more than 0 seconds, not -1"),
        (Timeouts, {"acquire": math.nan}, "timeout acquire must be more than 0 seconds, not nan"),
        (PoolLimits, {"max_connections": "5"}, "must be a whole number, 1 or more, not '5' (str)"),
        (
            PoolLimits,
            {"max_connections": 2.5},
            "must be a whole number, 1 or more, not 2.5 (float)",
        ),
        (
            PoolLimits,
            {"max_connections": True},
            "must be a whole number, 1 or more, not True (bool)",
        ),
        (PoolLimits, {"idle_timeout": "3"}, "must be more than 0 seconds, not '3' (str)"),
        (PoolLimits, {"max_waiting": -1}, "must be a whole number, 0 or more, not -1"),
        (PoolLimits, {"min_connections": None}, "must be a whole number, 0 or more, not None"),
        (AT, {"slow_query": "1"}, "must be seconds, 0 or more, not '1' (str)"),
        (AT, {"slow_acquire": -1}, "must be seconds, 0 or more, not -1"),
        (AT, {"server_settings": "x"}, 'takes server_settings={"search_path": "mine"}, not str'),
        (AT, {"application_name": 5}, 'takes application_name="worker {pid}", not int'),
        (AT, {"password": "hunter2"}, "takes password=a_function, not str"),
        (AT, {"init": 5}, "takes init=a_function, not int"),
        (AT().connection, {"timeout": "5"}, "must be more than 0 seconds, not '5' (str)"),
    ],
)
def test_an_option_of_another_kind_is_named_with_what_it_takes(
    make: Callable[..., object], given: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        make(**given)
    assert str(caught.value).startswith("[LDB205] ")
    assert told in str(caught.value)
    assert next(iter(given)) in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("number", [Fraction(7, 2), 5, math.inf])
def test_every_number_is_one(number: Any) -> None:
    assert Timeouts(statement=number).statement == number
    assert PoolLimits(idle_timeout=number).idle_timeout == number


@pytest.mark.parametrize("seconds", [math.inf, 1e12])
def test_who_never_tires_of_idle_connections_has_them(postgres_url: str, seconds: float) -> None:
    limits = PoolLimits(idle_timeout=seconds, recycle=seconds)
    database = Database(postgres_url, pool=limits, timeouts=Timeouts(seconds, seconds, seconds))
    for _ in range(2):
        asyncio.run(database.fetch_val("SELECT 1", timeout=seconds))
    assert database.stats().opened == 1
    for each in [each for each in threading.enumerate() if each.name == "loopsafe_db reaper"]:
        each.join(0.2)
        assert each.is_alive()


async def by_text(database: Database | Connection, limit: Any) -> None:
    await database.fetch_val("SELECT 1", timeout=limit)


async def by_clause(database: Database | Connection, limit: Any) -> None:
    await database.fetch_all(sa.select(sa.literal(1)), timeout=limit)


async def by_many(database: Database | Connection, limit: Any) -> None:
    await database.execute_many("SELECT CAST(:a AS int)", [{"a": 1}, {"a": 2}], timeout=limit)


@pytest.mark.parametrize("ask", [by_text, by_clause, by_many])
@pytest.mark.parametrize("left", [-1, -0.5, -math.inf])
async def test_a_limit_that_is_over_already_is_a_time_out(
    database: Database, ask: Callable[[Database | Connection, Any], Awaitable[None]], left: float
) -> None:
    with pytest.raises(StatementTimeout, match="within 0 s"):
        await ask(database, left)
    async with database.connection() as connection:
        with pytest.raises(StatementTimeout, match="within 0 s"):
            await ask(connection, left)
    await ask(database, 60)


@pytest.mark.parametrize("ask", [by_text, by_clause, by_many])
@pytest.mark.parametrize("wrong", ["5", True, math.nan, b"x"])
async def test_a_limit_that_is_no_number_is_refused_before_anything_is_asked(
    database: Database, ask: Callable[[Database | Connection, Any], Awaitable[None]], wrong: Any
) -> None:
    with pytest.raises(InvalidSettingError, match="timeout must be a number of seconds, not"):
        await ask(database, wrong)
    async with database.connection() as connection:
        with pytest.raises(InvalidSettingError, match="timeout must be a number of seconds, not"):
            await ask(connection, wrong)
        await ask(connection, 60)
    await ask(database, 60.0)


@pytest.mark.parametrize("name", ["LOOPSAFE_DB_URL", "DATABASE_URL"])
def test_what_cannot_be_read_names_the_variable_that_a_platform_sets_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopsafe_db.default._handles", {})
    for other in ("LOOPSAFE_DB_URL", "DATABASE_URL"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "foo")
    with pytest.raises(InvalidURLError, match=rf"\[LDB202\] {name}: not"):
        get_database()


def test_the_password_is_masked_and_a_named_handle_pickles_without_it() -> None:
    database = configure("postgresql://u:hunter2@host/db", name="masked")
    assert "hunter2" not in f"{database!r}{database.url!r}"
    assert b"hunter2" not in pickle.dumps(database)
    assert pickle.loads(pickle.dumps(database)) is database


def asked(url: URL) -> Exception:
    with pytest.raises(ConnectError) as caught:
        asyncio.run(Database(url).fetch_val("SELECT 1"))
    return caught.value


def test_a_wrong_password_is_not_printed(postgres_url: str) -> None:
    error = asked(Database(postgres_url).url.set(password="hunter2"))
    assert isinstance(error, AuthenticationError)
    assert not re.search("hunter2", f"{error}{error!r}{error.__cause__!r}")


def test_no_server_of_the_wanted_kind_is_a_connect_error(postgres_url: str) -> None:
    url = Database(postgres_url).url.update_query_dict({"target_session_attrs": "standby"})
    assert "LDB401" in str(asked(url))


def test_a_refused_connection_says_where_to(postgres_url: str) -> None:
    url = Database(postgres_url).url.set(port=1)
    assert "127.0.0.1:1/" in str(asked(url.update_query_dict({"connect_timeout": "0.2"})))
