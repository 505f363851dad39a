"""A real PgBouncer before this run's PostgreSQL, with fewer servers than the tests have tasks.

One of today is looked for in ``LOOPSAFE_TEST_POOLERS`` first, a folder that ``.ci/poolers.sh`` makes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL, make_url

from loopsafe_db.errors import ServerUnavailableError
from loopsafe_db.testing._binaries import unprivileged_identity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SERVERS = 2
_PLACES = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
OF_TODAY = f"{os.environ.get('LOOPSAFE_TEST_POOLERS', '')}:{_PLACES}"
_SETTINGS = """
[databases]
* = host={host} port={port} user={user} password='{password}'
[pgbouncer]
listen_addr = {listens}
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {servers}
max_client_conn = 500
query_wait_timeout = 20
server_tls_sslmode = disable
"""
# From 1.21 PgBouncer knows of prepared statements, and can keep them where they are: then nothing is ever lost.
_FORGETFUL = "max_prepared_statements = 0\n"
_KEEPS = (1, 24)  # does so by default


@contextmanager
def pgbouncer(
    server: str, mode: str, *, keeps: bool = False, listens: str = "127.0.0.1"
) -> Iterator[URL]:
    """Run it in pool mode `mode`; the URL of the same database through it.

    Args:
        server: The URL of a database.
        mode: The pool mode.
        keeps: Whether it is to be one of today, which keeps what was prepared; else one that has never heard of that.
        listens: Where; ``*`` for everywhere.

    Raises:
        ServerUnavailableError: There is none.
    """
    program = find_pgbouncer(keeps=keeps)
    url, port = make_url(server), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            _SETTINGS.format(
                **{part: getattr(url, part) for part in ("host", "port", "password")},
                user=url.username,
                own_port=port,
                listens=listens,
                mode=mode,
                servers=SERVERS,
            )
            + (_FORGETFUL if not keeps and version(program) >= (1, 21) else "")
        )
        with running([program, settings], folder, port):
            yield url.set(port=port)


@contextmanager
def running(
    command: Sequence[str | Path],
    folder: Path,
    port: int,
    *,
    ending: int = signal.SIGTERM,
    patience: float = 10.0,
    as_root: bool = False,
) -> Iterator[None]:
    """Run a program that has its files in a folder and listens on a port: not as root, where it need not be."""
    identity = {} if as_root else unprivileged_identity()
    if identity:
        for path in (folder, *folder.iterdir()):
            os.chown(path, identity["user"], identity["group"])
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, **identity
        )
    try:
        _wait_for(port, process, folder / "log", patience)
        yield
    finally:
        process.send_signal(ending)
        process.wait(30)


def find_pgbouncer(*, keeps: bool) -> str:
    """Give the program."""
    program = shutil.which("pgbouncer", path=OF_TODAY if keeps else _PLACES)
    if program is None:
        raise ServerUnavailableError("there is no program pgbouncer")
    if keeps and version(program) < _KEEPS:
        raise ServerUnavailableError(
            f"{program} is older than 1.24: .ci/poolers.sh FOLDER unpacks one, in FOLDER/usr/sbin; "
            "name that by LOOPSAFE_TEST_POOLERS"
        )
    return program


def version(program: str) -> tuple[int, ...]:
    """Give its version, of two numbers."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, said.split()[1].split(".")[:2]))


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise ServerUnavailableError(f"it did not start:\n{log.read_text(errors='replace')}")


def free_port() -> int:
    """Give a port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
