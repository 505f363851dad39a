"""A port where a container's health check may look."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopsafe_db.integrations.conductor.fleet import Fleet


@contextmanager
def health_server(fleet: Fleet, port: int) -> Iterator[int]:
    """Answer ``GET`` with 200 while every worker process lives, else with 503; gives the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            healthy = fleet.is_healthy
            body = json.dumps({"healthy": healthy, "workers": fleet.status()}).encode()
            self.send_response(200 if healthy else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A check that comes every few seconds is no news."""

    with ThreadingHTTPServer(("", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="loopsafe-health", daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
