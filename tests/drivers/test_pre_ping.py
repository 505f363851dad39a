"""A connection that died without a word is replaced, where that is asked for, in bounded time."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy import make_url

from loopsafe_db import Database, PoolLimits, Timeouts
from loopsafe_db.errors import StatementTimeout
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import Iterator


class Wire:
    """A way to the server that can be cut, so that what goes over it is lost and nobody is told."""

    def __init__(self, host: str, port: int) -> None:
        self._to = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = [self._listener]
        self._cut: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Lose what is sent over every connection that is open now."""
        self._cut |= set(self._open)

    def close(self) -> None:
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(self._to)
                self._open += near, far
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                if one not in self._cut:
                    other.sendall(data)


@pytest.fixture
def wire(postgres_url: str) -> Iterator[Wire]:
    url = make_url(postgres_url)
    wire = Wire(url.host or "", url.port or 0)
    yield wire
    wire.close()


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, postgres_url: str, wire: Wire) -> sa.URL:
    url = make_url(postgres_url).set(drivername=f"postgresql+{request.param}")
    return url.set(host="127.0.0.1", port=wire.port).update_query_dict({"sslmode": "disable"})


def handle(url: sa.URL, *, pre_ping: bool) -> Database:
    return Database(
        url, pool=PoolLimits(2, pre_ping=pre_ping), timeouts=Timeouts(connect=0.5), scope=SCOPE
    )


async def test_a_dead_connection_is_replaced(url: sa.URL, wire: Wire) -> None:
    database = handle(url, pre_ping=True)
    async with asyncio.timeout(20):
        for n in range(2):
            assert await database.fetch_val("SELECT :n + 0", {"n": n}) == n
            wire.cut()
            async with database.session() as session:
                assert await session.scalar(sa.text("SELECT 1")) == 1
            wire.cut()
            async with database.transaction():
                assert await database.fetch_val("SELECT 2") == 2
            wire.cut()

    assert database.stats().opened == 6
    assert database.stats().in_use == 0


async def test_without_it_a_statement_needs_a_limit_of_its_own(url: sa.URL, wire: Wire) -> None:
    database = handle(url, pre_ping=False)
    await database.fetch_val("SELECT 1")
    wire.cut()

    with pytest.raises(StatementTimeout):
        await database.fetch_val("SELECT 2", timeout=0.3)
    assert await database.fetch_val("SELECT 3", timeout=5) == 3
