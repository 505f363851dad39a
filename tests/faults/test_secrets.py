"""No error shows a password: not in its text, and not by a variable of ours in a traceback that shows variables."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

import loopsafe_db
from loopsafe_db import Database, LoopsafeError, Timeouts, Token, configure, get_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    from loopsafe_db.testing.servers import PostgresServer

SECRET = "zebra9quartz"
OURS = os.path.dirname(loopsafe_db.__file__) + os.sep
DRIVERS = ("postgresql+asyncpg", "postgresql+psycopg", "mysql+aiomysql", "mysql+asyncmy")
MISTAKES = {
    "a bad port": "{driver}://ann:{secret}@nowhere:port/app",
    "a second @": "{driver}://ann:{secret}@{secret}@nowhere@there/app",
    "an @ and a slash": "{driver}://ann:{secret}@{secret}/{secret}@{secret}@nowhere/app",
    "an @ and a slash, no database": "{driver}://ann:x@{secret}/{secret}@nowhere",
    "an @ and a question mark": "{driver}://ann:x@{secret}?{secret}=1@nowhere/app",
    "no host before it": "{driver}://ann:x@/{secret}@nowhere/app",
    "a slash in the user": "{driver}://an/n:{secret}@nowhere/app",
    "three slashes": "{driver}:///ann:{secret}@nowhere/app",
    "an unknown name in the query": "{driver}://ann:{secret}@nowhere/app?colour=red",
    "a password in the query": "{driver}://ann@nowhere/app?password={secret}",
    "a bad value in the query": "{driver}://ann:{secret}@nowhere/app?connect_timeout=never",
    "an unknown driver": "{driver}x://ann:{secret}@nowhere/app",
    "a control character": "{driver}://ann:{secret}@nowhere/a%01pp",
    "no driver": "{secret}@nowhere/app",
}


def frames(error: BaseException | None) -> Iterator[FrameType]:
    """Give every frame of an error, and of those that it came of."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            yield frame
        yield from frames(error.__cause__)
        error = error.__context__


def telling(error: BaseException) -> list[str]:
    """Name what shows the secret: a text of the error, or a variable of ours."""
    shown = {"str": str(error), "repr": repr(error), "args": repr(error.args)}
    shown["vars"], shown["pickled"] = (
        repr(vars(error)),
        repr(pickle.loads(pickle.dumps(error)).args),
    )
    for frame in frames(error):
        if frame.f_code.co_filename.startswith(OURS):
            for name, value in frame.f_locals.items():
                shown[f"{frame.f_code.co_qualname}: {name}"] = _repr(value)
    return [name for name, text in shown.items() if SECRET in text.lower()]


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except AttributeError:  # half made
        return ""


def caught(do: Callable[[], object]) -> LoopsafeError:
    with pytest.raises(LoopsafeError) as found:
        do()
    return found.value


@pytest.mark.parametrize("driver", [*DRIVERS, "sqlite"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_url_shows_nothing(
    driver: str, mistake: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    if (driver, mistake) == ("sqlite", "three slashes"):
        pytest.skip("that is the path of a file")
    url = MISTAKES[mistake].format(driver=driver, secret=SECRET)
    monkeypatch.setenv("LOOPSAFE_DB_BROKEN_URL", url)
    ways: list[Callable[[], object]] = [
        lambda: Database(url),
        lambda: configure(url, name="broken"),
        lambda: get_database("broken"),
        lambda: Database("sqlite:///:memory:", replicas=[url]),
    ]
    if "in the query" in mistake and "bad" not in mistake and driver.startswith("mysql"):
        # MySQL's driver says so when it connects
        assert SECRET not in repr(Database(url)) + repr(Database(url).url)
        return
    for way in ways:
        assert telling(caught(way)) == []


@pytest.mark.parametrize("driver", [*DRIVERS, "postgresql", "oracle"])
def test_a_url_in_place_of_a_name_says_what_to_call(driver: str) -> None:
    url = f"{driver}://ann:{SECRET}@db.example/app"
    for way in (
        lambda: get_database(url),
        lambda: configure("sqlite://", name=url),
        lambda: get_database(sa.make_url(url)),  # type: ignore[arg-type]
        lambda: get_database(url.partition("://")[2]),
        lambda: get_database(f"host=nowhere password={SECRET}"),
    ):
        error = caught(way)
        assert telling(error) == []
        assert "Database(url)" in str(error)
        assert "configure(url)" in str(error)
    assert f"{driver}://db.example/app" in str(caught(lambda: get_database(url)))


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("way", ["url", "callable", "token", "coroutine"])
def test_a_server_that_is_not_there_shows_nothing(driver: str, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert telling(failed(f"{driver}://ann:{{}}@127.0.0.1:{port}/app", way)) == []


@pytest.mark.parametrize("driver", DRIVERS[:2])
@pytest.mark.parametrize("way", ["url", "callable", "token", "coroutine"])
def test_a_refused_password_shows_nothing(
    driver: str, way: str, postgres_server: PostgresServer
) -> None:
    url = sa.make_url(postgres_server.url).set(drivername=driver, username="nobody", password="{}")
    text = url.render_as_string(hide_password=False).replace("%7B%7D", "{}")
    assert telling(failed(text, way)) == []


def failed(url: str, way: str) -> LoopsafeError:
    """Give the error of a connection; its own frames have the password of the test, and are not ours."""

    async def coroutine() -> str:
        return SECRET

    ways: dict[str, Any] = {
        "callable": lambda: SECRET,
        "token": lambda: Token(SECRET, 60.0),
        "coroutine": coroutine,
    }
    database = Database(
        url.format(SECRET if way == "url" else ""),
        password=ways.get(way),
        timeouts=Timeouts(connect=0.5),  # what is refused is tried again for so long
    )
    assert SECRET not in repr(database)
    return caught(lambda: asyncio.run(database.fetch_val("SELECT 1")))


@pytest.mark.parametrize("driver", DRIVERS[:2])
def test_a_password_still_opens_the_door(driver: str, postgres_server: PostgresServer) -> None:
    role = f"hidden_{driver.rpartition('+')[2]}"
    url = sa.make_url(postgres_server.url)

    async def work() -> str:
        async with Database(url, scope="loop") as admin:
            await admin.execute(f"DROP ROLE IF EXISTS {role}")
            await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'")
            try:
                named = url.set(drivername=driver, username=role, password=SECRET)
                async with Database(named, scope="loop") as database:
                    return str(await database.fetch_val("SELECT current_user"))
            finally:
                await admin.execute(f"DROP ROLE {role}")

    assert asyncio.run(work()) == role


def test_the_text_of_a_url_is_a_plain_one() -> None:
    url = f"postgresql://ann:{SECRET}@nowhere/app"
    assert type(str(Database(url).url)) is str
    assert repr(str(Database(url).url)) == repr(url)
    assert Database(url, replicas=[url]).options == {"replicas": [url]}
