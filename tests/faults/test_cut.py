"""A connection that is ended at a moment that is not a query's: the error is of the family that all drivers have."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import pytest
import uvloop

from loopsafe_db import Database
from loopsafe_db._runtime.transport import ANY_LOOP
from loopsafe_db.errors import ConnectError, ConnectionLost
from tests.conftest import SCOPE
from tests.faults.wire import Wire, nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

OPENINGS = [("asyncpg", b"version()"), ("psycopg", b"version()"), ("psycopg", b"hstore")]
ENDINGS = [("asyncpg", b"COMMIT"), ("psycopg", b"COMMIT"), ("psycopg", b"CLOSE")]


@pytest.fixture
def wire(postgres_url: str) -> Iterator[Wire]:
    with Wire(postgres_url) as wire:
        yield wire


def handle(wire: Wire, driver: str) -> Database:
    return Database(wire.url.set(drivername=f"postgresql+{driver}"), scope=SCOPE)


def at(word: bytes, strike: Callable[[], None]) -> Callable[[bytes], bool]:
    """Strike as somebody is about to send a word; the server does not get it."""

    def hush(data: bytes) -> bool:
        if word in data:
            strike()
            return True
        return False

    return hush


@pytest.mark.parametrize("how", [Wire.cut, Wire.reset])
@pytest.mark.parametrize(("driver", "word"), OPENINGS)
async def test_one_that_ends_while_sqlalchemy_asks_what_it_asks_first_was_not_opened(
    wire: Wire, driver: str, word: bytes, how: Callable[[Wire], None]
) -> None:
    database = handle(wire, driver)
    wire.hush = at(word, lambda: how(wire))
    with pytest.raises(ConnectError) as caught:
        await database.fetch_val("SELECT 1")
    assert caught.value.retryable
    assert (database.stats().in_use, database.stats().idle) == (0, 0)

    wire.hush = nothing
    assert await database.fetch_val("SELECT 1") == 1


@pytest.mark.parametrize(("driver", "word"), ENDINGS)
async def test_one_that_ends_with_a_stream_is_lost(wire: Wire, driver: str, word: bytes) -> None:
    database = handle(wire, driver)
    assert await database.fetch_val("SELECT 1") == 1
    wire.hush = at(word, wire.cut)
    rows: list[int] = []

    async def read() -> None:
        async for row in database.iterate("SELECT g FROM generate_series(1, 3) AS g"):
            rows.append(row[0])

    with pytest.raises(ConnectionLost):
        await read()
    assert rows == [1, 2, 3]

    wire.hush = nothing
    assert await database.fetch_val("SELECT 1") == 1


class Reader(asyncio.Protocol):
    """What a driver is to its transport."""

    def __init__(self) -> None:
        self.heard, self.ended = 0, asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.heard += len(data)

    def connection_lost(self, _: Exception | None) -> None:
        self.ended.set()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("size", [1, 100_000])  # the second takes two reads
def test_a_reset_that_comes_with_data_is_told(factory: Any, size: int) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            transport, reader = await ANY_LOOP.create_connection(Reader, *listener.getsockname())
            server = listener.accept()[0]
            server.sendall(b"x" * size)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            server.close()
            async with asyncio.timeout(5):
                await reader.ended.wait()
            assert transport.is_closing()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
