"""A storm: many tasks, loops, threads and forked children on one small pool, some of them cut off at any moment."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sqlite3
import threading
import traceback
from collections import Counter
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

import psycopg
import uvloop
from anyio import move_on_after
from sqlalchemy import make_url

from loopsafe_db import Database
from loopsafe_db.errors import CommitUnknown, ConnectError, ConnectionLost
from tests.storm.ledger import Ledger
from tests.storm.lightning import lightning
from tests.storm.operations import ALONE, LOOKS, OPERATIONS, PLAIN, Task

if TYPE_CHECKING:
    from pathlib import Path

STRUCK = (ConnectionLost, CommitUnknown, ConnectError)  # how an operation may fail under lightning
CHILD_TIMEOUT = 60  # seconds; then it says where it is, and ends
SET_UP = {
    "postgresql": (
        "CREATE TABLE storm (token bigint)",
        "CREATE TABLE storm_rows (n int)",
        "INSERT INTO storm_rows SELECT generate_series(1, 1200)",
        "DO $$ BEGIN CREATE ROLE storm_role; EXCEPTION WHEN OTHERS THEN END $$",
        "GRANT ALL ON storm, storm_rows TO storm_role",
    ),
    "sqlite": (
        "PRAGMA journal_mode = wal",
        "CREATE TABLE storm (token bigint)",
        "CREATE TABLE storm_rows (n int)",
        "INSERT INTO storm_rows WITH RECURSIVE r(n) AS"
        " (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT 1200) SELECT n FROM r",
    ),
}


@dataclass(frozen=True)
class Weather:
    """What one round is like.

    Attributes:
        seed: Of everything that is left to chance.
        driver: ``asyncpg``, ``psycopg`` or ``aiosqlite``.
        connections: The most that the pool may open.
        threads: Each has a loop of its own, and one after another.
        loops: How many each thread runs, one after another.
        tasks: In each loop.
        steps: Operations of each task.
        forks: Children, forked while the threads run.
        undone: Whether all is done under `Database.force_rollback`.
        uvloop: Whether loops are uvloop's.
        lightning: Whether connections are ended at any moment; not where one has all that is undone.
    """

    seed: str
    driver: str
    connections: int = 2
    threads: int = 3
    loops: int = 2
    tasks: int = 4
    steps: int = 8
    forks: int = 1
    undone: bool = False
    uvloop: bool = False
    lightning: bool = False

    @classmethod
    def of(cls, seed: str, driver: str) -> Weather:
        """Let the seed decide."""
        random = Random(seed)
        undone = random.random() < 0.15
        made = cls(
            seed,
            driver,
            connections=random.choice([1, 2, 5]),
            threads=random.randint(1, 4),
            loops=random.randint(1, 3),
            tasks=random.randint(1, 6),
            forks=0 if undone else random.randint(0, 2),
            undone=undone,
            uvloop=random.random() < 0.4,
        )
        may_strike = driver != "aiosqlite" and not undone
        return replace(made, lightning=may_strike and random.random() < 0.6)


def set_up(url: str) -> None:
    """Make the tables, in an empty database."""
    _ask(url, *SET_UP[make_url(url).get_backend_name()])


def blow(url: str, weather: Weather, folder: Path) -> Ledger:
    """Let one round happen; give what it was told, compared with what is in the database."""
    _ask(url, "DELETE FROM storm")
    ledger, expected = Ledger(), asyncio.run(_as_new(url, weather.driver))
    with lightning(url, weather.seed) if weather.lightning else nullcontext(url) as way:
        database = Database(_with_driver(way, weather.driver), max_size=weather.connections)
        _rage(database, weather, folder, ledger, expected)
    found = Counter(token for (token,) in _ask(url, "SELECT token FROM storm"))
    ledger.compare(found, all_undone=weather.undone)
    return ledger


def _rage(
    database: Database,
    weather: Weather,
    folder: Path,
    ledger: Ledger,
    expected: tuple[Any, ...],
) -> None:
    """Run the threads and the children of a round to their ends."""
    with database.force_rollback() if weather.undone else nullcontext():
        threads = [
            threading.Thread(
                target=_work, args=(database, weather, f"thread {n}", ledger, expected)
            )
            for n in range(weather.threads)
        ]
        # SQLite's own locks do not survive a fork beside threads that use it.
        together = database.url.dialect != "sqlite"
        children = [] if together else _fork(database, weather, folder, expected)
        for thread in threads:
            thread.start()
        if together:
            children = _fork(database, weather, folder, expected)
        for thread in threads:
            thread.join()
        for child in children:
            _wait(child, folder, ledger)
        if weather.undone:
            asyncio.run(database.disconnect())
    asyncio.run(database.disconnect())


async def _as_new(url: str, driver: str) -> tuple[Any, ...]:
    database, row = Database(_with_driver(url, driver)), None
    # AnyIO imports its backend here: a child that is forked while a thread does so would wait for ever.
    with move_on_after(60):
        row = await database.fetch_one(LOOKS[make_url(url).get_backend_name()], {"token": 0})
    await database.disconnect()
    assert row is not None
    return tuple(row)[1:]


def _work(
    database: Database, weather: Weather, name: str, ledger: Ledger, expected: tuple[Any, ...]
) -> None:
    """Run one loop after another, in this thread."""
    factory = uvloop.new_event_loop if weather.uvloop else None
    for number in range(weather.loops):
        random = Random(f"{weather.seed} {name} {number}")
        tasks = [
            Task(database, Random(random.random()), ledger, expected) for _ in range(weather.tasks)
        ]
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(_together(tasks, weather))
        except BaseException:  # noqa: BLE001 (a thread would only print it)
            ledger.complain("innocent", f"{name}: {traceback.format_exc()[-390:]}")


async def _together(tasks: list[Task], weather: Weather) -> None:
    left_out = PLAIN if weather.undone else ALONE if weather.lightning else ()
    names = [name for name in OPERATIONS if name not in left_out]
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(_steps(task, names, weather))


async def _steps(task: Task, names: list[str], weather: Weather) -> None:
    for _ in range(weather.steps):
        task.operation = task.random.choice(names)
        task.ledger.operations += 1
        task.unsure = []
        try:
            if not await _step(task):
                task.ledger.interrupted += 1
        except Exception as error:  # noqa: BLE001 (whatever it is, nobody has asked for it)
            if weather.lightning and isinstance(error, STRUCK):
                task.ledger.struck += 1
                task.failed(error)
            else:
                task.ledger.complain("innocent", f"{task.operation}: {_where(error)}")


def _where(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}, {os.path.basename(last.filename)}:{last.lineno}"


async def _step(task: Task) -> bool:
    """Run one operation, or begin it and be cut off; tell whether it came to its end."""
    run, how = OPERATIONS[task.operation], task.random.random()
    if how < 0.1:
        with move_on_after(task.random.uniform(0, 0.02)) as scope:
            await run(task)
        return not scope.cancelled_caught
    if how < 0.2:
        limit = asyncio.timeout(task.random.uniform(0, 0.02))
        try:
            async with limit:
                await run(task)
        except TimeoutError:
            if not limit.expired():
                raise
        return not limit.expired()
    if how < 0.3:
        inner = asyncio.ensure_future(run(task))
        for _ in range(task.random.randrange(40)):
            await asyncio.sleep(0)
        inner.cancel()
        await asyncio.wait([inner])
        return not inner.cancelled() and inner.result() is None
    await run(task)
    return True


def _fork(
    database: Database, weather: Weather, folder: Path, expected: tuple[Any, ...]
) -> list[int]:
    children = []
    for number in range(weather.forks):
        if (pid := os.fork()) == 0:
            ledger = Ledger()
            faulthandler.dump_traceback_later(CHILD_TIMEOUT, exit=True)
            try:
                _work(database, weather, f"child {number}", ledger, expected)
                ledger.save(folder / f"{os.getpid()}.json")
            finally:
                os._exit(0)
        children.append(pid)
    return children


def _wait(child: int, folder: Path, ledger: Ledger) -> None:
    _, status = os.waitpid(child, 0)
    path = folder / f"{child}.json"
    if status or not path.exists():
        ledger.complain("innocent", f"a child ended with status {status} and no ledger")
    else:
        ledger.add(path)
        path.unlink()


def _with_driver(url: str, driver: str) -> Any:
    parsed = make_url(url)
    made = parsed.set(drivername=f"{parsed.get_backend_name()}+{driver}")
    return made.update_query_dict({"timeout": "60"}) if driver == "aiosqlite" else made


def _ask(url: str, *texts: str) -> list[Any]:
    """Ask on a connection of a plain driver."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(parsed.database or "", isolation_level=None)) as connection:
            return [connection.execute(text).fetchall() for text in texts][-1]
    dsn = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True) as plain:
        cursors = [plain.execute(text) for text in texts]
        return cursors[-1].fetchall() if cursors[-1].description else []
