"""A socket that moves between loops carries as much as any other, in the clear and under TLS."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from loopsafe_db import Database
from loopsafe_db._runtime.transport import ANY_LOOP
from tests.drivers.tls import tls_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module")
def tls_url() -> Iterator[str]:
    """A server with TLS, and a certificate that nobody has signed but us."""
    with tls_server() as server:
        server.use("good")
        yield server.url


@pytest.fixture(params=["clear", "tls"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "clear":
        return str(request.getfixturevalue("postgres_url"))
    return f"{request.getfixturevalue('tls_url')}?sslmode=require"


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[..., object]:
    """Run a coroutine in a loop of its own."""

    def run_in_new_loop(coroutine: object) -> object:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(coroutine)  # type: ignore[arg-type]

    return run_in_new_loop


def test_large_values_go_both_ways_in_every_loop(url: str, run: Callable[..., object]) -> None:
    database = Database(url)
    large = os.urandom(1 << 20).hex() * 4  # 8 MiB: many sends, many receives
    for _ in range(3):
        answer = run(database.fetch_val("SELECT CAST(:large AS text)", {"large": large}))
        assert answer == large
    assert database.stats().opened == 1


def test_a_reset_that_comes_with_data_is_learnt_of(run: Callable[..., object]) -> None:
    class Listener(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost = asyncio.get_running_loop().create_future()

        def connection_lost(self, error: Exception | None) -> None:
            self.lost.set_result(error)

    async def main() -> object:
        with socket.create_server(("127.0.0.1", 0)) as server:
            _, listener = await ANY_LOOP.create_connection(Listener, *server.getsockname())
            with server.accept()[0] as near:  # all of it has come before the loop looks again
                near.sendall(b"farewell")
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            async with asyncio.timeout(20):
                return await listener.lost

    assert isinstance(run(main()), ConnectionResetError)


def test_what_was_said_before_the_end_is_heard_by_who_writes_after_it(
    tmp_path: Path, run: Callable[..., object]
) -> None:
    class Listener(asyncio.Protocol):
        heard = b""

        def data_received(self, data: bytes) -> None:
            self.heard += data

    async def main() -> object:
        path = str(tmp_path / "socket")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            transport, listener = await ANY_LOOP.create_unix_connection(Listener, path)
            with server.accept()[0] as near:
                near.sendall(b"farewell")
            transport.write(b"COMMIT")  # a Unix socket refuses that
            return listener.heard

    assert run(main()) == b"farewell"


def test_who_has_no_loop_reads_nothing_of_what_no_loop_has(run: Callable[..., object]) -> None:
    class Listener(asyncio.Protocol):
        heard = b""

        def data_received(self, data: bytes) -> None:
            self.heard += data

    async def main() -> object:
        with socket.create_server(("127.0.0.1", 0)) as server:
            made, listener = await ANY_LOOP.create_connection(Listener, *server.getsockname())
            transport: Any = made
            transport.opened()
            with server.accept()[0] as near:
                near.sendall(b"farewell")
                transport.detach()
                await asyncio.to_thread(transport.look)
                unread = listener.heard
                transport.attach()
            return unread, listener.heard

    assert run(main()) == (b"", b"farewell")


def test_threads_take_connections_from_one_another(url: str, run: Callable[..., object]) -> None:
    database = Database(url)
    failures: list[int] = []

    def jobs(thread: int) -> None:
        for turn in range(20):
            number = thread * 1000 + turn
            if run(database.fetch_val("SELECT CAST(:n AS int)", {"n": number})) != number:
                failures.append(number)

    threads = [threading.Thread(target=jobs, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert database.stats().opened <= 6


def test_a_statement_can_be_cancelled_in_a_later_loop(url: str, run: Callable[..., object]) -> None:
    database = Database(url)

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await database.fetch_val("SELECT pg_sleep(60)")

    for _ in range(3):
        assert (
            run(database.fetch_val("SELECT 1")) == 1
        )  # a connect that is cancelled is another matter
        run(cancelled())
    assert run(database.fetch_val("SELECT 1")) == 1
    assert database.stats().opened == 1


def test_tls_is_really_on(tls_url: str) -> None:
    query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    for mode, expected in [("require", True), ("disable", False)]:
        database = Database(f"{tls_url}?sslmode={mode}")
        assert [asyncio.run(database.fetch_val(query)) for _ in range(3)] == [expected] * 3
