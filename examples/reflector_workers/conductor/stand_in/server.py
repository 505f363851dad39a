"""The stand-in over HTTP: a thread per connection, started and stopped like a context manager."""

from __future__ import annotations

import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from reflector_workers.conductor.stand_in.engine import Engine
from reflector_workers.conductor.stand_in.refusals import Refusal
from reflector_workers.conductor.stand_in.routes import ROUTES, Answer, Request

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_LOG = logging.getLogger(__name__)
_STOP_SECONDS = 5.0


class StandInServer:
    """A stand-in for Conductor on a loopback port, alive inside ``with`` or until `stop`.

    Args:
        port: TCP port, 0 for a free one.
    """

    def __init__(self, port: int = 0) -> None:
        self._http = _HttpServer(("127.0.0.1", port), Engine())
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """What the SDK calls ``server_api_url``."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/api"

    def start(self) -> Self:
        """Answer calls from now on."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop answering, within a few seconds whatever the clients do. Twice is fine."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join(_STOP_SECONDS)
        self._http.server_close()
        self._http.hang_up(time.monotonic() + _STOP_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self._thread.is_alive() else "stopped"
        return f"<StandInServer {self.url} {state}>"


class _HttpServer(HTTPServer):
    """Knows its connections, so that kept-alive ones end with it."""

    request_queue_size = 128

    def __init__(self, address: tuple[str, int], engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self._serve,
            args=(request, client_address),
            daemon=True,
            name=f"conductor stand-in {self.server_port}",
        )
        with self._lock:
            self._connections[request] = thread
        thread.start()

    def hang_up(self, deadline: float) -> None:
        """End every connection and wait for their threads until the deadline."""
        self.engine.close()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            # The reading side only: whoever waits in a long poll still gets his empty answer.
            self._cut(connection, socket.SHUT_RD)
        for thread in connections.values():
            thread.join(max(deadline - time.monotonic(), 0))

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Workers that are killed in the middle of a poll are everyday business here.
        _LOG.debug("a client went away: %s", client_address, exc_info=True)

    def _serve(self, connection: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(connection, client_address)
        except OSError:
            self.handle_error(connection, client_address)
        finally:
            self._cut(connection, socket.SHUT_RDWR)
            with self._lock:
                self._connections.pop(connection, None)
                connection.close()

    @staticmethod
    def _cut(connection: socket.socket, how: int) -> None:
        try:
            connection.shutdown(how)
        except OSError:  # the other side was faster
            _LOG.debug("already closed: %s", connection)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "ConductorStandIn"
    # Header and body leave in one write: two would cost 40 ms per call (delayed ACK).
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _HttpServer

    def do_GET(self) -> None:
        """Answer a call; the other methods are the same."""
        length = int(self.headers.get("Content-Length") or 0)
        self._send(self._answer(self.rfile.read(length)))

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        _LOG.debug(format, *args)

    def _answer(self, body: bytes) -> Answer:
        address = urlsplit(self.path)
        try:
            handler, parameters = ROUTES.find(self.command, unquote(address.path))
            request = Request(parameters, dict(parse_qsl(address.query)), body)
            return handler(self.server.engine, request)
        except Refusal as refusal:
            return Answer(refusal.status, json=_as_error(refusal))
        except Exception as error:  # noqa: BLE001  (any fault is a 500, as with any server)
            _LOG.exception("the stand-in failed in %s %s", self.command, self.path)
            return Answer(500, json=_as_error(Refusal(500, f"{type(error).__name__}: {error}")))

    def _send(self, answer: Answer) -> None:
        content_type, body = answer.encode()
        self.send_response(answer.status)
        if content_type is not None:
            self.send_header("Content-Type", content_type)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _as_error(refusal: Refusal) -> dict[str, Any]:
    return {
        "status": refusal.status,
        "code": None,
        "message": refusal.message,
        "instance": "stand-in",
        "retryable": False,
        "validationErrors": refusal.violations,
        "metadata": None,
    }
