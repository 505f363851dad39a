"""SQLAlchemy's engine and sessions on our connections: transactions are real, and leave nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from loopsafe_db import Database
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

table = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))


@pytest.fixture
async def seen(database: Database) -> Callable[[], Awaitable[set[int]]]:
    """Give what another handle sees of the table: only what is committed."""
    await database.execute(sa.schema.CreateTable(table))
    other = Database(database.url, scope=SCOPE)

    async def look() -> set[int]:
        return {row.id for row in await other.fetch_all("SELECT id FROM things")}

    return look


async def test_text_after_a_clause_is_committed(
    database: Database, seen: Callable[[], Awaitable[set[int]]]
) -> None:
    await database.execute(table.insert().values(id=1))
    await database.execute("INSERT INTO things (id) VALUES (2)")
    assert await seen() == {1, 2}


async def test_a_session_commits_or_rolls_back(
    database: Database, seen: Callable[[], Awaitable[set[int]]]
) -> None:
    async with AsyncSession(database.engine) as session:
        await session.execute(table.insert().values(id=1))
        await session.rollback()
        await session.execute(table.insert().values(id=2))
        assert await seen() == set()
        await session.commit()
    async with AsyncSession(database.engine) as session:
        await session.execute(table.insert().values(id=3))
    await database.execute("INSERT INTO things (id) VALUES (4)")
    assert await seen() == {2, 4}


async def test_an_engine_s_block_is_all_or_nothing(
    database: Database, seen: Callable[[], Awaitable[set[int]]]
) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with database.engine.begin() as connection:
            await connection.execute(table.insert().values(id=1))
            raise ZeroDivisionError
    async with database.engine.begin() as connection:
        await connection.execute(table.insert().values(id=2))
    assert await seen() == {2}


async def test_an_engine_in_autocommit_leaves_the_next_user_his_transactions(
    database: Database, seen: Callable[[], Awaitable[set[int]]]
) -> None:
    engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(table.insert().values(id=1))
        assert await seen() == {1}
    async with AsyncSession(database.engine) as session:
        await session.execute(table.insert().values(id=2))
    assert await seen() == {1}


async def test_clauses_and_text_share_a_transaction(
    database: Database, seen: Callable[[], Awaitable[set[int]]]
) -> None:
    async with database.transaction():
        await database.execute(table.insert().values(id=1))
        await database.execute("INSERT INTO things (id) VALUES (2)")
        assert await seen() == set()
    assert await seen() == {1, 2}
