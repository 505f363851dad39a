"""What works with which server, pooler and driver: ``python -m tests.compatibility.abilities`` writes the table.

It stands in ``docs/reference/servers.md``. Each row is a process of its own, ended after its bound:
``python -m tests.compatibility.abilities BACKEND URL`` prints, as JSON, line by line, what became of each ability.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import make_url

from loopsafe_db import Database
from loopsafe_db.errors import (
    ConnectionLost,
    LoopsafeError,
    ServerUnavailableError,
    StatementTimeout,
)
from tests.compatibility.backends import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from loopsafe_db import Connection
    from tests.compatibility.backends import Backend

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/servers.md"
BEGIN, END = "<!-- written by python -m tests.compatibility.abilities -->\n", "<!-- end -->"
WORKS = "✓"
PATIENCE = 20.0  # seconds for one ability
BOUND = 240.0  # seconds for a process
_OFTEN = 8  # psycopg prepares what it has seen five times
_TASKS = 6
_SLOW = {
    "postgresql": "SELECT pg_sleep(30)",
    "mysql": "SELECT SLEEP(30)",
    "sqlite": "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 100000000) "
    "SELECT count(*) FROM n",
    "questdb": "SELECT sum(x * rnd_double()) FROM long_sequence(100000000000)",
}
_STATE = {  # of a session: what is set, how it is read
    "postgresql": ("SET work_mem = '7MB'", "SHOW work_mem"),
    "mysql": ("SET SESSION max_statement_time = 7", "SELECT @@max_statement_time"),
    "sqlite": ("PRAGMA cache_size = 77", "PRAGMA cache_size"),
}


@dataclass(frozen=True)
class Kit:
    """What an ability is tried with: a handle, another with one connection, and the server's SQL."""

    database: Database
    alone: Database
    dialect: str


things = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n", sa.Integer),
)


class WrongAnswerError(Exception):
    """What came is not what was asked for."""


def _expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise WrongAnswerError(f"{found!r}, not {wanted!r}")


async def _count(database: Database, first: int) -> int:
    query = "SELECT count(*) FROM things WHERE id >= :first AND id <= :last"  # QuestDB's BETWEEN is for times
    return int(await database.fetch_val(query, {"first": first, "last": first + 99}))


async def _insert(database: Database, id_: int) -> None:
    await database.execute("INSERT INTO things (id, n) VALUES (:id, :n)", {"id": id_, "n": 7})


async def text(kit: Kit) -> None:
    await _insert(kit.database, 100)
    query = "SELECT n FROM things WHERE id = :id"
    _expect(await kit.database.fetch_all(query, {"id": 100}), [(7,)])


async def clause(kit: Kit) -> None:
    await kit.database.execute(things.insert().values(id=200, n=8))
    query = sa.select(things.c.n).where(things.c.id == 200)
    _expect(await kit.database.fetch_all(query), [(8,)])


async def session(kit: Kit) -> None:
    async with kit.database.session() as session, session.begin():
        await session.execute(things.insert().values(id=300, n=9))
    async with kit.database.session() as session:
        query = sa.select(things.c.n).where(things.c.id == 300)
        _expect(await session.scalar(query), 9)


async def transaction(kit: Kit) -> None:
    async with kit.database.transaction():
        await _insert(kit.database, 400)
    with suppress(ZeroDivisionError):
        async with kit.database.transaction():
            await _insert(kit.database, 401)
            raise ZeroDivisionError
    _expect(await _count(kit.database, 400), 1)


async def savepoint(kit: Kit) -> None:
    async with kit.database.transaction():
        await _insert(kit.database, 500)
        with suppress(ZeroDivisionError):
            async with kit.database.transaction():
                await _insert(kit.database, 501)
                raise ZeroDivisionError
    _expect(await _count(kit.database, 500), 1)


async def apart(kit: Kit) -> None:
    """Nobody sees what another one has not committed."""
    begun, seen = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        async with kit.database.transaction():
            await _insert(kit.database, 600)
            begun.set()
            await seen.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        await begun.wait()
        try:
            async with asyncio.timeout(5):
                found = await _count(kit.database, 600)
        finally:
            seen.set()
    _expect(found, 0)


async def stream(kit: Kit) -> None:
    await kit.database.execute_many(
        "INSERT INTO things (id, n) VALUES (:id, :n)",
        [{"id": id_, "n": id_} for id_ in range(2000, 2300)],
    )
    query = "SELECT id FROM things WHERE id >= :first ORDER BY id"
    found = [row.id async for row in kit.database.iterate(query, {"first": 2000})]
    _expect(found, list(range(2000, 2300)))


async def prepared(kit: Kit) -> None:
    """Statements that are asked again and again, by several at once."""

    async def ask(task: int) -> None:
        for turn in range(_OFTEN):
            query = f"SELECT id + {task} FROM things WHERE id = :id"
            _expect(await kit.database.fetch_all(query, {"id": 100}), [(100 + task,)])
            clause = sa.select(things.c.id + task + turn).where(things.c.id == 100)
            _expect(await kit.database.fetch_val(clause), 100 + task + turn)

    await asyncio.gather(*map(ask, range(_TASKS)))


async def altered(kit: Kit) -> None:
    """A table gets another column."""
    query = "SELECT * FROM things WHERE id = 100"
    for _ in range(_OFTEN):
        await kit.alone.fetch_all(query)
        await kit.alone.fetch_all(sa.text(query))
    await kit.database.execute("ALTER TABLE things ADD COLUMN more int")
    for _ in range(_OFTEN):
        _expect(await kit.alone.fetch_all(query), [(100, 7, None)])
        _expect(await kit.alone.fetch_all(sa.text(query)), [(100, 7, None)])


async def limit(kit: Kit) -> str:
    """A statement takes too long; the connection is kept."""

    async def ask(connection: Connection) -> None:
        await connection.fetch_val(_SLOW[kit.dialect], timeout=0.5)

    return await _stop(kit, ask, StatementTimeout)


async def cancel(kit: Kit) -> str:
    """A task is cancelled."""

    async def ask(connection: Connection) -> None:
        async with asyncio.timeout(0.5):
            await connection.fetch_val(_SLOW[kit.dialect])

    return await _stop(kit, ask, TimeoutError)


async def _stop(
    kit: Kit, ask: Callable[[Connection], Awaitable[None]], error: type[Exception]
) -> str:
    became = WORKS
    async with kit.alone.connection() as connection:
        try:
            await ask(connection)
        except error:
            pass
        else:
            raise WrongAnswerError("it was not stopped")
        try:
            _expect(await connection.fetch_val("SELECT 2"), 2)
        except ConnectionLost:
            became = "new connection"
    _expect(await kit.alone.fetch_val("SELECT 3"), 3)
    return became


async def reset(kit: Kit) -> str:
    """What is set on a connection is not there for the next who gets it."""
    if kit.dialect not in _STATE:
        return "—"
    set_it, read = _STATE[kit.dialect]
    before = await kit.alone.fetch_val(read)
    async with kit.alone.connection() as connection:
        await connection.execute(set_it)
    _expect(await kit.alone.fetch_val(read), before)
    return WORKS


async def copy(kit: Kit) -> None:
    rows = [(id_, 5) for id_ in range(3000, 3050)]
    await kit.database.copy_records_to("things", rows, columns=["id", "n"])
    _expect(await _count(kit.database, 3000), 50)
    pieces = kit.database.copy_from_query("SELECT id FROM things WHERE id >= 3000", format="csv")
    _expect(len(b"".join([piece async for piece in pieces]).split()), 50)


async def listen(kit: Kit) -> None:
    heard = asyncio.Event()

    async def hear() -> None:
        async for _ in kit.database.listen("points"):
            heard.set()

    async def tell() -> None:
        while not heard.is_set():
            await kit.database.execute("NOTIFY points, 'here'")
            await asyncio.sleep(0.05)

    listening = asyncio.create_task(hear())
    telling = asyncio.create_task(tell())
    hearing = asyncio.create_task(heard.wait())
    tasks = (listening, telling, hearing)
    try:
        done, _ = await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if not done:
            raise WrongAnswerError("nothing was heard")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


ABILITIES: dict[str, Callable[[Kit], Awaitable[str | None]]] = {
    "text": text,
    "clause": clause,
    "session": session,
    "transaction": transaction,
    "savepoint": savepoint,
    "apart": apart,
    "stream": stream,
    "prepared": prepared,
    "altered": altered,
    "time-out": limit,
    "cancel": cancel,
    "reset": reset,
    "COPY": copy,
    "LISTEN": listen,
}


# -- one row


async def _try(backend: Backend, url: str) -> None:
    database = Database(url, max_size=4, **backend.options)
    alone = Database(url, max_size=1, application_name="alone", **backend.options)
    kit = Kit(database, alone, backend.dialect)
    key = "" if backend.dialect == "questdb" else " PRIMARY KEY"
    await database.execute("DROP TABLE IF EXISTS things")
    await database.execute(f"CREATE TABLE things (id int{key}, n int)")
    for name, ability in ABILITIES.items():
        try:
            async with asyncio.timeout(PATIENCE):
                became = await ability(kit) or WORKS
        except BaseException as error:  # noqa: BLE001 (any is a cell)
            became = _told(error)
            place = f"{backend.name}, {make_url(url).drivername}, {name}"
            print(f"{place}: {error!r}", file=sys.stderr, flush=True)
        print(json.dumps([name, became]), flush=True)


def _told(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, WrongAnswerError):
        return "no"
    if isinstance(error, LoopsafeError) and error.code:
        return f"[{error.code}](errors.md#{error.code.lower()})"
    if isinstance(error, TimeoutError):
        return "waits"
    return f"`{type(error).__name__}`"


def row(backend: Backend, driver: str, url: str) -> dict[str, str]:
    """Try all abilities in a process of its own."""
    given = make_url(url)
    dialect = given.get_backend_name()
    through = given.set(drivername=f"{dialect}+{driver}").render_as_string(hide_password=False)
    module = "tests.compatibility.abilities"
    command = (sys.executable, "-W", "ignore", "-m", module, backend.name, through)
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        told, _ = process.communicate(timeout=BOUND)
    except subprocess.TimeoutExpired:
        process.kill()
        told, _ = process.communicate()
    return {**dict.fromkeys(ABILITIES, "hangs"), **dict(map(json.loads, told.splitlines()))}


# -- the table


def rows(backend: Backend) -> dict[str, dict[str, str]]:
    """Try a server with each of its drivers; each has a server of its own, as it was when it was new."""
    found = {}
    for driver in backend.drivers:
        with backend.run() as url:
            found[driver] = row(backend, driver, url)
    return found


def lines(backend: Backend, found: dict[str, dict[str, str]]) -> list[str]:
    """Give the lines of a server; drivers with which the same works share one."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for driver, cells in found.items():
        alike.setdefault(tuple(cells[name] for name in ABILITIES), []).append(driver)
    return [
        f"| {backend.name} | {', '.join(drivers)} | {' | '.join(cells)} |"
        for cells, drivers in alike.items()
    ]


def _lines_or_none(backend: Backend) -> list[str]:
    try:
        found = lines(backend, rows(backend))
    except ServerUnavailableError as error:
        print(f"{backend.name}: {error}", file=sys.stderr)
        return [f"| {backend.name} | | {'| ' * len(ABILITIES)}|"]
    print("\n".join(found), flush=True)
    return found


def write() -> None:
    """Write the table into the page."""
    with ThreadPoolExecutor(2) as workers:
        found = [line for some in workers.map(_lines_or_none, BACKENDS) for line in some]
    head = [f"| server | driver | {' | '.join(ABILITIES)} |", f"|---|---|{'---|' * len(ABILITIES)}"]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    drivers = sorted({driver for backend in BACKENDS for driver in backend.drivers})
    tried = ", ".join(f"{driver} {version(driver)}" for driver in drivers)
    table = "\n".join([*head, *found, "", f"Tried with {tried}."])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        name, given = sys.argv[1:]
        asyncio.run(_try(next(one for one in BACKENDS if one.name == name), given))
        sys.stdout.flush()
        os._exit(0)  # a driver's thread may still be in a statement
    else:
        write()
