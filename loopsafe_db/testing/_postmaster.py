"""One PostgreSQL server process: its folder, its start, its guard, its end."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from loopsafe_db.errors import DriverError, ServerUnavailableError
from loopsafe_db.testing._binaries import executable_binaries, unprivileged_identity

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "127.0.0.1"
SUPERUSER = "postgres"
_START_ATTEMPTS = 3  # another process may take the free port between our look and the bind
_LOG_LINES = 15

# A server that nobody will miss: a power cut may cost its data folder, a killed process does not.
_THROW_AWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

# Waits until the owner ends (and everything that the owner forked: they hold the pipe too). A
# word in the pipe means that the owner stopped the server itself; silence means it was killed.
_GUARD = """
read -r word && exit 0
lock="$1/cluster/postmaster.pid"
if pid=$(head -n 1 "$lock") && kill -QUIT "$pid"; then
  tries=100
  while [ $tries -gt 0 ] && [ -e "$lock" ]; do tries=$((tries - 1)); sleep 0.1; done
  [ -e "$lock" ] && kill -KILL "$pid"
fi
[ "$2" = delete ] && rm -rf "$1"
"""

# The guard of a server with several owners, each of whom holds a shared lock on the file `users`
# until it leaves or dies. Nobody joins or leaves without `lock`; so it is kept to the very end.
_WATCH = """
import fcntl, os, sys
lock, users = (os.open(path, os.O_RDWR) for path in sys.argv[1:3])
while True:
    fcntl.flock(users, fcntl.LOCK_EX)
    fcntl.flock(users, fcntl.LOCK_UN)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except BlockingIOError:  # somebody joined in between
        fcntl.flock(lock, fcntl.LOCK_UN)
os.set_inheritable(lock, True)
os.execv("/bin/sh", ["/bin/sh", "-c", *sys.argv[3:]])
"""


class Postmaster:
    """One postmaster with its folder and its guard, owned by the process that made it.

    Args:
        folder: Where it keeps its data. ``None`` takes a temporary folder, removed at the end.
        binaries: The folder of its programs.
        shared: The files ``lock`` and ``users`` of its owners, if it has several: it then ends with
            the last of them, not with the process that made it.
    """

    def __init__(
        self, folder: Path | None, binaries: Path, shared: tuple[Path, Path] | None = None
    ) -> None:
        self.owner = os.getpid()
        self.port = 0
        self._settings: dict[str, str] = {}
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="ldb-pg-") if folder is None else folder)
        self.folder = self.folder.resolve()
        self._identity = unprivileged_identity()
        self._binaries = binaries
        self._shared = shared
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self.password = ""

    @property
    def _cluster(self) -> Path:
        return self.folder / "cluster"

    @property
    def version(self) -> int:
        """The major version, that of its data."""
        return int((self._cluster / "PG_VERSION").read_text())

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def start(self, settings: Mapping[str, str], timeout: float) -> None:
        self._prepare_folder()
        self._binaries = executable_binaries(self._binaries, self._identity, self.folder)
        if not (self._cluster / "PG_VERSION").exists():
            self._make_cluster()
        self._start_guard()
        self._settings = {**_THROW_AWAY, **settings}
        for attempt in range(1, _START_ATTEMPTS + 1):
            self.port = _free_port()
            self._launch()
            if self._answers_within(timeout):
                return
            if not self._port_was_taken() or attempt == _START_ATTEMPTS:
                self._fail("PostgreSQL did not start", self._log_tail())

    def restart(self, request: signal.Signals, timeout: float) -> None:
        """End it by a signal, and start it again with its data, on its port."""
        assert self._process is not None
        self._process.send_signal(request)
        self._process.wait(timeout)
        give_up = time.monotonic() + timeout
        while True:
            self._launch()
            if self._answers_within(timeout):
                return
            # The sessions of one that was killed have its memory until they notice.
            if time.monotonic() > give_up:
                self._fail("PostgreSQL did not start again", self._log_tail())
            time.sleep(0.05)

    def stop(self) -> None:
        self._end_process()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._guard is not None and self._guard.stdin is not None:
            with suppress(BrokenPipeError):
                self._guard.stdin.write(b"stopped\n")
                self._guard.stdin.close()
            self._guard.wait()  # it reads one line and ends

    def disown(self) -> None:
        """Let go of a server that is its parent's, or others' as well, without a warning that it runs."""
        for process in (self._process, self._guard):
            if process is None:
                continue
            if process.poll() is None:
                process.returncode = 0  # nothing to wait for
            if process.stdin is not None:
                process.stdin.close()

    def run_sql(self, statement: str) -> None:
        """Run one statement; by psql, so that it works inside a running event loop as well."""
        done = subprocess.run(
            [
                *(f"{self._binaries}/psql", "--no-psqlrc", "--quiet", "--no-password"),
                *(f"--host={HOST}", f"--port={self.port}", f"--username={SUPERUSER}"),
                *("--dbname=postgres", f"--command={statement}"),
            ],
            env={**_clean_environment(), "PGPASSWORD": self.password},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise DriverError(f"{statement}: {done.stderr.strip()}")

    def _prepare_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        secret = self.folder / "password"
        if not secret.exists():
            secret.touch(mode=0o600)
            secret.write_text(secrets.token_urlsafe(24))
        self.password = secret.read_text()
        if self._identity:
            for path in (self.folder, secret):
                os.chown(path, self._identity["user"], self._identity["group"])

    def _make_cluster(self) -> None:
        done = subprocess.run(
            [
                *(f"{self._binaries}/initdb", "--no-sync", "--no-instructions"),
                *(f"--pgdata={self._cluster}", f"--pwfile={self.folder}/password"),
                *(f"--username={SUPERUSER}", "--auth=scram-sha-256"),
                *("--encoding=UTF8", "--locale=C"),
            ],
            env=_clean_environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **self._identity,
        )
        if done.returncode:
            self._fail("initdb failed", done.stdout)

    def _start_guard(self) -> None:
        arguments = [_GUARD, "loopsafe-postgres-guard", str(self.folder), self._fate()]
        if self._shared is None:
            command, stdin = ["/bin/sh", "-c", *arguments], subprocess.PIPE
        else:
            command = [
                sys.executable,
                "-I",
                "-S",
                "-c",
                _WATCH,
                *map(str, self._shared),
                *arguments,
            ]
            stdin = subprocess.DEVNULL  # where the guard finds no word
        self._guard = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def _fate(self) -> str:
        return "delete" if self._temporary else "keep"

    def _launch(self) -> None:
        fixed = {"port": str(self.port), "unix_socket_directories": ""}
        settings = {"listen_addresses": HOST, **self._settings, **fixed}
        options = [f"--{name}={value}" for name, value in settings.items()]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._cluster, *options],
                env=_clean_environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the owner, who then stops the server
                **self._identity,
            )

    def _answers_within(self, timeout: float) -> bool:
        """Whether the server says ``ready``, in the last line of its pid file, as pg_ctl waits."""
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._status() == "ready":
                return True
            time.sleep(0.02)
        self._end_process()
        return False

    def _status(self) -> str:
        with suppress(OSError):
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
            assert self._process is not None
            if len(lines) >= 8 and lines[0] == str(self._process.pid):
                return lines[7].strip()
        return "starting"

    def _end_process(self) -> None:
        """Ask for a fast shutdown, then for an immediate one, then do not ask."""
        process, self._process = self._process, None
        if process is None:
            return
        for request in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            process.send_signal(request)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
                return

    def _port_was_taken(self) -> bool:
        return "could not bind" in self._log_tail()

    def _log_tail(self) -> str:
        if not self._log.exists():
            return "(the server's log is empty)"
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:])

    def _fail(self, what: str, details: str) -> NoReturn:
        who = ""
        if account := self._identity.get("user"):  # root's files may be closed to it
            who = f" as user id {account}, who must be allowed to enter the folder"
        raise ServerUnavailableError(
            f"{what} (programs in {self._binaries}, folder {self.folder}{who}):\n{details.strip()}"
        )


def end_server(folder: Path) -> None:
    """End the server of a temporary folder, whoever started it, and remove the folder; bounded."""
    command = ["/bin/sh", "-c", _GUARD, "loopsafe-postgres-guard", str(folder), "delete"]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _clean_environment() -> dict[str, str]:
    """The environment without libpq's and the server's own variables, which would interfere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
