"""What users infer: mypy strict reads this file with the rest, nothing runs it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, assert_type

import httpx2
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelSession

from loopsafe_db import (
    Connection,
    Database,
    DatabaseURL,
    LoopLocal,
    PoolLimits,
    PoolStats,
    ProcessSnapshot,
    Record,
    Timeouts,
    Transaction,
    configure,
    get_database,
    snapshot,
)

if TYPE_CHECKING:
    from sqlalchemy import URL


class OwnSession(AsyncSession):
    """A class of the user's."""


class OwnDatabase(Database):
    """A handle of the user's."""


def handles(url: URL) -> None:
    assert_type(get_database(), Database)
    assert_type(get_database("reports"), Database)
    assert_type(configure("sqlite://"), Database)
    assert_type(
        configure(url, name="x", pool=PoolLimits(4), timeouts=Timeouts(), scope="loop"), Database
    )
    Database(url, scope="lopp")  # type: ignore[arg-type]
    assert_type(Database(url, application_name="me", password=lambda: "secret"), Database)
    assert_type(get_database().url, DatabaseURL)
    assert_type(get_database().engine, AsyncEngine)
    assert_type(get_database().is_connected, bool)
    assert_type(get_database().stats(), PoolStats)
    assert_type(snapshot(), ProcessSnapshot)


async def queries(db: Database) -> None:
    assert_type(await db.fetch_all("SELECT 1"), list[Record])
    assert_type(await db.fetch_all(sa.select(sa.literal(1)), timeout=1.5), list[Record])
    assert_type(await db.fetch_one("SELECT :n", {"n": 1}), Record | None)
    assert_type(await db.fetch_val("SELECT 1", None, "n"), Any)
    assert_type(await db.execute(sa.text("DELETE FROM t")), Any)
    assert_type(await db.execute_many("INSERT INTO t VALUES (:n)", [{"n": 1}]), int | None)
    async for row in db.iterate("SELECT 1"):
        assert_type(row, Record)
        assert_type(row[0], Any)
        assert_type(row.title, Any)
        assert_type(dict(row), dict[str, Any])


async def blocks(db: OwnDatabase) -> None:
    async with db as entered:
        assert_type(entered, OwnDatabase)
    async with db.connection() as connection:
        assert_type(connection, Connection)
        assert_type(await connection.fetch_one("SELECT 1"), Record | None)
        async with connection.transaction() as transaction:
            assert_type(transaction, Transaction)
        async with connection.share() as shared:
            assert_type(shared, Connection)
    async with db.transaction(isolation="serializable", readonly=True) as begun:
        assert_type(begun, Transaction)
        assert_type(begun.connection, Connection)
    assert_type(await db.transaction(), Transaction)


async def sessions(db: Database) -> None:
    assert_type(db.session(), AsyncSession)
    assert_type(db.session(autoflush=False), AsyncSession)
    assert_type(db.session(class_=OwnSession), OwnSession)
    assert_type(db.session.begin(), AbstractAsyncContextManager[AsyncSession])
    async with db.session(class_=SQLModelSession) as session:
        assert_type(session, SQLModelSession)
    async with db.session.begin(class_=OwnSession, info={}) as own:
        assert_type(own, OwnSession)


def make_client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient()


async def make_client_async() -> httpx2.AsyncClient:
    return httpx2.AsyncClient()


async def loop_locals() -> None:
    http = LoopLocal(make_client, close=httpx2.AsyncClient.aclose)
    assert_type(http.get(), httpx2.AsyncClient)
    assert_type(await http.aget(), httpx2.AsyncClient)
    later: LoopLocal[httpx2.AsyncClient] = LoopLocal(make_client_async)
    assert_type(await later.aget(), httpx2.AsyncClient)
