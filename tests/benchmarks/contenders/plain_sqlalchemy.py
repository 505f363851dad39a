"""SQLAlchemy's asyncio engine with asyncpg, as its documentation shows it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.pool import NullPool

from tests.benchmarks.contenders.calls import core_one
from tests.benchmarks.harness import NAMED, Child, in_one_loop, run_each

QUERY = text(NAMED)


async def ask_engine(engine: AsyncEngine, n: int) -> Any:
    """One query on a connection of its own; an engine that loopsafe_db makes is measured with the same."""
    async with engine.connect() as connection:
        return await connection.scalar(QUERY, {"n": n})


def engine_per_run(child: Child) -> Any:
    async def job(n: int) -> Any:
        engine = create_async_engine(child.url_of("postgresql+asyncpg"))
        try:
            return await ask_engine(engine, n)
        finally:
            await engine.dispose()

    return run_each(child, job)


def null_pool(child: Child) -> Any:
    engine = create_async_engine(child.url_of("postgresql+asyncpg"), poolclass=NullPool)
    return run_each(child, lambda n: ask_engine(engine, n))


def shared_engine(child: Child) -> Any:
    engine = create_async_engine(child.url_of("postgresql+asyncpg"))
    return in_one_loop(child, lambda n: ask_engine(engine, n))


def sessions(child: Child) -> Any:
    maker = async_sessionmaker(create_async_engine(child.url_of("postgresql+asyncpg")))
    return in_one_loop(child, lambda n: ask_in(maker(), n))


class CoreEngine:
    """The calls of `databases`, as one writes them with SQLAlchemy's engine."""

    def __init__(self, child: Child) -> None:
        self._engine = create_async_engine(child.url_of("postgresql+asyncpg"))

    async def fetch_one(self, query: Any) -> Any:
        """Give the first row."""
        async with self._engine.connect() as connection:
            return (await connection.execute(query)).mappings().first()

    async def execute(self, query: Any) -> None:
        """Run a text, and commit it."""
        async with self._engine.begin() as connection:
            await connection.execute(text(query))


async def ask_in(session: AsyncSession, n: int) -> Any:
    """One query in a session of its own; loopsafe_db's is measured with the same."""
    async with session:
        return (await session.execute(select(text("CAST(:n AS int)")), {"n": n})).scalar()


CASES = {
    "engine per run": engine_per_run,
    "null pool": null_pool,
    "shared engine": shared_engine,
    "sessions": sessions,
    "core one": lambda child: core_one(child, CoreEngine(child)),
}
