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
from typing import TYPE_CHECKING, Any, Literal, Self

from sqlalchemy import make_url

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
ON_POSTGRESQL = (
    "--conductor.db.type=postgres",
    "--conductor.queue.type=postgres",
    "--conductor.indexing.type=postgres",
    "--conductor.elasticsearch.version=0",
)


class RealServer:
    """The real server, alive inside ``with`` or until `stop`, or until this process ends.

    Args:
        report: Called with lines for the user while it is fetched and started.
        database: URL of an empty PostgreSQL database for its state; without one it has a SQLite of its own, which
            is for demos: it stalls under many workers, and a restart may fail a workflow.
    """

    def __init__(
        self, report: Callable[[str], None] = print, *, database: str | None = None
    ) -> None:
        self._report, self._database = report, database
        self._java = self._jar = Path()
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
        self._java, self._jar = java, jar
        self._folder = Path(tempfile.mkdtemp(prefix="conductor-server-"))
        self._port = _free_port()
        self._report(f"starting the Conductor server {server_files.VERSION} with {java}")
        try:
            self._launch()
        except BaseException:  # Ctrl-C while it starts must not leave it behind either
            self.stop()
            raise
        return self

    def restart(self, how: Literal["term", "kill"] = "term") -> None:
        """End the server and start it again, at its address and with its data; return when it answers.

        Args:
            how: By SIGTERM, as a deploy does, or by SIGKILL, as after a crash.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        number = signal.SIGKILL if how == "kill" else signal.SIGTERM
        os.killpg(self._process.pid, number)  # with its guard, which would remove the data
        self._process.wait()
        self._process.stdin.close()
        self._launch()

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

    def _launch(self) -> None:
        assert self._folder is not None
        guarded = [sys.executable, "-I", "-S", guard.__file__, str(_GRACE_SECONDS)]
        command = _command(self._java, self._jar, self._folder, self._port)
        flags, variables = _persistence(self._folder, self._database)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*guarded, str(self._folder), *command, *flags],
                stdin=subprocess.PIPE,  # the guard stops the server when this breaks
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=os.environ | variables,
                start_new_session=True,  # a Ctrl-C is ours to handle, and workers go first
            )
        self._wait_until_it_answers()

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
    return [
        str(java),
        *_JVM_FLAGS,
        f"-Djava.io.tmpdir={folder}",  # Tomcat's and SQLite's files go with the rest
        "-jar",
        str(jar),
        f"--server.port={port}",
        *_SERVER_FLAGS,
    ]


def _persistence(folder: Path, database: str | None) -> tuple[Sequence[str], dict[str, str]]:
    """Where the server keeps its state: flags, and environment variables, which `ps` does not show."""
    if database is None:
        file = f"{folder}/conductor.db?busy_timeout=15000&journal_mode=WAL"
        return (), {"SPRING_DATASOURCE_URL": f"jdbc:sqlite:{file}"}
    url = make_url(database)
    address = f"{url.host}:{url.port or 5432}/{url.database}"
    return ON_POSTGRESQL, {
        "SPRING_DATASOURCE_URL": f"jdbc:postgresql://{address}",
        "SPRING_DATASOURCE_USERNAME": url.username or "",
        "SPRING_DATASOURCE_PASSWORD": str(url.password or ""),
    }


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
