"""The real Conductor server, started here: loopback only, in a temporary folder, on a free port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from reflector_workers.conductor import guard, server_files
from reflector_workers.conductor.client import ConductorClient
from reflector_workers.conductor.errors import ConductorError, ConductorSetupError
from reflector_workers.conductor.jvm import find_java

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

_START_SECONDS = 180.0
_GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL; it usually takes under one
_SAY_EVERY_SECONDS = 5.0

# Measured on two cores: 40 CPU seconds and 36 s to start with the defaults, 11 and 10 with these.
_JVM_FLAGS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx384m")
_SERVER_FLAGS = (
    "--server.address=127.0.0.1",
    "--logging.level.root=WARN",
    "--management.health.elasticsearch.enabled=false",  # there is none, and it says DOWN for ever
    "--conductor.integrations.ai.enabled=false",
    "--conductor.scheduler.enabled=false",
    "--spring.main.lazy-initialization=true",
)


class RealServer:
    """The real server, alive inside ``with`` or until `stop`, or until this process ends.

    Args:
        report: Called with lines for the user while it is fetched and started.
    """

    def __init__(self, report: Callable[[str], None] = print) -> None:
        self._report = report
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """What the SDK calls ``server_api_url``."""
        return f"http://127.0.0.1:{self._port}/api"

    def start(self) -> Self:
        """Fetch the server if need be, start it, and return when it answers."""
        java = find_java()
        jar = server_files.prepare(java, self._report)
        self._folder = Path(tempfile.mkdtemp(prefix="conductor-server-"))
        self._port = _free_port()
        self._report(f"starting the Conductor server {server_files.VERSION} with {java}")
        try:
            self._process = self._launch(_command(java, jar, self._folder, self._port))
            self._wait_until_it_answers()
        except BaseException:  # Ctrl-C while it starts must not leave it behind either
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and remove its data, in bounded time. Twice is fine."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

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
        return f"<RealServer {self.url} {'stopped' if self._process is None else 'running'}>"

    @property
    def _log(self) -> Path:
        assert self._folder is not None
        return self._folder / "server.log"

    def _launch(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        guarded = [sys.executable, "-I", "-S", guard.__file__, str(_GRACE_SECONDS)]
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [*guarded, str(self._folder), *command],
                stdin=subprocess.PIPE,  # the guard stops the server when this breaks
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,  # a Ctrl-C is ours to handle, and workers go first
            )

    def _wait_until_it_answers(self) -> None:
        started = said = time.monotonic()
        with ConductorClient(self.url, timeout=_START_SECONDS) as client:
            while not self._answers(client):
                now = time.monotonic()
                if now - started > _START_SECONDS:
                    raise self._did_not_start(f"did not answer within {_START_SECONDS:.0f} s")
                if now - said > _SAY_EVERY_SECONDS:
                    self._report(f"still starting: {now - started:.0f} s")
                    said = now
                time.sleep(0.1)
        self._report(f"the Conductor server answers after {time.monotonic() - started:.1f} s")

    def _answers(self, client: ConductorClient) -> bool:
        assert self._process is not None
        try:
            client.check()
        except ConductorError:  # refused until it is up
            answers = False
        else:
            answers = True
        # Looked at last: a stranger on our port must not pass for a server that has died.
        if self._process.poll() is not None:
            raise self._did_not_start(f"ended with exit code {self._process.returncode}")
        return answers

    def _did_not_start(self, how: str) -> ConductorSetupError:
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])
        return ConductorSetupError(
            f"the Conductor server {how}; the end of its log:\n{tail}\n"
            "HINT: it needs 500 MB of memory; if the files may be damaged, remove "
            f"{server_files.cache_folder()}; or do without: the stand-in needs no Java"
        )


def _command(java: Path, jar: Path, folder: Path, port: int) -> list[str]:
    database = f"jdbc:sqlite:{folder}/conductor.db?busy_timeout=15000&journal_mode=WAL"
    return [
        str(java),
        *_JVM_FLAGS,
        f"-Djava.io.tmpdir={folder}",  # Tomcat's and SQLite's files go with the rest
        "-jar",
        str(jar),
        f"--server.port={port}",
        f"--spring.datasource.url={database}",
        *_SERVER_FLAGS,
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address: tuple[Any, ...] = probe.getsockname()
        return int(address[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_GRACE_SECONDS + 5)
    except subprocess.TimeoutExpired:  # the guard itself hangs: it leads the server's group
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
