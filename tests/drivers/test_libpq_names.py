"""libpq's names in a URL mean the same with both drivers: what is set can be read off the socket."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database
from loopsafe_db.drivers.discovery import find_driver
from loopsafe_db.errors import InvalidURLError
from tests.faults.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Mapping

OPTIONS = {
    "idle": (socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
    "interval": (socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
    "count": (socket.IPPROTO_TCP, "TCP_KEEPCNT"),
    "user timeout": (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"),
}


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, postgres_url: str) -> sa.URL:
    url = sa.make_url(postgres_url)
    return url.set(drivername=f"postgresql+{request.param}", host="127.0.0.1")


def handle(url: sa.URL, query: Mapping[str, str]) -> Database:
    return Database(url.update_query_dict(query))


async def tcp_of(database: Database) -> dict[str, Any]:
    """Read the options of the socket of a connection."""
    async with database.connection():
        (sock_id,) = list(database._pool().sockets())  # noqa: SLF001
        with socket.fromfd(sock_id.fd, socket.AF_INET, socket.SOCK_STREAM) as sock:
            on = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            found = {
                name: sock.getsockopt(level, getattr(socket, option))
                for name, (level, option) in OPTIONS.items()
            }
    await database.disconnect()
    return {"on": on, **found}


async def test_keepalives_are_on_by_default(url: sa.URL) -> None:
    found = await tcp_of(handle(url, {}))

    assert found.items() >= {"on": True, "idle": 60, "interval": 15, "count": 4}.items()


async def test_they_are_as_the_url_says(url: sa.URL) -> None:
    names = {"idle": "30", "interval": "5", "count": "3"}
    query = {f"keepalives_{name}": number for name, number in names.items()}
    found = await tcp_of(handle(url, {**query, "tcp_user_timeout": "20000"}))

    assert found == {"on": True, "idle": 30, "interval": 5, "count": 3, "user timeout": 20000}
    assert not (await tcp_of(handle(url, {"keepalives": "0"})))["on"]


@pytest.mark.parametrize(
    "query", [{"channel_binding": "prefer"}, {"client_encoding": "UTF-8"}, {"passfile": "none"}]
)
async def test_what_asks_for_nothing_is_taken(url: sa.URL, query: dict[str, str]) -> None:
    async with handle(url, query) as database:
        assert await database.fetch_val("SELECT 7") == 7


@pytest.mark.parametrize(
    "query",
    [{"channel_binding": "require"}, {"client_encoding": "latin1"}],
)
async def test_what_asyncpg_cannot_do_is_refused(postgres_url: str, query: dict[str, str]) -> None:
    with pytest.raises(InvalidURLError, match=next(iter(query))):
        await handle(sa.make_url(postgres_url), query).connect()


@pytest.mark.parametrize(
    "query",
    [
        {"keepalives": "yes"},
        {"tcp_user_timeout": "-1"},
        {"channel_binding": "perhaps"},
        {"load_balance_hosts": "yes"},
        {"host": "one:5001,two", "port": "5002"},
    ],
)
async def test_a_value_that_is_not_allowed_is_named(url: sa.URL, query: dict[str, str]) -> None:
    with pytest.raises(InvalidURLError, match=list(query)[-1]):
        await handle(url, query).connect()


@pytest.mark.parametrize("written", ["{dead},{alive}/{name}", "/{name}?host={dead},{alive}"])
async def test_each_of_several_hosts_has_its_port_and_the_first_that_answers_is_taken(
    url: sa.URL, written: str
) -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # and does not listen
        written = written.format(
            dead=f"127.0.0.1:{dead.getsockname()[1]}",
            alive=f"localhost:{url.port}",
            name=url.database,
        )
        text = f"{url.drivername}://{url.username}:{url.password}@{written}"
        async with Database(text) as database:
            assert await database.fetch_val("SELECT current_database()") == url.database
        assert str(database.url) == text
        assert f":********@{written}" in repr(database.url)


async def test_several_hosts_take_turns_at_random_if_they_are_to(url: sa.URL) -> None:
    with Wire(url) as one, Wire(url) as other:
        places = ",".join(f"127.0.0.1:{wire.url.port}" for wire in (one, other))
        wanted = one.url.set(host=None, port=None).update_query_dict({"host": places})
        for query, both in (({}, False), ({"load_balance_hosts": "random"}, True)):
            for _ in range(30):
                async with handle(wanted, query) as database:
                    await database.fetch_val("SELECT 7")
            assert bool(other.connections) is both
        assert one.connections > 30


async def test_sqlalchemys_name_of_psycopg_is_psycopg(postgres_url: str) -> None:
    url = sa.make_url(postgres_url).set(drivername="postgresql+psycopg_async")
    async with Database(url) as database:
        assert database._pool().driver is find_driver("postgresql+psycopg")  # noqa: SLF001
        assert await database.fetch_val("SELECT 7") == 7
