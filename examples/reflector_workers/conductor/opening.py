"""One way to get a Conductor, whichever is wanted."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from reflector_workers.conductor.client import ConductorClient
from reflector_workers.conductor.errors import ConductorError, ConductorSetupError
from reflector_workers.conductor.stand_in import StandInServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

URL_VARIABLE = "CONDUCTOR_SERVER_URL"
_ANSWER_SECONDS = 10.0


def _say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def open_conductor(
    kind: str | None = None, *, report: Callable[[str], None] = _say
) -> Iterator[str]:
    """Give the API URL of a Conductor, which is stopped at the end if it was started here.

    Args:
        kind: ``stand-in``, ``real``, or the URL of a running server. None or an empty text
            takes the URL of ``CONDUCTOR_SERVER_URL`` if that is set, else the stand-in.
        report: Called with lines for the user while a server is fetched and started.

    Raises:
        ConductorError: No server, with the cure.
    """
    chosen = kind or os.environ.get(URL_VARIABLE) or "stand-in"
    if chosen == "stand-in":
        with StandInServer() as server:
            yield server.url
    elif chosen == "real":
        from reflector_workers.conductor.real import RealServer

        with RealServer(report=report) as real:
            yield real.url
    else:
        yield _running_server(chosen)


def _running_server(url: str) -> str:
    """The API URL of a server that answers."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConductorSetupError(
            f"no such Conductor: {url!r}\n"
            "HINT: stand-in, real, or the API's URL, as in http://127.0.0.1:8080/api"
        )
    address = url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/api"
    _wait_for_answer(address)
    return address


def _wait_for_answer(url: str) -> None:
    give_up = time.monotonic() + _ANSWER_SECONDS
    with ConductorClient(url, timeout=_ANSWER_SECONDS) as client:
        while True:
            try:
                return client.check()
            except ConductorError:  # refused while the server starts; the last one is told
                if time.monotonic() > give_up:
                    raise
            time.sleep(0.2)
