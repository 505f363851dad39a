"""asyncpg: PostgreSQL. Its connections belong to the loop that opened them."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from loopsafe_db._runtime.forks import SocketId
from loopsafe_db._runtime.registry import current_key
from loopsafe_db.drivers.base import ConnectOptions, DriverTraits, TransactionOptions
from loopsafe_db.errors import (
    AuthenticationError,
    ConnectError,
    ConnectTimeout,
    ForeignLoopError,
    StatementTimeout,
)
from loopsafe_db.records import Record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from loopsafe_db._runtime.keys import LoopKey

_REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,  # also InvalidPasswordError
    asyncpg.InvalidCatalogNameError,
)


class AsyncpgRecord(Record, asyncpg.Record):  # type: ignore[misc]
    """asyncpg's own row type, allocated by asyncpg in C, with our methods."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return Record.__eq__(self, other)

    __hash__ = Record.__hash__
    __repr__ = Record.__repr__


class GuardedConnection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that refuses another loop or process, whoever asks: a session, SQLAlchemy, a user."""

    __slots__ = ("_guarded_owner", "_guarded_socket")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._guarded_owner: LoopKey = current_key()
        self._guarded_socket: SocketId | None = None
        super().__init__(*args, **kwargs)

    def _check_open(self) -> None:
        # Every public method of asyncpg's connection comes by here.
        owner = self._guarded_owner
        if owner.pid != os.getpid() or asyncio.get_running_loop() is not self._loop:
            raise ForeignLoopError(f"<asyncpg connection {id(self):#x}>", owner, current_key())
        super()._check_open()

    def _cancel_current_command(self, waiter: Any, *rest: Any) -> None:
        # A forked child that cancels its copy of the parent's task must not cancel the parent's query.
        if self._guarded_owner.pid == os.getpid():
            super()._cancel_current_command(waiter, *rest)
        elif not waiter.done():
            waiter.set_result(None)

    def __del__(self) -> None:
        """Do nothing: the pool that opened it ends it, and a forked child must not."""


class AsyncpgDriver:
    """The fast path: asyncpg's own calls and its cache of prepared statements."""

    traits = DriverTraits("asyncpg", "postgresql+asyncpg", loop_bound=True, reset_on_return=True)

    async def connect(self, options: ConnectOptions) -> GuardedConnection:
        try:
            raw = await asyncpg.connect(
                **options.arguments, timeout=options.timeout, connection_class=GuardedConnection
            )
        except _REFUSED as error:
            raise AuthenticationError(options.target, str(error)) from error
        except TimeoutError as error:
            raise ConnectTimeout(
                options.target, f"no answer within {options.timeout:g} s"
            ) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise ConnectError(options.target, str(error) or repr(error)) from error
        raw._guarded_socket = _socket_of(raw)  # noqa: SLF001
        return raw  # type: ignore[no-any-return]

    async def fetch_all(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> list[Record]:
        with _timeout_named(timeout):
            return await raw.fetch(sql, *args, timeout=timeout, record_class=AsyncpgRecord)  # type: ignore[no-any-return]

    async def fetch_one(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Record | None:
        with _timeout_named(timeout):
            return await raw.fetchrow(sql, *args, timeout=timeout, record_class=AsyncpgRecord)  # type: ignore[no-any-return]

    async def execute(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Any:
        with _timeout_named(timeout):
            if not args and ";" in sql.rstrip().rstrip(";"):
                return _affected(await raw.execute(sql, timeout=timeout))  # several statements
            raw._check_open()  # noqa: SLF001
            # fetch() keeps the status to itself, and execute() the rows: both are wanted.
            rows, status, _ = await raw._execute(sql, args, 0, timeout, return_status=True)  # noqa: SLF001
        if rows:
            return rows[0][0] if len(rows[0]) else None
        return _affected(status.decode() if status else "")

    async def execute_many(
        self, raw: GuardedConnection, sql: str, rows: Sequence[Sequence[Any]], timeout: float | None
    ) -> int | None:
        with _timeout_named(timeout):
            await raw.executemany(sql, rows, timeout=timeout)
        return None

    async def iterate(
        self, raw: GuardedConnection, sql: str, args: Sequence[Any]
    ) -> AsyncIterator[Record]:
        async for row in raw.cursor(sql, *args, prefetch=500, record_class=AsyncpgRecord):
            yield row

    def transaction(self, raw: GuardedConnection, options: TransactionOptions) -> Any:
        return raw.transaction(
            isolation=options.isolation, readonly=options.readonly, deferrable=options.deferrable
        )

    def original(self, error: BaseException) -> BaseException:
        orig = getattr(error, "orig", None)
        return (orig.__cause__ or orig) if orig is not None else error

    async def settle(self, raw: GuardedConnection) -> None:
        # Waits for a cancel request under way, as every operation does.
        await raw.execute("")

    def is_closed(self, raw: GuardedConnection) -> bool:
        return bool(raw.is_closed())

    async def close(self, raw: GuardedConnection) -> None:
        await raw.close()

    def terminate(self, raw: GuardedConnection) -> None:
        if raw._guarded_owner.pid != os.getpid():  # noqa: SLF001
            return
        if raw._loop.is_running():  # noqa: SLF001
            raw.terminate()
        else:
            _close_socket(raw._transport)  # noqa: SLF001

    def sockets(self, raw: GuardedConnection) -> Iterable[SocketId]:
        sock = raw._guarded_socket  # noqa: SLF001
        return () if sock is None or raw.is_closed() else (sock,)


@contextmanager
def _timeout_named(timeout: float | None) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        if timeout is None or isinstance(error, StatementTimeout):
            raise
        raise StatementTimeout(timeout) from error


def _affected(status: str) -> int | None:
    """Read ``INSERT 0 3`` or ``UPDATE 3``; other statements have no count."""
    last = status.rpartition(" ")[2]
    return int(last) if last.isdigit() else None


def _socket_of(raw: Any) -> SocketId | None:
    sock = raw._transport.get_extra_info("socket")  # noqa: SLF001
    return None if sock is None else SocketId.of(sock.fileno())


def _close_socket(transport: Any) -> None:
    """Close a transport whose loop will never run again.

    ``abort()`` only schedules; the loop's own socket object has to be closed, and the transport told, or it
    warns when it is collected. uvloop's transports are closed by uvloop with the loop.
    """
    ssl_protocol = getattr(transport, "_ssl_protocol", None)
    if ssl_protocol is not None:
        transport._closed = True  # noqa: SLF001
        transport = ssl_protocol._transport  # noqa: SLF001
    sock = getattr(transport, "_sock", None)
    if sock is not None:
        loop = transport._loop  # noqa: SLF001
        if not loop.is_closed():
            loop._remove_reader(sock.fileno())  # noqa: SLF001
        transport._sock = None  # noqa: SLF001
        sock.close()


DRIVER = AsyncpgDriver()
