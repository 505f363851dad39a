"""What the tasks of a storm do: each operation writes under a token of its own, and notes what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from loopsafe_db.errors import CommitUnknown, DriverError, LoopsafeError

if TYPE_CHECKING:
    from random import Random

    from loopsafe_db import Connection, Database
    from tests.storm.ledger import Ledger

TABLE = sa.table("storm", sa.column("token"))
WRITE = "INSERT INTO storm (token) VALUES (:token)"
ROWS = "SELECT n FROM storm_rows ORDER BY n"
FAILS = {"postgresql": "SELECT 1 / 0", "sqlite": "SELECT * FROM storm_no_such_table"}
# What a user must not meet, and that he gets his own answer.
LOOKS = {
    "postgresql": (
        "SELECT CAST(:token AS bigint), current_setting('search_path'),"
        " current_setting('statement_timeout'),"
        " coalesce(current_setting('storm.tenant', true), ''), CAST(current_user AS text),"
        " current_setting('transaction_read_only'),"
        " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),"
        " (SELECT count(*) FROM pg_listening_channels()),"
        " (SELECT count(*) FROM pg_cursors WHERE is_holdable),"
        " to_regclass('pg_temp.storm_temp') IS NULL"
    ),
    "sqlite": (
        "SELECT :token, (SELECT count(*) FROM pragma_database_list WHERE name = 'storm_attached'),"
        " (SELECT foreign_keys FROM pragma_foreign_keys),"
        " (SELECT cache_size FROM pragma_cache_size),"
        " (SELECT count(*) FROM sqlite_temp_master)"
    ),
}
# Session settings, and what else a session of the server remembers.
SETTINGS = {
    "postgresql": (
        "SET search_path = pg_catalog",
        "SET statement_timeout = '54321ms'",
        "SELECT set_config('storm.tenant', 'A', false)",
        "SET ROLE storm_role",
        "SELECT pg_advisory_lock_shared(4711)",
        "LISTEN storm_channel",
        "DECLARE storm_cursor CURSOR WITH HOLD FOR SELECT 1",
        "CREATE TEMPORARY TABLE IF NOT EXISTS storm_temp (x int)",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    ),
    "sqlite": (
        "PRAGMA foreign_keys = OFF",
        "PRAGMA cache_size = 321",
        "ATTACH ':memory:' AS storm_attached",
        "CREATE TEMPORARY TABLE IF NOT EXISTS storm_temp (x int)",
    ),
}


@dataclass
class Task:
    """One asyncio task of a storm.

    Attributes:
        db: The handle that all share.
        random: Its own, from the storm's seed.
        ledger: What this process was told.
        expected: What `look` gives on a connection that nobody has touched, without the token.
        operation: What it does now.
        unsure: The tokens of that of which nothing was told yet.
    """

    db: Database
    random: Random
    ledger: Ledger
    expected: tuple[Any, ...]
    operation: str = ""
    unsure: list[int] = field(default_factory=list)

    def failed(self, error: DriverError) -> None:
        """Note that an operation has failed as it may: nothing is stored of one that may be done again."""
        if error.retryable:
            for token in self.unsure:
                self.ledger.undone_unless_told(token)

    @property
    def dialect(self) -> str:
        """The SQL that the server speaks."""
        return self.db.url.dialect

    def token(self, rows: int = 1) -> int:
        """Give a new token."""
        token = self.ledger.token(self.operation, rows)
        self.unsure.append(token)
        return token

    async def write(self, on: Database | Connection | None = None) -> int:
        """Write one row; the caller notes what becomes of it."""
        token = self.token()
        told = await (on or self.db).execute(WRITE, {"token": token})
        if told != 1:
            self.ledger.complain("lost", f"{self.operation}: {told!r} rows were written, not 1")
        return token

    async def look(self, on: Database | Connection | None = None) -> None:
        """See that the answer is one's own, and that the session is as new."""
        token = self.token()
        self.ledger.undone(token)
        row = await (on or self.db).fetch_one(LOOKS[self.dialect], {"token": token})
        self.compare(token, row)

    def compare(self, token: int, row: Any) -> None:
        """Compare what `look` got."""
        seen = () if row is None else tuple(row)
        if not seen or seen[0] != token:
            self.ledger.complain("foreign", f"{self.operation}: asked {token}, got {seen}")
        elif seen[1:] != self.expected:
            self.ledger.complain("foreign", f"{self.operation} met {seen[1:]}")


Operation = Callable[[Task], Awaitable[None]]
OPERATIONS: dict[str, Operation] = {}
PLAIN: set[str] = (
    set()
)  # those whose traces on the one connection of `force_rollback` are meant to be met


ALONE = {"raw_connection_is_used"}  # with the driver: it has errors of its own


def operation(function: Operation) -> Operation:
    """Have a storm do this."""
    OPERATIONS[function.__name__] = function
    return function


def plain_operation(function: Operation) -> Operation:
    """Have a storm do this, but not where all work on one connection, and roll back."""
    PLAIN.add(function.__name__)
    return operation(function)


class Unwanted(Exception):
    """What a storm raises in a block to have it undone."""


@operation
async def text_reads(task: Task) -> None:
    await task.look()


@operation
async def session_reads(task: Task) -> None:
    token = task.token()
    task.ledger.undone(token)
    async with task.db.session() as session:
        rows = await session.execute(sa.text(LOOKS[task.dialect]), {"token": token})
        task.compare(token, rows.one())


@operation
async def text_writes(task: Task) -> None:
    task.ledger.kept(await task.write())


@operation
async def clause_writes(task: Task) -> None:
    token = task.token()
    await task.db.execute(TABLE.insert(), {"token": token})
    task.ledger.kept(token)


@operation
async def many_rows(task: Task) -> None:
    token = task.token(rows=3)
    await task.db.execute_many(WRITE, [{"token": token}] * 3)
    task.ledger.kept(token)


@operation
async def transaction_commits(task: Task) -> None:
    async with task.db.transaction():
        tokens = [await task.write(), await task.write()]
    for token in tokens:
        task.ledger.kept(token)


@operation
async def transaction_is_run_again(task: Task) -> None:
    tokens: list[int] = []

    async def write() -> None:
        for token in tokens:
            task.ledger.undone(token)
        tokens.append(await task.write())

    await task.db.run_in_transaction(write)
    task.ledger.kept(tokens[-1])


@operation
async def transaction_rolls_back(task: Task) -> None:
    tokens = []
    with suppress(Unwanted):
        async with task.db.transaction():
            tokens.append(await task.write())
            raise Unwanted
    for token in tokens:
        task.ledger.undone(token)


@operation
async def inner_block_fails(task: Task) -> None:
    async with task.db.transaction():
        kept = await task.write()
        with suppress(Exception):  # the server's, by the driver
            async with task.db.transaction():
                undone = await task.write()
                await task.db.fetch_all(FAILS[task.dialect])
        kept_too = await task.write()
    task.ledger.kept(kept)
    task.ledger.kept(kept_too)
    task.ledger.undone(undone)


@operation
async def child_tasks_in_a_transaction(task: Task) -> None:
    tokens: list[int] = []

    async def write() -> None:
        tokens.append(await task.write())

    with suppress(Unwanted):
        async with task.db.transaction():
            await asyncio.gather(write(), write())
            raise Unwanted
    for token in tokens:
        task.ledger.undone(token)


@operation
async def error_is_swallowed_in_a_block(task: Task) -> None:
    token = task.token()
    try:
        async with task.db.transaction():
            await task.db.execute(WRITE, {"token": token})
            with suppress(Exception):  # the server's, by the driver
                await task.db.fetch_all(FAILS[task.dialect])
    except CommitUnknown:
        raise
    except LoopsafeError:
        task.ledger.undone(token)
    else:
        task.ledger.kept(token)


@operation
async def session_commits(task: Task) -> None:
    token = task.token()
    async with task.db.session.begin() as session:
        await session.execute(TABLE.insert(), {"token": token})
    task.ledger.kept(token)


@operation
async def session_is_left(task: Task) -> None:
    token = task.token()
    async with task.db.session() as session:
        await session.execute(TABLE.insert(), {"token": token})
    task.ledger.undone(token)


@operation
async def session_stream_is_left(task: Task) -> None:
    async with task.db.session() as session:
        async for _ in await session.stream(sa.text(ROWS)):
            break
    await task.look()


@operation
async def stream_is_left(task: Task) -> None:
    async for _ in task.db.iterate(ROWS):
        break
    task.ledger.kept(await task.write())


@operation
async def stream_is_left_on_a_connection(task: Task) -> None:
    async with task.db.connection() as connection:
        async for _ in connection.iterate(ROWS):
            break
        for _ in range(task.random.randrange(3)):
            await asyncio.sleep(0)
        task.ledger.kept(await task.write(connection))
        async with connection.transaction():
            token = await task.write(connection)
        task.ledger.kept(token)


@operation
async def stream_is_left_in_a_transaction(task: Task) -> None:
    async with task.db.transaction():
        token = await task.write()
        async for _ in task.db.iterate(ROWS):
            break
        second = await task.write()
    task.ledger.kept(token)
    task.ledger.kept(second)


@operation
async def stream_is_read(task: Task) -> None:
    async with aclosing(task.db.iterate(ROWS)) as rows:
        seen = [row[0] async for row in rows]
    if seen != sorted(seen) or len(seen) != 1200:
        task.ledger.complain("foreign", f"a stream gave {len(seen)} rows")


@plain_operation
async def settings_are_changed(task: Task) -> None:
    await task.db.execute(task.random.choice(SETTINGS[task.dialect]))


@plain_operation
async def settings_are_changed_on_a_connection(task: Task) -> None:
    async with task.db.connection() as connection:
        await task.look(connection)
        known = SETTINGS[task.dialect]
        for text in sorted(task.random.sample(known, 2), key=known.index):
            await connection.execute(text)


@plain_operation
async def settings_are_changed_in_a_session(task: Task) -> None:
    async with task.db.session.begin() as session:
        await session.execute(sa.text(task.random.choice(SETTINGS[task.dialect])))


@plain_operation
async def raw_connection_is_used(task: Task) -> None:
    async with task.db.connection() as connection:
        raw: Any = connection.raw_connection
        await raw.execute("SELECT 1")
    await asyncio.sleep(0)
    try:
        await raw.execute(f"INSERT INTO storm (token) VALUES ({task.token()})")
    except Exception:  # noqa: BLE001 (the driver's own, or ours)
        return
    task.ledger.complain("foreign", "a raw connection was of use after its block")


@plain_operation
async def begin_is_left_open(task: Task) -> None:
    async with task.db.connection() as connection:
        await connection.execute("BEGIN")
        token = await task.write(connection)
    task.ledger.undone(token)


@plain_operation
async def transaction_by_text(task: Task) -> None:
    async with task.db.connection() as connection:
        await connection.execute("BEGIN")
        token = await task.write(connection)
        await connection.execute("COMMIT")
    task.ledger.kept(token)


@plain_operation
async def script_fails_half_way(task: Task) -> None:
    if task.dialect == "sqlite":
        return  # one statement a text
    token = task.token()
    with suppress(Exception):  # the server's, by the driver
        await task.db.execute(f"BEGIN; INSERT INTO storm VALUES ({token}); SELECT 1 / 0; COMMIT")
    task.ledger.undone(token)
