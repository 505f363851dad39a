"""A server that starts, or is full just now, is waited for as long as connecting may take."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, Timeouts
from loopsafe_db.errors import (
    AuthenticationError,
    ConnectError,
    ConnectSettingError,
    TooManyConnections,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUESTS = (80877103, 80877104)  # for TLS, and for GSS
FULL, STARTING, WRONG = "53300", "57P03", "28P01"
MESSAGES = {
    FULL: "sorry, too many clients already",
    STARTING: "the database system is starting up",
    WRONG: "password authentication failed",
}


class Refusing:
    """Stands before a server, and refuses as many connections as it is told."""

    def __init__(self, url: sa.URL, sqlstate: str, times: int) -> None:
        self.url, self.sqlstate, self.times, self.came = url, sqlstate, times, 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._tasks.add(task)
        self.came += 1
        try:
            await (self._refuse if self.came <= self.times else self._forward)(reader, writer)
        finally:
            await _close(writer)

    async def end(self) -> None:
        """Wait until all that came have gone."""
        await asyncio.gather(*self._tasks)

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length, code = struct.unpack("!ii", await reader.readexactly(8))
        while code in REQUESTS:
            writer.write(b"N")
            length, code = struct.unpack("!ii", await reader.readexactly(8))
        await reader.readexactly(length - 8)
        text = f"SFATAL\0VFATAL\0C{self.sqlstate}\0M{MESSAGES[self.sqlstate]}\0\0".encode()
        writer.write(b"E" + struct.pack("!i", len(text) + 4) + text)
        await writer.drain()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_connection(self.url.host, self.url.port)
        await asyncio.gather(_pipe(reader, to_server[1]), _pipe(to_server[0], writer))


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, postgres_url: str) -> sa.URL:
    return sa.make_url(postgres_url).set(drivername=f"postgresql+{request.param}")


@contextlib.asynccontextmanager
async def before(url: sa.URL, refusing: Refusing, **options: Any) -> AsyncIterator[Database]:
    """A handle that goes by way of it."""
    async with await asyncio.start_server(refusing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        database = Database(url.set(host="127.0.0.1", port=port), **options)
        yield database
        await database.disconnect()
        await refusing.end()
        server.close()


@pytest.mark.parametrize("sqlstate", [FULL, STARTING])
async def test_a_server_that_refuses_all_for_now_is_asked_again(
    url: sa.URL, sqlstate: str, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Refusing(url, sqlstate, 3)
    async with before(url, refusing) as database:
        assert await database.fetch_val("SELECT 1") == 1
    assert refusing.came == 4
    (record,) = caplog.records
    assert MESSAGES[sqlstate] in record.getMessage()
    assert "tried again for up to 10 s" in record.getMessage()


async def test_of_many_callers_one_at_a_time_tries_while_all_are_refused(url: sa.URL) -> None:
    refusing = Refusing(url, STARTING, 10**6)
    async with before(url, refusing, max_size=10, timeouts=Timeouts(connect=1.0)) as database:
        asking = [database.fetch_val("SELECT 1") for _ in range(10)]
        ends = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(end) for end in ends} == {ConnectError}
        # All at once, when nobody knows; after pauses of 25, 50, 100, 200, 400, and 500 ms, or up to twice that.
        assert 10 < refusing.came <= 10 + 5
        refusing.times = 0
        assert await database.fetch_val("SELECT 1") == 1


async def test_all_that_wait_are_served_when_the_server_is_back(
    url: sa.URL, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Refusing(url, STARTING, 10**6)
    async with before(url, refusing, max_size=3) as database:

        async def in_another_loop() -> None:
            await asyncio.gather(*(database.fetch_val("SELECT 1") for _ in range(10)))

        asking = asyncio.gather(*(database.fetch_val("SELECT 1") for _ in range(40)))
        thread = asyncio.create_task(asyncio.to_thread(asyncio.run, in_another_loop()))
        while refusing.came < 6:
            await asyncio.wait([thread], timeout=0.01)
        refusing.times = 0
        assert await asking == [1] * 40
        await thread
        stats = database.stats()
        assert (stats.requests_errors, stats.connections_errors) == (0, 0)
    assert len(caplog.records) == 1


async def test_who_waits_in_the_queue_hears_that_the_server_refuses_all(url: sa.URL) -> None:
    refusing = Refusing(url, STARTING, 10**6)
    timeouts = Timeouts(connect=2.0, acquire=0.2)
    async with before(url, refusing, max_size=1, timeouts=timeouts) as database:
        first, second = (asyncio.create_task(database.fetch_val("SELECT 1")) for _ in range(2))
        with pytest.raises(ConnectError, match="starting up"):
            await second
        refusing.times = 0
        assert await first == 1


async def test_who_is_refused_by_name_is_told_at_once(url: sa.URL) -> None:
    refusing = Refusing(url, WRONG, 1)
    async with before(url, refusing) as database:
        with pytest.raises(AuthenticationError):
            await database.fetch_val("SELECT 1")
    assert refusing.came == 1


async def test_a_full_server_is_told_as_one(url: sa.URL) -> None:
    refusing = Refusing(url, FULL, 10**6)
    async with before(url, refusing, timeouts=Timeouts(connect=0.2)) as database:
        with pytest.raises(TooManyConnections, match=r"LDB413.*too many clients") as caught:
            await database.fetch_val("SELECT 1")
    assert (caught.value.is_temporary, caught.value.retryable) == (True, True)
    assert "max_connections of the server" in str(caught.value)
    assert "host and port" not in str(caught.value)


@pytest.mark.parametrize(
    "query",
    [
        {"options": "-c nosuch=1"},
        {"options": "-c work_mem=much"},
        {"options": "-c port=1"},
    ],
    ids=lambda query: " ".join(query.values()),
)
async def test_a_setting_that_will_not_do_is_not_tried_again(
    url: sa.URL, query: dict[str, str]
) -> None:
    database = Database(url.update_query_dict(query))
    tries = 0

    async def count() -> None:
        nonlocal tries
        tries += 1
        await database.fetch_val("SELECT 1")

    with pytest.raises(ConnectSettingError, match="LDB414") as caught:
        await database.run_in_transaction(count)
    assert not caught.value.retryable
    assert tries <= 1
    assert "host and port" not in str(caught.value)


async def test_a_server_that_does_not_listen_yet_is_waited_for(
    url: sa.URL, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Refusing(url, FULL, 0)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        database = Database(url.set(host="127.0.0.1", port=sock.getsockname()[1]))
        asking = asyncio.create_task(database.fetch_val("SELECT 1"))
        while not caplog.records:  # it has been refused
            await asyncio.wait([asking], timeout=0.01)
        async with await asyncio.start_server(refusing, sock=sock) as server:
            assert await asking == 1
            await database.disconnect()
            await refusing.end()
            server.close()


async def test_one_that_never_listens_is_an_error_in_the_end(url: sa.URL) -> None:
    database = Database(url.set(host="127.0.0.1", port=1), timeouts=Timeouts(connect=0.2))
    with pytest.raises(ConnectError, match="refused") as caught:
        await database.fetch_val("SELECT 1")
    assert (caught.value.is_temporary, caught.value.retryable) == (True, True)


async def test_mariadbs_driver_says_so_too() -> None:
    database = Database("mysql://u@127.0.0.1:1/d", timeouts=Timeouts(connect=0.2))
    with pytest.raises(ConnectError) as caught:
        await database.fetch_val("SELECT 1")
    assert caught.value.is_temporary
