"""A coroutine that is dropped half-way costs nobody else anything, in whoever's greenlet that happens."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from loopsafe_db import Database


async def session(database: Database) -> None:
    async with database.session() as opened:
        await opened.execute(sa.text("SELECT 1"))


async def engine(database: Database) -> None:
    async with database.engine.connect() as connection:
        await connection.execute(sa.text("SELECT 1"))


async def first(database: Database) -> None:
    async with database.connection():
        pass  # it opens one


@pytest.mark.parametrize("work", [session, engine, first])
async def test_one_that_is_ended_in_a_strangers_greenlet_is_not_the_strangers_business(
    database: Database, work: Callable[[Database], Coroutine[Any, Any, None]]
) -> None:
    if work is not first:
        await database.fetch_val("SELECT 0")
    async with database.engine.connect() as stranger:
        dropped = work(database)
        dropped.send(None)

        def ask(connection: sa.Connection) -> object:
            with suppress(RuntimeError):  # a session's end awaits: it "ignored GeneratorExit"
                dropped.close()
            return connection.execute(sa.text("SELECT 5")).scalar()

        async with asyncio.timeout(20):
            assert await stranger.run_sync(ask) == 5
    assert await database.fetch_val("SELECT 6") == 6
    await database.disconnect()
