"""A private MariaDB for the tests: started here, stopped here, gone afterwards."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loopsafe_db.errors import ServerUnavailableError

if TYPE_CHECKING:
    from typing import Self

START_TIMEOUT = 60.0  # seconds
# Several servers at once may ask the kernel for more AIO contexts than it has.
NO_AIO = "--innodb-use-native-aio=0"
# Waits until the test run ends; without a word it was killed.
GUARD = 'read -r word && exit 0; kill -KILL "$(cat "$1/pid")"; rm -rf "$1"'


class MariaDB:
    """Debian's mariadbd on a loopback port, for the length of a ``with`` block."""

    def __enter__(self) -> Self:
        server = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
        install = shutil.which("mariadb-install-db")
        if server is None or install is None:
            raise ServerUnavailableError("no mariadbd here: apt-get install mariadb-server")
        self._owner = os.getpid()
        self._folder = Path(tempfile.mkdtemp(prefix="ldb-my-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start(server, install)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if os.getpid() != self._owner:
            return
        if self._process is not None:
            for ask in (self._process.terminate, self._process.kill):
                ask()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(10)
                    break
        shutil.rmtree(self._folder, ignore_errors=True)
        guard = getattr(self, "_guard", None)
        if guard is not None:
            guard.communicate(b"stopped\n")

    @property
    def url(self) -> str:
        """An empty database, and its user, who may do everything."""
        return f"mysql://tester:{self._password}@127.0.0.1:{self._port}/tests"

    def _start(self, server: str, install: str) -> None:
        self._password, self._port = secrets.token_urlsafe(16), _free_port()
        start = self._folder / "start.sql"
        start.write_text(
            f"CREATE USER tester@'%' IDENTIFIED BY '{self._password}';"
            "\nGRANT ALL ON *.* TO tester@'%';\nCREATE DATABASE tests;\n"
        )
        account = ["--user=" + _account(self._folder, start)] if os.getuid() == 0 else []
        log = self._folder / "log"
        data = f"--datadir={self._folder}/data"
        # One that starts removes what it finds of others' temporary tables.
        own = f"--tmpdir={self._folder}"
        with log.open("wb") as output:
            command = [
                install,
                "--no-defaults",
                data,
                own,
                "--auth-root-authentication-method=normal",
            ]
            made = subprocess.run(
                [*command, "--skip-test-db", NO_AIO, *account], stdout=output, stderr=output
            )
            if made.returncode:
                raise ServerUnavailableError(f"no data for MariaDB: {log.read_text()[-2000:]}")
            self._process = subprocess.Popen(
                [
                    *(server, "--no-defaults", data, own, *account, f"--port={self._port}"),
                    *("--bind-address=127.0.0.1", "--skip-name-resolve", f"--init-file={start}"),
                    *(f"--socket={self._folder}/socket", f"--pid-file={self._folder}/pid"),
                    *("--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=16M"),
                    *("--max-connections=100", "--performance-schema=off", NO_AIO),
                ],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait(log)

    def _wait(self, log: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return  # the init file is done before the port is opened
            time.sleep(0.05)
        raise ServerUnavailableError(f"mariadbd did not start: {log.read_text()[-2000:]}")


def _account(*paths: Path) -> str:
    """Give the files to the first of the usual accounts that exists; its name."""
    for name in ("mysql", "nobody"):
        with suppress(KeyError):
            account = pwd.getpwnam(name)
            for path in paths:
                os.chown(path, account.pw_uid, account.pw_gid)
            return name
    raise ServerUnavailableError("mariadbd does not run as root, and there is no mysql or nobody")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
