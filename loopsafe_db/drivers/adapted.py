"""SQLAlchemy's adapted DBAPI connections, made to refuse strangers, and to end without a loop."""

from __future__ import annotations

import asyncio
import inspect
import socket
import weakref
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from loopsafe_db._runtime.background import BackgroundLoop, LoopProxy
from loopsafe_db._runtime.endings import ENDING_TIMEOUT
from loopsafe_db._runtime.forks import SocketId, is_readable
from loopsafe_db.drivers.base import Owner, ProcessOwner
from loopsafe_db.drivers.handed_out import refuse
from loopsafe_db.errors import TransactionError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from sqlalchemy.engine import Dialect


T = TypeVar("T")
_SHORT = 0.05  # seconds in which most statements end by themselves


class ConnectionLoop(BackgroundLoop):
    """The loop of one connection of a MySQL driver, which so serves any other loop."""

    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        super().__init__()
        self._connect = connect
        self._plain: Any = None
        self._is_given_up = False

    async def open(self) -> LoopProxy:
        """Open the connection."""
        try:
            return LoopProxy(self, await self.run(self._open()))
        except BaseException:
            with suppress(RuntimeError):  # it was refused, and the loop is closed
                self.loop.call_soon_threadsafe(self._give_up)
            raise

    # What follows runs in this loop.

    async def _open(self) -> Any:
        try:
            self._plain = await self._connect()
        except BaseException:
            self._stop()
            raise
        if self._is_given_up:
            self._give_up()
        return self._plain

    def _give_up(self) -> None:
        """Close what is being opened once it is open: where they are cancelled, drivers leave the socket open."""
        self._is_given_up = True
        if self._plain is not None:
            self._plain.close()
            self._stop()
        else:
            self.loop.call_later(ENDING_TIMEOUT, self._stop)

    # What follows runs in any other.

    async def run(self, awaitable: Awaitable[T]) -> T:
        """Await something of the connection, once what was interrupted before is over.

        Raises:
            ConnectionError: It has come to no end, or the connection was ended.
        """
        try:
            await self.settle()
        except BaseException:
            if isinstance(awaitable, Coroutine):
                awaitable.close()
            raise
        return await super().run(awaitable)

    async def settle(self) -> None:
        """Wait until what was interrupted is over: soon the server is asked to stop it.

        Raises:
            ConnectionError: It has come to no end; the connection is ended.
        """
        if not self.is_busy:
            return
        try:
            async with asyncio.timeout(ENDING_TIMEOUT):
                await self._stop_statement()
        except TimeoutError:
            self.stop()
            raise ConnectionError("an interrupted statement has come to no end") from None

    async def _stop_statement(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_SHORT):
                await self.rest()
        if self.is_busy:
            await self.run_beside(self._kill_query(self._plain.thread_id()))
            # Had the statement ended before, this is what is stopped.
            with suppress(Exception):
                await super().run(_tell(self._plain, "DO 0"))

    async def _kill_query(self, thread_id: int) -> None:
        other = await self._connect()
        try:
            with suppress(Exception):  # it has ended
                await _tell(other, f"KILL QUERY {thread_id}")
        finally:
            other.close()


async def _tell(plain: Any, sql: str) -> None:
    async with plain.cursor() as cursor:
        await cursor.execute(sql)


class LaterCursor:
    """A cursor that others may have streamed on between its making and its statement: they step aside only then."""

    def __init__(self, cursor: Any, make_way: Callable[[], None]) -> None:
        self._cursor, self._make_way = cursor, make_way

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def execute(self, *args: Any) -> Any:
        """Execute a statement."""
        self._make_way()
        return self._cursor.execute(*args)

    def executemany(self, *args: Any) -> Any:
        """Execute a statement with each of many values."""
        self._make_way()
        return self._cursor.executemany(*args)


class StreamCursor:
    """A server-side cursor that steps aside: the rest of its rows is read before anything else is sent.

    Protocols such as MySQL's have one statement at a time, and drivers drop the rest without an error.
    """

    def __init__(self, cursor: Any, begin: Callable[[StreamCursor], None]) -> None:
        self._cursor, self._begin = cursor, begin
        self._rest: deque[Any] | None = None
        self._reading = self._is_cut = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    @property
    def is_read_from(self) -> bool:
        """Whether rows may still come."""
        return self._reading or self._is_cut

    def execute(self, *args: Any) -> Any:
        """Send a statement; its rows are read when they are asked for."""
        self._begin(self)
        result = self._ask(self._cursor.execute, *args)
        self._reading = True
        return result

    def step_aside(self) -> None:
        """Read what is left, so that the connection is free."""
        if self._is_cut:
            self.close()
        elif self._reading:
            self._reading = False
            self._rest = deque(self._ask(self._cursor.fetchall))

    def fetchone(self) -> Any:
        """Give the next row, or None."""
        if self._rest is None:
            return self._ask(self._cursor.fetchone)
        return self._rest.popleft() if self._rest else None

    def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        """Give the next rows."""
        if self._rest is None:
            return self._ask(self._cursor.fetchmany, size)  # type: ignore[no-any-return]
        count = self._cursor.arraysize if size is None else size
        return [self._rest.popleft() for _ in range(min(count, len(self._rest)))]

    def fetchall(self) -> Sequence[Any]:
        """Give all rows that are left."""
        if self._rest is None:
            return self._ask(self._cursor.fetchall)  # type: ignore[no-any-return]
        return self.fetchmany(len(self._rest))

    def close(self) -> None:
        """Read what is left, for nobody."""
        self._reading = False
        self._cursor.close()

    def _ask(self, ask: Callable[..., Any], *args: Any) -> Any:
        """Ask for rows. Those of an interrupted question are lost, so there is none after it.

        Raises:
            TransactionError: There was one.
        """
        if self._is_cut:
            raise TransactionError("reading the rows was interrupted before")
        try:
            return ask(*args)
        except BaseException as error:
            self._is_cut = not isinstance(error, Exception)
            raise


class GuardedConnection:
    """An adapted connection that refuses all but its owner, whoever asks.

    What it does not know, it hands on to SQLAlchemy's; ``driver_connection`` is the driver's own. Its methods
    run in SQLAlchemy's greenlet, as those of the adapted connection do.

    Attributes:
        dialect: The engine's, which has asked the server what that can do; set by the pool.
        dirty: Whether something was sent since the last commit or rollback.
        in_transaction: Whether one of our transactions is open.
        has_lost: Whether a statement of ours has ended it there, as the call of a procedure that commits.
        had_begun: Whether the server had one open after the last operation of ours in it.
        is_handed_out: Whether its user may send what we do not see.
        interrupted: Whether nobody waited for the end of an operation.
        ended: Whether it was closed by us.
        is_in_memory: Whether what it holds ends with it.
        answer: The error that the last operation of ours has ended with, if the server has answered by it.
        background: The loop that it is in, where that is its own.
    """

    dialect: Dialect
    guarded_owner: Owner
    dirty: bool
    in_transaction: bool
    has_lost: bool
    had_begun: bool
    is_handed_out: bool
    interrupted: bool
    ended: bool
    is_in_memory: bool
    answer: BaseException | None
    background: ConnectionLoop | None

    def __init__(self, adapted: Any) -> None:
        self.adapted = adapted
        self.dirty = self.in_transaction = self.interrupted = self.ended = False
        self.is_in_memory = self.has_lost = self.had_begun = self.is_handed_out = False
        self.isolation_before: Any = None
        self.answer = None
        self._stream: StreamCursor | None = None
        plain = getattr(adapted, "driver_connection", adapted)
        is_away = isinstance(plain, LoopProxy)
        self._plain = plain.target if is_away else plain
        self.background = plain.background if is_away else None
        self.guarded_owner = ProcessOwner() if is_away else Owner()
        loop = asyncio.get_running_loop() if self.background is None else self.background.loop
        self._home = weakref.ref(loop)
        self._keeps_status = type(self._plain).__module__.startswith("asyncmy")
        self._transport = _transport_of(self._plain)
        self._socket = _socket_of(self._transport)

    def __getattr__(self, name: str) -> Any:
        self.dirty = True  # who knows what that does
        return getattr(self.adapted, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep our own attributes; others, such as pyodbc's ``autocommit``, are the adapted connection's."""
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.adapted, name, value)

    def cursor(self, *args: Any, **options: Any) -> Any:
        """Make a cursor; with an argument, as SQLAlchemy asks for it, one whose rows stay on the server."""
        self._prepare()
        self.dirty = True
        cursor = self.adapted.cursor(*args, **options)
        if args or options:
            return StreamCursor(cursor, self._begin_stream)
        return cursor if self.background is None else LaterCursor(cursor, self._prepare)

    def execute(self, *args: Any) -> Any:
        """Execute on a new cursor, and give it."""
        cursor = self.cursor()
        cursor.execute(*args)
        return cursor

    def commit(self) -> None:
        """Commit, if anything was sent."""
        self._end_with(self.adapted.commit)

    def rollback(self) -> None:
        """Roll back, if anything was sent."""
        if not self.ended:
            self._end_with(self.adapted.rollback)

    def undo(self) -> None:
        """Roll back all that is open and put the isolation level back, or end the connection."""
        self.in_transaction = False
        try:
            self.rollback()
            self.leave()
        except Exception:  # noqa: BLE001 (whatever it is, nobody can use it any more)
            self.end()

    def leave(self) -> None:
        """Note that a transaction is over; put the isolation level back."""
        self.in_transaction = self.has_lost = self.had_begun = False
        level, self.isolation_before = self.isolation_before, None
        if level is not None:
            self.dialect.set_isolation_level(self, level)
            self.rollback()

    def close(self) -> None:
        """Close politely."""
        self._prepare()
        self.ended = True
        try:
            self.adapted.close()
        finally:
            if self._transport is not None:
                self.end()

    def terminate(self) -> None:
        """Close at once."""
        if self.guarded_owner.is_here:
            self.end()

    def end(self) -> None:
        """Close at once, from any thread; the loop that uses it does the rest where it runs."""
        self.ended = True
        loop = self._home()
        if self._transport is None:
            with suppress(Exception):
                self.adapted.terminate()
        elif loop is None or loop.is_closed():
            _drop(self._transport)
            self._tell()
        elif loop.is_running() and loop is not asyncio._get_running_loop():  # noqa: SLF001
            self._shut()  # the server learns at once
            with suppress(RuntimeError):  # closed meanwhile
                loop.call_soon_threadsafe(self._abort)
        else:
            self._abort()
        if self.background is not None:
            self.background.stop()

    async def settle(self) -> None:
        """Have what was interrupted come to its end, or end the connection: its next answer may be to that."""
        if not self.is_busy:
            return
        if self.background is None:
            self.end()
            return
        try:
            await self.background.settle()
        except ConnectionError:
            self.end()
        self.interrupted = False

    @property
    def is_busy(self) -> bool:
        """Whether an operation was interrupted, or goes on in the background."""
        return self.interrupted or (self.background is not None and self.background.is_busy)

    def lent(self) -> None:
        """Note that what SQLAlchemy has said on a new connection, as ``SET NAMES``, has begun nothing."""
        if self.dirty and self._status is not None and not self.server_has_begun:
            self.dirty = False

    @property
    def _status(self) -> int | None:
        """The server's status flags, as of its last answer; None where that has none that we know of."""
        status = getattr(self._plain, "server_status", None)
        return status if isinstance(status, int) else None

    @property
    def server_has_begun(self) -> bool:
        """Whether the server has said, with its last answer, that a transaction is open there; False if it cannot."""
        return bool((self._status or 0) & _IN_TRANSACTION)

    @property
    def has_ended(self) -> bool:
        """Whether the transaction that was begun by us is over there."""
        if self.has_lost or not self.is_handed_out:
            return self.has_lost
        is_open = self.server_has_begun and not (self._keeps_status and self._has_said_nothing)
        return self.in_transaction and self.had_begun and not is_open

    @property
    def _has_said_nothing(self) -> bool:
        """Whether asyncmy's last statement gave no rows and the status 0, which is not kept in ``server_status``."""
        result = getattr(self._plain, "_result", None)
        return result is not None and not (result.field_count or result.server_status)

    def forget_status(self) -> None:
        """Have the next answer say so: asyncmy keeps the status where the next one is 0, which is no transaction."""
        if self._keeps_status:
            self._plain.server_status &= ~_IN_TRANSACTION

    @property
    def commits_each(self) -> bool:
        """Whether the server commits each statement by itself, though a driver of the DBAPI begins transactions."""
        return bool((self._status or 0) & _AUTOCOMMIT)

    @property
    def is_closed(self) -> bool:
        """Whether it is closed, or the server has closed it while it was idle; without a round trip."""
        if self.ended or (self._transport is not None and self._transport.is_closing()):
            return True
        if self.background is not None and self.background.loop.is_closed():
            return True
        # A server that was not asked has nothing to say but farewell.
        asked = self.dirty or (self._stream is not None and self._stream.is_read_from)
        return self._socket is not None and not asked and is_readable(self._socket.fd)

    @property
    def is_at_home(self) -> bool:
        """Whether it can be used: in the loop that runs, or in the background."""
        if self.background is not None:
            return self.guarded_owner.is_here and not self.background.loop.is_closed()
        return self._home() is asyncio._get_running_loop()  # noqa: SLF001

    @property
    def sockets(self) -> Iterable[SocketId]:
        """What a forked child has to let go of, where it is known."""
        return () if self._socket is None or self.ended else (self._socket,)

    def _begin_stream(self, stream: StreamCursor) -> None:
        self._prepare()
        self._stream = stream

    def _prepare(self) -> None:
        self.guarded_owner.check(self)
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.step_aside()

    def _end_with(self, operation: Callable[[], None]) -> None:
        self._prepare()
        if self.dirty:
            try:
                operation()
            except BaseException as error:
                self.interrupted |= not isinstance(error, Exception)
                raise
            self.dirty = False

    def _abort(self) -> None:
        with suppress(Exception):  # it may be half open
            self._transport.abort()
        self._tell()

    def _tell(self) -> None:
        """Tell the driver, or its finalizer would complain."""
        close = getattr(self._plain, "close", None)
        if close is not None and not inspect.iscoroutinefunction(close):
            with suppress(Exception):
                close()

    def _shut(self) -> None:
        if self._socket is None:
            return
        with suppress(OSError):  # closed or reset already
            if SocketId.of(self._socket.fd) == self._socket:
                with socket.fromfd(self._socket.fd, socket.AF_INET, socket.SOCK_STREAM) as same:
                    same.shutdown(socket.SHUT_RDWR)


class HandedOut(GuardedConnection):
    """A connection as its user has it: the same, with the same attributes, and another object."""


class TakenBack(GuardedConnection):
    """What was handed out, when it is back: it refuses everything."""

    def __getattribute__(self, name: str) -> Any:
        return refuse(self, name)


_OWN = {
    *("adapted", "dialect", "guarded_owner", "dirty", "in_transaction", "interrupted", "ended"),
    *("isolation_before", "is_in_memory", "answer", "_stream", "_home", "_transport", "_socket"),
    *("has_lost", "had_begun", "is_handed_out", "_keeps_status", "_plain", "background"),
}
_IN_TRANSACTION, _AUTOCOMMIT = 1, 2  # of MySQL's status flags, which come with each answer


def _transport_of(driver_connection: Any) -> Any:
    """Give asyncio's transport, where the driver keeps one: aiomysql, asyncmy and their kin do."""
    writer = getattr(driver_connection, "_writer", None)
    transport = getattr(driver_connection, "_transport", None)
    found = getattr(writer, "transport", None) or transport
    # uvloop's transports are no subclass of asyncio's
    return found if hasattr(found, "get_extra_info") and hasattr(found, "abort") else None


def _socket_of(transport: Any) -> SocketId | None:
    sock = None if transport is None else transport.get_extra_info("socket")
    return None if sock is None else SocketId.of(sock.fileno())


def _drop(transport: Any) -> None:
    """Close a transport whose loop is closed: what it would have the loop do is done here."""
    with suppress(Exception):  # the loop takes nothing any more
        transport.abort()
    inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None) or transport
    if getattr(inner, "_sock", None) is not None:
        with suppress(Exception):  # the protocol may want to wake somebody up
            inner._call_connection_lost(None)  # noqa: SLF001
