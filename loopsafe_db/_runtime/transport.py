"""A socket that moves between event loops, for drivers that were written for one loop.

A driver is given `ANY_LOOP` as its event loop: it stands for whichever loop runs. The driver's sockets become
`MovableTransport`, which is attached to one loop at a time: the loop that waits for an answer. Between two uses
the socket belongs to nobody, so the next ``asyncio.run`` takes it over, warm.

Only public asyncio is used: ``add_reader``, ``add_writer``, futures and timers. TLS is asyncio's own.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import threading
import time
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from loopsafe_db._runtime.contexts import in_no_context
from loopsafe_db._runtime.forks import SocketId, has_failed, is_readable
from loopsafe_db._runtime.whole_steps import whole
from loopsafe_db.errors import UnsupportedLoopError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

P = TypeVar("P", bound=asyncio.BaseProtocol)
_UNDER_WAY = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY)
_READ_BYTES = 64 * 1024  # from 128 KiB on, glibc maps and unmaps memory for each read
_NO_NEWS = 0.001  # seconds for which a connection is taken for what it was
_PAUSE_ABOVE, _RESUME_BELOW = 64 * 1024, 16 * 1024  # unsent bytes; asyncio's own limits


def nowhere() -> None:
    """Be the reference to a loop that is not there, as a dead ``weakref.ref`` is."""


def _nobody(data: bytes) -> None:
    """Hear nothing."""


def may_have_news(since: float) -> bool:
    """Tell whether a socket is worth a look that nobody has read since then: a look costs a microsecond."""
    return time.monotonic() - since > _NO_NEWS


class Preceding:
    """A transport that can send something ahead of what is written next, as one piece with it."""

    _ahead = b""

    def precede(self, data: bytes) -> None:
        """Send this ahead of what is written next."""
        self._ahead = data

    def withdraw(self) -> bool:
        """Take that back; tell whether it was not sent yet."""
        unsent, self._ahead = self._ahead, b""
        return bool(unsent)


class PrecedingTls(Preceding):
    """asyncio's transport with TLS."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: Any) -> None:
        """Encrypt and send it."""
        if self._ahead:
            data, self._ahead = self._ahead + data, b""
        self._transport.write(data)

    def overhear(self, first: bytes, tell: Callable[[bytes], None]) -> None:
        """Have `tell` hear of each piece that comes in and begins so."""
        protocol = self._transport.get_protocol()
        self._transport.set_protocol(_Overheard(protocol, first[0], tell))


class _Overheard:
    """A protocol that another hears, too: for where the pieces come out of TLS."""

    def __init__(self, protocol: Any, first: int, tell: Callable[[bytes], None]) -> None:
        self._protocol, self._first, self._tell = protocol, first, tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def data_received(self, data: bytes) -> None:
        if data[0] == self._first:
            self._tell(data)
        self._protocol.data_received(data)


class MovableTransport(Preceding, asyncio.Transport):
    """A connected socket, read and written by the loop that it is attached to.

    Lives as long as its connection. Only the thread of that loop calls it, but for `abort`, which any may call.
    The loop is held weakly: one that is closed, or gone, has let go of the socket by that.

    Attributes:
        closing: Whether it is closed, or about to be.
        opening: Whether who opened it is still at it: TLS and passwords take whole steps.
        socket_id: For a forked child to let go of.
    """

    closing: bool
    opening: bool
    socket_id: SocketId

    def __init__(self, sock: socket.socket, protocol: asyncio.BaseProtocol) -> None:
        # The key lets whoever holds a TLS transport on top find this one.
        super().__init__({"socket": sock, "movable": self})
        self._sock, self._fd = sock, sock.fileno()
        self._home: Callable[[], asyncio.AbstractEventLoop | None] = nowhere
        self._unsent = bytearray()
        self.closing = self._lost = self._paused = self._protocol_paused = False
        self.opening = True
        self._heard_at = 0.0
        self._first = -1
        self._tell: Callable[[bytes], None] = _nobody
        self.socket_id = SocketId.of(self._fd)
        self.set_protocol(protocol)
        _live.add(self)
        self._home = weakref.ref(asyncio.get_running_loop())
        self.resume_reading()

    def __repr__(self) -> str:
        state = "closed" if self._lost else "open" if self.home is None else "attached"
        return f"<MovableTransport fd={self._fd} {state}>"

    def __del__(self) -> None:
        """Close a socket that goes with its loop, which was dropped."""
        if not self._lost:
            self._sock.close()

    @property
    def home(self) -> asyncio.AbstractEventLoop | None:
        """The open loop that it is attached to."""
        loop = self._home()
        return None if loop is None or loop.is_closed() else loop

    def attach(self) -> bool:
        """Let the running loop have it; tell whether anything had come in meanwhile, which has been read then."""
        self._home = weakref.ref(asyncio.get_running_loop())
        if self._paused or self._lost:
            return False
        news, looks = False, may_have_news(self._heard_at)
        while looks and self._read_ready():
            news = True
        self.resume_reading()
        return news

    def opened(self) -> None:
        """Note that it is open."""
        self.opening = False
        if not self._paused:
            self.resume_reading()

    def overhear(self, first: bytes, tell: Callable[[bytes], None]) -> None:
        """Have `tell` hear of each piece that comes in and begins so."""
        self._first, self._tell = first[0], tell

    def has_news(self, since: float) -> bool:
        """Tell whether anything has come in since then, on the monotonic clock, read or not yet."""
        if self._heard_at > since:
            return True
        # `may_have_news`, without a call: each query comes by here
        return time.monotonic() - since > _NO_NEWS and is_readable(self._fd)

    def look(self) -> None:
        """Read what has come in, where the running loop has it: it may have been blocked since."""
        running = asyncio._get_running_loop()  # noqa: SLF001
        is_here = running is not None and self._home() is running
        if is_here and self.is_reading() and not self.opening and may_have_news(self._heard_at):
            while is_readable(self._fd) and self._read_ready():
                pass

    def detach(self) -> None:
        """Leave the loop. Nothing may be under way."""
        if not self._lost:  # else another may have its descriptor's number by now
            self._leave()
        self._home = nowhere

    # -- what asyncio asks of a transport

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Change who gets the data."""
        self._protocol: Any = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Give who gets the data."""
        return self._protocol  # type: ignore[no-any-return]

    def is_reading(self) -> bool:
        """Tell whether data is taken in."""
        return not (self._paused or self.closing)

    def pause_reading(self) -> None:
        """Leave data in the kernel for now."""
        self._paused = True
        if (loop := self.home) is not None and not self._lost:
            loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Take data in again."""
        self._paused = False
        if (loop := self.home) is not None and not self.closing:
            read = self._read_with_reset if _is_uvloop(loop) else self._read_ready
            in_no_context(loop.add_reader, self._fd, partial(whole, read) if self.opening else read)

    def get_write_buffer_size(self) -> int:
        """Give the bytes that the kernel has not taken yet."""
        return len(self._unsent)

    def write(self, data: Any) -> None:
        """Send now what the kernel takes, and the rest when it takes it."""
        if self.closing:
            return
        if (
            self._home is nowhere
        ):  # its user kept it, though it was given back: under `force_rollback`
            self.attach()
        if self._ahead:
            data, self._ahead = self._ahead + data, b""
        sent = 0 if self._unsent else self._send(data)
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            if (loop := self.home) is not None and not self._lost:
                loop.add_writer(self._fd, self._write_ready)
            self._tell_pressure()

    def writelines(self, list_of_data: Any) -> None:
        """Send several pieces as one."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """Tell that one direction cannot be closed alone."""
        return False

    def is_closing(self) -> bool:
        """Tell whether it is closed, or about to be."""
        return self.closing

    def close(self) -> None:
        """Close when everything is sent."""
        if not self.closing:
            self.closing = True
            if (loop := self.home) is not None:
                loop.remove_reader(self._fd)
            if not self._unsent:
                self._finish(None)

    def abort(self) -> None:
        """Close at once, from any thread, whether or not a loop runs it."""
        self._force_close(None)

    # -- below; `_force_close` and `_start_tls_compatible` are what asyncio's TLS asks of any transport

    _start_tls_compatible = True

    def _force_close(self, error: BaseException | None) -> None:
        self.closing = True
        self._unsent.clear()
        self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        loop, running = self.home, asyncio._get_running_loop()  # noqa: SLF001
        if self._lost:
            return
        if loop is not None and loop.is_running() and running is not loop:
            # Another thread's. Its selector is not ours to change, but the server may learn at once.
            _shut(self._sock)
            loop.call_soon_threadsafe(self._finish, error)
            return
        self._lost = True
        self._leave()
        self._sock.close()
        if (loop := loop or running) is not None:  # else nobody waits for the news
            loop.call_soon(self._protocol.connection_lost, error)

    def _leave(self) -> None:
        if (loop := self.home) is not None:
            with suppress(
                RuntimeError
            ):  # uvloop has stopped to watch one that was reset, and wants to go on writing
                loop.remove_reader(self._fd)
            if self._unsent or self.closing:
                loop.remove_writer(self._fd)

    def _read_with_reset(self) -> None:
        """Read; where it was reset, all that is left, and learn of that: after this event uvloop calls nobody."""
        if self._read_ready() and has_failed(self._fd):
            while self._read_ready():
                pass

    def _read_ready(self) -> bool:
        """Read once; tell whether there may be more."""
        try:
            if self._buffered:
                buffer = self._protocol.get_buffer(-1)
                count = self._sock.recv_into(buffer)
                if count:
                    self._protocol.buffer_updated(count)
            else:
                data = self._sock.recv(_READ_BYTES)
                count = len(data)
                if count:
                    if data[0] == self._first:
                        self._tell(data)
                    self._protocol.data_received(data)
        except (BlockingIOError, InterruptedError):
            return False
        except Exception as error:  # noqa: BLE001 (whatever it is, this connection is over)
            self._fail(error)
            return False
        self._heard_at = time.monotonic()
        if not count:
            self._protocol.eof_received()
            self.close()
        return not self.closing

    def _send(self, data: Any) -> int:
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            while self.is_reading() and self._read_ready():
                pass  # why the other side has closed it
            self._fail(error)
            return len(data)

    def _write_ready(self) -> None:
        sent = self._send(self._unsent)
        del self._unsent[:sent]
        self._tell_pressure()
        if not self._unsent and not self._lost:
            if (loop := self.home) is not None:
                loop.remove_writer(self._fd)
            if self.closing:
                self._finish(None)

    def _tell_pressure(self) -> None:
        if not self._protocol_paused and len(self._unsent) > _PAUSE_ABOVE:
            self._protocol_paused = True
            self._protocol.pause_writing()
        elif self._protocol_paused and len(self._unsent) < _RESUME_BELOW:
            self._protocol_paused = False
            self._protocol.resume_writing()

    def _fail(self, error: Exception) -> None:
        loop = self.home
        if loop is not None and not isinstance(error, OSError):
            loop.call_exception_handler(
                {"message": "a connection failed", "exception": error, "transport": self}
            )
        self._force_close(error)


_live: weakref.WeakSet[MovableTransport] = weakref.WeakSet()


def live_transports() -> list[MovableTransport]:
    """List those that somebody has, also while they are being opened."""
    return list(_live)


_set_result = asyncio.Future.set_result


class _Waiter(asyncio.Future[Any]):
    """A future that a driver in C sets: a signal that has come while that worked strikes before it is set, not after.

    Where it strikes after, its task is never woken, nor can it be cancelled. Before, the driver hears of it.
    """

    __slots__ = ()

    def set_result(self, result: Any) -> None:
        _set_result(self, result)


class AnyLoop:
    """Stands for the event loop that runs, in the eyes of a driver that keeps the loop of its first day."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio.get_running_loop(), name)

    def is_closed(self) -> bool:
        """Say no: some other loop may run the connection yet."""
        return False

    def get_debug(self) -> bool:
        """Say no: a connection does not need the stack that opened it."""
        return False

    # A future of the running loop, without a function of ours in between: each query makes one.
    create_future: staticmethod[[], asyncio.Future[Any]] = staticmethod(_Waiter)

    async def create_connection(
        self,
        protocol_factory: Callable[[], P],
        host: str,
        port: int,
        *,
        ssl: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> tuple[asyncio.Transport, P]:
        """Connect to the first address of `host` that answers."""
        loop = asyncio.get_running_loop()
        if not can_move(loop):
            return await loop.create_connection(protocol_factory, host, port, ssl=ssl)
        sock = await _connected(loop, host, port)
        return await self._open(sock, protocol_factory, ssl, server_hostname or host)

    async def create_unix_connection(
        self, protocol_factory: Callable[[], P], path: str
    ) -> tuple[asyncio.Transport, P]:
        """Connect to a Unix socket."""
        loop = asyncio.get_running_loop()
        if not can_move(loop):
            return await loop.create_unix_connection(protocol_factory, path)
        sock = await _connect(loop, socket.AF_UNIX, 0, path)
        return await self._open(sock, protocol_factory, None, "")

    async def start_tls(
        self,
        transport: Any,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
    ) -> Any:
        """Put TLS on a connection: asyncio's own, which asks nothing of its loop that this one lacks."""
        loop: Any = (
            asyncio.get_running_loop() if not isinstance(transport, MovableTransport) else None
        )
        if loop is not None:
            return await loop.start_tls(
                transport, protocol, sslcontext, server_hostname=server_hostname
            )
        this: Any = self
        return await asyncio.BaseEventLoop.start_tls(
            this, transport, protocol, sslcontext, server_hostname=server_hostname
        )

    async def _open(
        self,
        sock: socket.socket,
        protocol_factory: Callable[[], P],
        ssl: ssl.SSLContext | None,
        server_hostname: str,
    ) -> tuple[Any, P]:
        protocol: Any = protocol_factory()
        try:
            transport: Any = MovableTransport(sock, protocol)
        except BaseException:
            sock.close()
            raise
        try:
            if ssl is not None:
                transport = await self.start_tls(
                    transport, protocol, ssl, server_hostname=server_hostname
                )
            protocol.connection_made(transport)
        except BaseException:
            transport.abort()
            raise
        return transport, protocol


ANY_LOOP = AnyLoop()


def _is_uvloop(loop: asyncio.AbstractEventLoop) -> bool:
    return type(loop).__module__.partition(".")[0] == "uvloop"


def can_move(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether `loop` can wait for a socket that another one used: not Windows' proactor."""
    if sys.platform == "win32":
        return not isinstance(loop, asyncio.ProactorEventLoop)
    return True


def need_readers(loop: asyncio.AbstractEventLoop) -> None:
    """Refuse a loop that cannot wait for a socket, before one is opened.

    Raises:
        NoReadersError: It has no ``add_reader``.
    """
    kind = type(loop)
    if kind in _with_readers:
        return
    with socket.socket() as sock:
        try:
            loop.remove_reader(sock.fileno())  # rloop takes nothing else
        except NotImplementedError:
            raise NoReadersError(kind.__name__) from None
    _with_readers.add(kind)


_with_readers: set[type] = set()  # kinds of loops


class NoReadersError(UnsupportedLoopError):
    """The loop that runs has no ``add_reader``, as PySide6.QtAsyncio's."""

    hint = (
        "query in a thread of its own by asyncio.run, or take a loop that can: for Qt, that of "
        "qasync"
    )

    def __init__(self, library: str) -> None:
        super().__init__(
            library,
            f"a {library} runs in this thread, which has no add_reader to wait for a socket",
        )


async def _connected(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    found = await addresses(loop, host, port)
    errors: list[OSError] = []
    for family, _, protocol, _, address in found:
        try:
            return await _connect(loop, family, protocol, address)
        except OSError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise OSError(f"no address of {host!r} answers: {'; '.join(map(str, errors)) or 'it has none'}")


async def addresses(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Any]:
    """Resolve a name in a thread that ends with it.

    A loop's own threads stay, and are in the way of a fork: a child of a uvloop that has resolved a name crashes
    in ``sys.exit``, where libuv joins threads that only the parent has.
    """
    with suppress(socket.gaierror):  # an address is no name, and asks nobody
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    answer: asyncio.Future[list[Any]] = loop.create_future()

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            tell(answer.set_exception, error)
        else:
            tell(answer.set_result, found)

    def tell(deliver: Callable[[Any], None], what: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(lambda: None if answer.done() else deliver(what))

    threading.Thread(target=resolve, name="loopsafe_db resolver", daemon=True).start()
    return await answer


async def _connect(
    loop: asyncio.AbstractEventLoop, family: int, protocol: int, address: Any
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        sock.settimeout(0)
        code = sock.connect_ex(address)
        if code in _UNDER_WAY:
            # uvloop's own sock_connect would ask its threads to resolve the address.
            await _writable(loop, sock.fileno())
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, f"connect call failed {address}: {os.strerror(code)}")
    except BaseException:
        sock.close()
        raise
    return sock


async def _writable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    writable: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, lambda: None if writable.done() else writable.set_result(None))
    try:
        await writable
    finally:
        loop.remove_writer(fd)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):  # closed or reset already
        sock.shutdown(socket.SHUT_RDWR)
