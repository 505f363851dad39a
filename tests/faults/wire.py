"""A way to a server that passes bytes on, until it is told what to swallow or to hold back."""

from __future__ import annotations

import socket
import threading
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


class Wire:
    """Listens on a free port. As soon as `hush` says so of what a client sends, that connection is silent for ever.

    Attributes:
        hush: Is shown what a client is about to send.
        hush_after: Is shown what the server has answered, and been passed on.
        clogs: Is shown what a client has sent; as soon as it says so, no more is read of that connection.
        is_clogged: Whether it has said so.
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
    holds_ends: bool
    ends_held: int
    connections: int
    open: int
    most_open: int

    def __init__(self, url: Any) -> None:
        self._url = make_url(url)
        self.hush = self.hush_after = self.clogs = nothing
        self.holds_ends = self.is_clogged = False
        self.ends_held = self.connections = self.open = self.most_open = 0
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

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
        url = self._url.set(host="127.0.0.1", port=self._listener.getsockname()[1])
        if url.get_backend_name() != "postgresql":
            return url
        return url.update_query_dict({"sslmode": "disable"})

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                self.connections += 1
                far = socket.create_connection((self._url.host or "", self._url.port or 5432))
                for sock in (near, far):  # as both ends have it: nothing is kept back for the next
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += near, far
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

    def _answer(self, far: socket.socket, near: socket.socket, silent: threading.Event) -> None:
        with suppress(OSError):
            while data := far.recv(65536):
                if not silent.is_set():
                    near.sendall(data)
                if self.hush_after(data):
                    silent.set()
            self.ends_held += self.holds_ends
            if not (silent.is_set() or self.holds_ends):
                near.shutdown(socket.SHUT_WR)
