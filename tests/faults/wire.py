"""A way to a server that passes bytes on, until it is told what to swallow or to hold back."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from sqlalchemy import URL

    Hush = Callable[[bytes], bool]


def nothing(_: bytes) -> bool:
    """Swallow nothing."""
    return False


def told(sqlstate: str, message: str) -> bytes:
    """Give how PostgreSQL refuses a client."""
    fields = (f"SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0").encode()
    return b"E" + struct.pack("!i", len(fields) + 4) + fields


class Wire:
    """Listens on a free port. As soon as `hush` says so of what a client sends, that connection is silent for ever.

    Attributes:
        hush: Is shown what a client is about to send.
        hush_after: Is shown what the server has answered, and been passed on.
        clogs: Is shown what a client has sent; as soon as it says so, no more is read of that connection.
        is_clogged: Whether it has said so.
        pause: Seconds that each answer is held back.
        trickle: Seconds from one byte of an answer to the next.
        refusal: What whoever comes is told in place of being let in: see `told`.
        serves: Whether clients may come.
        port: Where it listens.
        holds_ends: Whether the end of a server's connection is held back, and only what it says arrives.
        ends_held: How many it has held back.
        connections: How many clients have come.
        open: How many of them have not ended their connection.
        most_open: How many had none ended at a time.
    """

    hush: Hush
    hush_after: Hush
    clogs: Hush
    is_clogged: bool
    pause: float
    trickle: float
    refusal: bytes
    serves: bool
    port: int
    holds_ends: bool
    ends_held: int
    connections: int
    open: int
    most_open: int

    def __init__(self, url: Any) -> None:
        self._url = make_url(url)
        self.hush = self.hush_after = self.clogs = nothing
        self.holds_ends = self.is_clogged = False
        self.pause = self.trickle = 0.0
        self.ends_held = self.connections = self.open = self.most_open = 0
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = []
        self._nears: list[socket.socket] = []
        self.port, self.refusal = 0, b""
        self.serve()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    @property
    def url(self) -> URL:
        """Where a client connects to, to reach the server."""
        url = self._url.set(host="127.0.0.1", port=self.port)
        if url.get_backend_name() != "postgresql":
            return url
        return url.update_query_dict({"sslmode": "disable"})

    @property
    def direct(self) -> str:
        """Where the server is, for a plain driver."""
        url = self._url.set(drivername="postgresql")
        return str(url.render_as_string(hide_password=False))

    def serve(self) -> None:
        """Let clients come."""
        listener = self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port, self.serves = listener.getsockname()[1], True
        self._sockets.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def refuse(self) -> None:
        """Let no client come, until `serve` is called."""
        self.serves = False
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def half_close(self) -> None:
        """Tell the clients that nothing more is said; what they say is still heard."""
        for near in list(self._nears):  # not of those who come meanwhile
            with suppress(OSError):
                near.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End what is connected, in order."""
        for near in list(self._nears):  # not of those who come meanwhile
            with suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """End what is connected, as a host does that knows nothing of it."""
        for near in list(self._nears):  # not of those who come meanwhile
            with suppress(OSError):
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                near.shutdown(socket.SHUT_RD)  # whoever reads there holds it open
                near.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near = listener.accept()[0]
                self.connections += 1
                with suppress(OSError):  # of who is gone again: the next may come
                    self._serve(near)

    def _serve(self, near: socket.socket) -> None:
        if self.refusal:
            near.recv(65536)
            near.sendall(self.refusal)
            near.close()
            return
        far = socket.create_connection((self._url.host or "", self._url.port or 5432))
        for sock in (near, far):  # as both ends have it: nothing is kept back for the next
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets += near, far
        self._nears.append(near)
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        silent = threading.Event()
        threading.Thread(target=self._send, args=(near, far, silent), daemon=True).start()
        threading.Thread(target=self._answer, args=(far, near, silent), daemon=True).start()

    def _send(self, near: socket.socket, far: socket.socket, silent: threading.Event) -> None:
        with suppress(OSError):
            while data := self._heard(near):
                if self.hush(data):
                    silent.set()
                if self.clogs(data):
                    self.is_clogged = True
                    self._ended.wait()
                if not silent.is_set():
                    far.sendall(data)
            if not silent.is_set():
                far.shutdown(socket.SHUT_WR)

    def _heard(self, near: socket.socket) -> bytes:
        """Give what a client sends, and note when it has ended its connection."""
        data = b""
        try:
            data = near.recv(65536)
        finally:
            self.open -= not data
        return data

    def _pass_on(self, near: socket.socket, data: bytes) -> None:
        time.sleep(self.pause)
        if not self.trickle:
            near.sendall(data)
            return
        for at in range(len(data)):
            near.sendall(data[at : at + 1])
            self._ended.wait(self.trickle)

    def _answer(self, far: socket.socket, near: socket.socket, silent: threading.Event) -> None:
        with suppress(OSError):  # reset: what has not read all that it was sent ends so
            while data := far.recv(65536):
                if not silent.is_set():
                    self._pass_on(near, data)
                if self.hush_after(data):
                    silent.set()
        self.ends_held += self.holds_ends
        if not (silent.is_set() or self.holds_ends):
            with suppress(OSError):
                near.shutdown(socket.SHUT_WR)
