"""What a URL's query says is what the session is, with both drivers; what cannot be is refused, and no secret shown."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import URL, make_url

from loopsafe_db import Database, LoopsafeError, Timeouts
from loopsafe_db.errors import (
    AuthenticationError,
    ConnectError,
    ConnectSettingError,
    ConnectTimeout,
    InvalidSettingError,
    InvalidURLError,
)
from tests.forks.test_forks import leave

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PAGE = Path(__file__).parents[2] / "docs/reference/urls.md"
LISTED = re.findall(
    r"^\| `(\w+)` \|.*\|.*\|$", PAGE.read_text("utf-8").split("\n## ")[0], re.MULTILINE
)
NAME = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, postgres_url: str) -> URL:
    return make_url(postgres_url).set(drivername=f"postgresql+{request.param}")


async def ask(url: URL, query: str = "SELECT 1", names: dict[str, str] | None = None) -> Any:
    async with Database(url.update_query_dict(names or {}), scope="loop") as database:
        return await database.fetch_val(query)


async def kind_of_refusal(url: URL, **names: str) -> type[LoopsafeError]:
    with pytest.raises(LoopsafeError) as caught:
        await ask(url, names=names)
    return type(caught.value)


# -- one check for each name of the table


async def check_host(url: URL) -> None:
    other = url.set(host="256.0.0.1")
    assert await ask(other, names={"host": str(url.host)}) == 1
    assert await ask(other, names={"host": f"127.0.0.2,{url.host}", "port": f"1,{url.port}"}) == 1
    assert await kind_of_refusal(url, host="/nothing/here") is ConnectError


async def check_port(url: URL) -> None:
    assert await ask(url.set(port=1), names={"port": str(url.port)}) == 1
    assert await ask(url, names={"host": "localhost,127.0.0.1", "port": f"1,{url.port}"}) == 1


async def check_sslmode(url: URL) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = url.set(port=server.getsockname()[1])
        assert await first_word(server, here, "require") == 80877103  # SSLRequest
        assert await first_word(server, here, "disable") >> 16 == 3  # StartupMessage


async def check_ssl(url: URL) -> None:
    # asyncpg misses the root certificate before it asks the server, which has no TLS.
    refusal = ConnectSettingError if url.drivername.endswith("asyncpg") else ConnectError
    assert await kind_of_refusal(url, ssl="verify-full") is refusal
    assert await ask(url, names={"ssl": "verify-full", "sslmode": "disable"}) == 1
    assert await kind_of_refusal(url, ssl="true") is ConnectError  # the server has no TLS
    assert await ask(url, names={"ssl": "false"}) == 1


async def check_file(url: URL) -> None:
    """Have `test_tls` do it: it has servers with certificates."""


async def check_target_session_attrs(url: URL) -> None:
    for kind in ("any", "read-write", "primary", "prefer-standby"):
        assert await ask(url, names={"target_session_attrs": kind}) == 1
    for kind in ("read-only", "standby"):
        assert await kind_of_refusal(url, target_session_attrs=kind) is ConnectError


async def check_connect_timeout(url: URL) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = url.set(port=silent.getsockname()[1]).update_query_dict({"connect_timeout": "0.2"})
        async with asyncio.timeout(5):
            with pytest.raises(ConnectTimeout, match=r"within 0\.2 s"):
                await Database(mute, timeouts=Timeouts(connect=60)).fetch_val("SELECT 1")


async def check_timeout(url: URL) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = url.set(port=silent.getsockname()[1]).update_query_dict({"timeout": "0.2"})
        async with asyncio.timeout(5):
            with pytest.raises(ConnectTimeout, match=r"within 0\.2 s"):
                await Database(mute, timeouts=Timeouts(connect=60)).fetch_val("SELECT 1")


async def check_pool(url: URL) -> None:
    """Have `test_database_url` do it: all drivers have these names."""


async def check_application_name(url: URL) -> None:
    assert await ask(url, NAME, {"application_name": "mine {braces} é"[:14]}) == "mine {braces} "


async def check_options(url: URL) -> None:
    given = r"-c search_path=one,two -c custom.it=a\ b\\c"
    assert await ask(url, "SHOW search_path", {"options": given}) == "one,two"
    assert await ask(url, "SHOW custom.it", {"options": given}) == r"a b\c"


async def check_gssencmode(url: URL) -> None:
    if url.drivername.endswith("asyncpg"):
        assert await kind_of_refusal(url, gssencmode="disable") is InvalidURLError
    else:
        assert await ask(url, names={"gssencmode": "disable", "sslmode": "disable"}) == 1
        assert await kind_of_refusal(url, gssencmode="require") is ConnectError


async def check_elsewhere(url: URL) -> None:
    """Have `test_libpq_names` do it."""


CHECKS: dict[str, Callable[[URL], Awaitable[None]]] = {
    "host": check_host,
    "port": check_port,
    "sslmode": check_sslmode,
    "ssl": check_ssl,
    "sslrootcert": check_file,
    "sslcert": check_file,
    "sslkey": check_file,
    "target_session_attrs": check_target_session_attrs,
    "connect_timeout": check_connect_timeout,
    "timeout": check_timeout,
    "statement_cache_size": check_pool,
    "min_size": check_pool,
    "max_size": check_pool,
    "max_inactive_connection_lifetime": check_pool,
    "max_lifetime": check_pool,
    "max_queries": check_pool,
    "command_timeout": check_pool,
    "application_name": check_application_name,
    "options": check_options,
    "gssencmode": check_gssencmode,
    "keepalives": check_elsewhere,
    "keepalives_idle": check_elsewhere,
    "keepalives_interval": check_elsewhere,
    "keepalives_count": check_elsewhere,
    "tcp_user_timeout": check_elsewhere,
    "channel_binding": check_elsewhere,
    "client_encoding": check_elsewhere,
    "passfile": check_elsewhere,
    "load_balance_hosts": check_elsewhere,
}


async def first_word(server: socket.socket, url: URL, mode: str) -> int:
    """Give the number that a client begins with."""
    server.settimeout(0)
    loop = asyncio.get_running_loop()
    options = {
        "sslmode": mode,
        **({"gssencmode": "disable"} if "psycopg" in url.drivername else {}),
    }
    task = asyncio.create_task(ask(url, names=options))
    connection, _ = await loop.sock_accept(server)
    with connection:
        first = await loop.sock_recv(connection, 8)
    with pytest.raises(ConnectError):
        await task
    return int.from_bytes(first[4:], "big")


@pytest.mark.parametrize("name", LISTED)
async def test_a_name_of_the_table_means_the_same_with_both_drivers(url: URL, name: str) -> None:
    await CHECKS[name](url)


def test_the_table_has_all_names_and_no_other(url: URL) -> None:
    with pytest.raises(InvalidURLError, match=r"query: services \(known: ") as caught:
        Database(url.update_query_dict({"services": "mine"}))
    text = str(caught.value).splitlines()[0]
    known = text.partition("known: ")[2].rstrip(")").split(", ")
    of_psycopg = {"gssencmode"}
    alone = of_psycopg if url.drivername.endswith("asyncpg") else set()
    assert sorted(LISTED) == sorted({*known, *alone}) == sorted(CHECKS)


def test_a_mistyped_name_is_told_what_it_may_mean(url: URL) -> None:
    with pytest.raises(
        InvalidURLError, match=r"aplication_name \(did you mean application_name\?\)"
    ):
        Database(url.update_query_dict({"aplication_name": "mine"}))


# -- where it goes


async def test_special_characters_are_decoded(url: URL) -> None:
    password = "p@ss/w:o?r#d%& é\\'\""
    owner = Database(url, scope="loop")
    quoted = password.replace("'", "''")
    name = f"odd {os.getpid()}@/:"
    await owner.execute(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{quoted}'")
    try:
        odd = url.set(username=name, password=password)
        text = odd.render_as_string(hide_password=False)
        assert await ask(make_url(text), "SELECT CAST(current_user AS text)") == name
        assert await kind_of_refusal(odd.set(password=f"{password}!")) is AuthenticationError
    finally:
        await owner.execute(f'DROP ROLE "{name}"')
        await owner.disconnect()


async def test_a_path_is_a_unix_socket_and_brackets_are_ipv6(url: URL, tmp_path: Path) -> None:
    folder = tmp_path / "a b%&"
    folder.mkdir()
    async with forwarding(f"{folder}/.s.PGSQL.7777", str(url.host), url.port or 0):
        assert await ask(url.set(host=None, port=7777), names={"host": str(folder)}) == 1
    if not can_listen_on_ipv6():
        pytest.skip("THIS MACHINE HAS NO IPV6: NOT TRIED HERE")
    async with forwarding(("::1", 0), str(url.host), url.port or 0) as port:
        text = url.set(host="::1", port=port).render_as_string(hide_password=False)
        assert "[::1]" in text
        assert await ask(make_url(text)) == 1


class forwarding:
    """Pass connections on to a server: from a path, or from an address."""

    def __init__(self, here: str | tuple[str, int], host: str, port: int) -> None:
        self._here, self._there = here, (host, port)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> int:
        if isinstance(self._here, str):
            self._server = await asyncio.start_unix_server(self._serve, self._here)
            return 0
        self._server = await asyncio.start_server(self._serve, *self._here)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._there)
        self._tasks += [
            asyncio.ensure_future(_copy(reader, back)),
            asyncio.ensure_future(_copy(there, writer)),
        ]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
    await writer.wait_closed()


def can_listen_on_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# -- what cannot be


@pytest.mark.parametrize(
    "names",
    [
        {"service": "hunter2"},
        {"password": "hunter2"},
        {"port": "0"},
        {"port": "65536"},
        {"port": "²"},
        {"connect_timeout": "0"},
        {"connect_timeout": "-1"},
        {"connect_timeout": "nan"},
        {"connect_timeout": "soon"},
        {"sslmode": "on"},
        {"sslrootcert": "system", "sslmode": "require"},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(url: URL, names: dict[str, str]) -> None:
    with pytest.raises(InvalidURLError, match=next(iter(names))) as caught:
        Database(url.update_query_dict(names))
    assert "hunter2" not in f"{caught.value}{caught.value!r}"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:hunt@er2@host/db",
        "postgresql://me:hunter2@host:port/db",
        "postgresql://me:hunter2@host",
        "postgresql://host?password=hunter2",
        "me:hunter2@host",
    ],
)
def test_no_secret_is_in_an_error(text: str) -> None:
    with pytest.raises(InvalidURLError) as caught:
        Database(text)
    shown = f"{caught.value}{caught.value!r}{caught.value.__cause__!r}"
    assert "er2" not in shown


# -- the name of a session


async def test_a_session_tells_its_process(url: URL) -> None:
    assert await ask(url, NAME) == f"loopsafe_db MainProcess {os.getpid()}"
    given = {"application_name": "{pid}/{process}/{else}"}
    assert await ask(url, NAME, given) == f"{os.getpid()}/MainProcess/{{else}}"
    named = Database(url, application_name="plain")
    assert await named.fetch_val(NAME) == "plain"
    assert await Database(url, application_name="a {pid}").fetch_val(NAME) == f"a {os.getpid()}"


async def test_a_name_too_long_keeps_the_pid(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {})
    monkeypatch.setattr(multiprocessing.current_process(), "name", "wörker-" * 20)
    name = await ask(url, NAME)
    assert len(name) == 63
    assert name.startswith("loopsafe_db w?rker-w?rker")
    assert name.endswith(f" {os.getpid()}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_a_name_of_its_own(url: URL) -> None:
    database = Database(url)
    assert asyncio.run(database.fetch_val(NAME)).endswith(f" {os.getpid()}")

    def in_child(_: object) -> None:
        name = asyncio.run(database.fetch_val(NAME))
        assert name.endswith(f" {os.getpid()}"), name

    child = os.fork()
    if child == 0:
        leave(in_child, database)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    asyncio.run(database.disconnect())


# -- settings of a session


async def test_settings_reach_the_session_as_they_are(url: URL) -> None:
    settings = {
        "custom.it": "a  b\\c='d' $1",
        "search_path": 'one, "two three"',
        "work_mem": "8MB",
    }
    url = url.update_query_dict({"options": "-c work_mem=9MB -c custom.more=1"})
    database = Database(url, server_settings=settings)
    expected = {**settings, "work_mem": "9MB", "custom.more": "1"}
    for name, value in expected.items():
        assert await database.fetch_val("SELECT current_setting(:name)", {"name": name}) == value


def test_a_setting_is_a_name_and_no_more(url: URL) -> None:
    with pytest.raises(InvalidSettingError, match="not the name of a setting"):
        Database(url, server_settings={"a=b -c c": "d"})
