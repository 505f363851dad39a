"""The same fleet with the singleton that `loopsafe_db` replaces: see the bug first.

Only a worker process of ``demo --broken`` imports this with effect. The first thing that such a
process unpickles is a `BrokenWorker`; importing its module puts the `get_database` below into
`loopsafe_db`, so that every worker module, unchanged, imports it from there. Everything else is
real: the pool is asyncpg's own, and so are the errors.

How it goes wrong: `running.run_meeting_job` asks for the database before it calls `asyncio.run`, so the
ContextVar is set in the thread of the SDK's pool and stays there. The thread's first job fills the
pool with connections of its event loop, which ends with the job. The second job finds them.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import ClauseElement, make_url, text
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.sql.compiler import SQLCompiler

import loopsafe_db
from loopsafe_db.integrations.conductor import FleetWorker

URL_VARIABLE = "LOOPSAFE_DB_URL"
Query = str | ClauseElement
Values = Mapping[str, object] | None


class Database:
    """A pool, and one connection of it for each asyncio task in a transaction: what many have."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url).set(drivername="postgresql")
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._in_transaction: WeakKeyDictionary[asyncio.Task[Any], asyncpg.Connection[Any]]
        self._in_transaction = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<broken Database {self.url!r}>"

    async def fetch_all(self, query: Query, values: Values = None) -> list[asyncpg.Record]:
        sql, arguments = _compiled(query, values)
        async with self._connection() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(sql, *arguments)
            return rows

    async def fetch_one(self, query: Query, values: Values = None) -> asyncpg.Record | None:
        rows = await self.fetch_all(query, values)
        return rows[0] if rows else None

    async def fetch_val(self, query: Query, values: Values = None) -> Any:
        row = await self.fetch_one(query, values)
        return None if row is None else row[0]

    async def execute(self, query: Query, values: Values = None) -> Any:
        return await self.fetch_val(query, values)

    async def execute_many(self, query: Query, rows: Sequence[Mapping[str, object]]) -> None:
        for values in rows:
            await self.execute(query, values)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with self._connection() as connection, connection.transaction():
            task = asyncio.current_task()
            assert task is not None
            self._in_transaction[task] = connection
            try:
                yield
            finally:
                del self._in_transaction[task]

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        task = asyncio.current_task()
        if task is not None and task in self._in_transaction:
            yield self._in_transaction[task]
            return
        if self._pool is None:
            dsn = self.url.render_as_string(hide_password=False)
            self._pool = await asyncpg.create_pool(dsn, min_size=1, max_size=4)
        async with self._pool.acquire() as connection:
            yield connection


_database_context: ContextVar[Database | None] = ContextVar("database", default=None)


def get_database() -> Database:
    """The singleton of many an async program, made for one event loop in one process."""
    database = _database_context.get()
    if database is None:
        database = Database(os.environ[URL_VARIABLE])
        _database_context.set(database)
    return database


class BrokenWorker(FleetWorker):
    """The SDK's worker, unchanged; unpickling one imports this module before any worker module."""


def _compiled(query: Query, values: Values) -> tuple[str, list[object]]:
    clause = text(query) if isinstance(query, str) else query
    compiled = clause.compile(dialect=PGDialect_asyncpg())  # type: ignore[no-untyped-call]
    assert isinstance(compiled, SQLCompiler)
    parameters = compiled.construct_params(values)
    return str(compiled), [parameters[name] for name in compiled.positiontup or []]


if multiprocessing.current_process().name != "MainProcess":
    loopsafe_db.get_database = get_database  # type: ignore[assignment]
