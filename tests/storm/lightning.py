"""Lightning: what ends connections under a storm. ``python -m tests.storm.lightning URL SEED`` prints its port.

It has a process of its own: the children that a storm forks must not have its sockets, which would hold them open.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import psycopg
from sqlalchemy import make_url

from tests.faults.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAUSE = 0.03  # seconds from one strike to the next, on average
DOWN = 0.05  # seconds for which a server that restarts refuses
PATIENCE = 20.0  # seconds for the server to notice that everybody is gone
_OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@contextmanager
def lightning(url: str, seed: str) -> Iterator[str]:
    """Give a way to the server on which connections are ended at any moment; afterwards nobody is connected there."""
    command = (sys.executable, "-m", "tests.storm.lightning", url, seed)
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        way = make_url(url).set(host="127.0.0.1", port=port)
        way = way.update_query_dict({"sslmode": "disable"})
        try:
            yield way.render_as_string(hide_password=False)
        finally:
            process.communicate()  # its input ends, and so does it
    _wait_until_alone(url)


def _wait_until_alone(url: str) -> None:
    """Wait for the sessions whose clients are gone: they may yet write what is under way."""
    give_up = time.monotonic() + PATIENCE
    with psycopg.connect(_plain(url), autocommit=True) as plain:
        while plain.execute(f"SELECT 1 {_OTHERS} AND backend_type = 'client backend'").fetchall():
            assert time.monotonic() < give_up, "sessions are left whose clients are gone"
            time.sleep(0.01)  # no event tells of it


def _plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _terminate_one(plain: psycopg.Connection[tuple[int]]) -> None:
    plain.execute(f"SELECT pg_terminate_backend(pid) {_OTHERS} ORDER BY random() LIMIT 1")


def _restart(wire: Wire) -> None:
    wire.refuse()
    wire.cut()
    time.sleep(DOWN)
    wire.serve()


def _strike(wire: Wire, url: str, random: Random, ended: threading.Event) -> None:
    with psycopg.connect(_plain(url), autocommit=True) as plain:
        while not ended.wait(random.expovariate(1 / PAUSE)):
            how = random.random()
            if how < 0.4:
                _terminate_one(plain)
            elif how < 0.65:
                wire.cut()
            elif how < 0.9:
                wire.reset()
            else:
                _restart(wire)


def main() -> None:
    """Strike until standard input ends."""
    url, seed = sys.argv[1:]
    ended = threading.Event()
    with Wire(url) as wire:
        striking = threading.Thread(target=_strike, args=(wire, url, Random(seed), ended))
        striking.start()
        with suppress(BrokenPipeError):
            print(wire.port, flush=True)
        sys.stdin.read()
        ended.set()
        striking.join()


if __name__ == "__main__":
    main()
