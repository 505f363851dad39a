"""SQLAlchemy's adapted DBAPI connections, made to refuse strangers, and to end without a loop."""

from __future__ import annotations

import asyncio
import inspect
import socket
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from loopsafe_db._runtime.forks import SocketId, is_readable
from loopsafe_db.drivers.base import Owner
from loopsafe_db.drivers.handed_out import refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.engine import Dialect


class StreamCursor:
    """A server-side cursor that steps aside: the rest of its rows is read before anything else is sent.

    Protocols such as MySQL's have one statement at a time, and drivers drop the rest without an error.
    """

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self._rest: deque[Any] | None = None
        self._reading = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def execute(self, *args: Any) -> Any:
        """Send a statement; its rows are read when they are asked for."""
        result = self._cursor.execute(*args)
        self._reading = True
        return result

    def step_aside(self) -> None:
        """Read what is left, so that the connection is free."""
        if self._reading:
            self._reading = False
            self._rest = deque(self._cursor.fetchall())

    def fetchone(self) -> Any:
        """Give the next row, or None."""
        if self._rest is None:
            return self._cursor.fetchone()
        return self._rest.popleft() if self._rest else None

    def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        """Give the next rows."""
        if self._rest is None:
            return self._cursor.fetchmany(size)  # type: ignore[no-any-return]
        count = self._cursor.arraysize if size is None else size
        return [self._rest.popleft() for _ in range(min(count, len(self._rest)))]

    def fetchall(self) -> Sequence[Any]:
        """Give all rows that are left."""
        if self._rest is None:
            return self._cursor.fetchall()  # type: ignore[no-any-return]
        return self.fetchmany(len(self._rest))

    def close(self) -> None:
        """Read what is left, for nobody."""
        self._reading = False
        self._cursor.close()


class GuardedConnection:
    """An adapted connection that refuses all but its owner, whoever asks.

    What it does not know, it hands on to SQLAlchemy's; ``driver_connection`` is the driver's own. Its methods
    run in SQLAlchemy's greenlet, as those of the adapted connection do.

    Attributes:
        dialect: The engine's, which has asked the server what that can do; set by the pool.
        dirty: Whether something was sent since the last commit or rollback.
        in_transaction: Whether one of our transactions is open.
        has_lost: Whether a statement has ended it there, as the call of a procedure that commits.
        interrupted: Whether nobody waited for the end of an operation.
        ended: Whether it was closed by us.
        is_in_memory: Whether what it holds ends with it.
        answer: The error that the last operation of ours has ended with, if the server has answered by it.
    """

    dialect: Dialect
    guarded_owner: Owner
    dirty: bool
    in_transaction: bool
    has_lost: bool
    interrupted: bool
    ended: bool
    is_in_memory: bool
    answer: BaseException | None

    def __init__(self, adapted: Any) -> None:
        self.adapted = adapted
        self.guarded_owner = Owner()
        self.dirty = self.in_transaction = self.interrupted = self.ended = False
        self.is_in_memory = self.has_lost = False
        self.isolation_before: Any = None
        self.answer = None
        self._stream: StreamCursor | None = None
        self._home = weakref.ref(asyncio.get_running_loop())
        self._plain = getattr(adapted, "driver_connection", adapted)
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
            cursor = self._stream = StreamCursor(cursor)
        return cursor

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
        self.in_transaction = self.has_lost = False
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
                self._abort()

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
        # A server that was not asked has nothing to say but farewell.
        return self._socket is not None and not self.dirty and is_readable(self._socket.fd)

    @property
    def is_at_home(self) -> bool:
        """Whether the loop that opened it is the one that runs."""
        return self._home() is asyncio._get_running_loop()  # noqa: SLF001

    @property
    def sockets(self) -> Iterable[SocketId]:
        """What a forked child has to let go of, where it is known."""
        return () if self._socket is None or self.ended else (self._socket,)

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
        driver = getattr(self.adapted, "driver_connection", None)
        close = getattr(driver, "close", None)
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
    *("has_lost", "_keeps_status", "_plain"),
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
