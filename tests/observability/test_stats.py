"""stats(): what a pool has done and who has what, with units; each figure is caused here, and counted."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest
from psycopg_pool.base import BasePool

from loopsafe_db import Database, PoolLimits, PoolStats, Timeouts, snapshot
from loopsafe_db.errors import AcquireTimeout, ConnectError


def one_connection(url: str, **options: Any) -> Database:
    return Database(url, pool=PoolLimits(max_connections=1), **options)


def beside(coroutine: Any) -> asyncio.Task[Any]:
    """Start what uses a connection of its own."""
    return asyncio.create_task(coroutine, context=contextvars.Context())


async def test_requests_are_counted_whoever_makes_them(database: Database) -> None:
    await database.fetch_val("SELECT 1")
    await database.fetch_val("SELECT 2")
    async with database.connection() as connection:
        await connection.fetch_val("SELECT 3")
    async with database.session() as session:
        await session.connection()

    stats = database.stats()
    assert stats.requests_num == 4
    assert (stats.connections_num, stats.connections_errors) == (1, 0)
    assert stats.connections_ms > 0
    assert (stats.requests_queued, stats.requests_wait_ms, stats.queue_peak) == (0, 0.0, 0)


def test_what_is_named_as_in_psycopg_pool_is_counted_there() -> None:
    theirs = {value for value in vars(BasePool).values() if isinstance(value, str)}
    kinds = ("requests_", "connections_", "returns_")
    ours = {name for name in dir(PoolStats) if name.startswith(kinds)}

    assert len(ours) >= 9
    assert ours <= theirs


async def test_who_waits_is_counted_with_the_time_and_the_longest_queue(postgres_url: str) -> None:
    database = one_connection(postgres_url)
    async with database.connection():
        waiting = [beside(database.fetch_val("SELECT 1")) for _ in range(3)]
        await asyncio.sleep(0)  # they wait: nobody gives the connection back
        assert database.stats().waiting == 3
    await asyncio.gather(*waiting)

    stats = database.stats()
    assert (stats.requests_num, stats.requests_queued, stats.queue_peak) == (4, 3, 3)
    assert stats.requests_wait_ms > 0
    assert (stats.waiting, stats.requests_errors) == (0, 0)


async def test_waits_in_vain_are_errors(postgres_url: str) -> None:
    database = one_connection(postgres_url, timeouts=Timeouts(acquire=0.05))
    async with database.connection():
        with pytest.raises(AcquireTimeout):
            await beside(database.fetch_val("SELECT 1"))
        cancelled = beside(database.fetch_val("SELECT 1"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])

    stats = database.stats()
    assert (stats.requests_errors, stats.requests_num) == (2, 3)


async def test_a_server_that_is_not_there_is_a_connect_error(tmp_path: Any) -> None:
    database = Database(f"sqlite:///{tmp_path}/no/folder.db")
    with pytest.raises(ConnectError):
        await database.fetch_val("SELECT 1")

    stats = database.stats()
    assert (stats.connections_num, stats.connections_errors) == (1, 1)
    assert (stats.requests_num, stats.requests_errors) == (1, 1)


async def test_a_connection_that_the_server_has_ended_is_lost(postgres_url: str) -> None:
    database = one_connection(postgres_url, scope="process")
    pid = await database.fetch_val("SELECT pg_backend_pid()")
    killer = Database(postgres_url)
    await killer.fetch_val("SELECT pg_terminate_backend(:pid, 5000)", {"pid": pid})
    await asyncio.sleep(0)  # the farewell is read
    assert await database.fetch_val("SELECT 1") == 1

    stats = database.stats()
    assert (stats.connections_lost, stats.connections_num, stats.requests_num) == (1, 2, 2)


async def test_a_connection_that_breaks_in_use_is_a_bad_return(postgres_url: str) -> None:
    database = one_connection(postgres_url)
    async with database.connection() as connection:
        connection.raw_connection.terminate()

    assert database.stats().returns_bad == 1


async def test_a_session_that_was_changed_is_counted_as_reset(postgres_url: str) -> None:
    database = one_connection(postgres_url)
    await database.execute("SET statement_timeout = '1min'")
    await database.fetch_val("SELECT 1")

    assert database.stats().resets == 1


async def test_holders_are_named_with_their_task_and_place(database: Database) -> None:
    async with database.connection():
        (holder,) = database.stats().holders
        assert holder.place.startswith(__file__)
        assert holder.seconds >= 0
        task = asyncio.current_task()
        assert task is not None
        assert holder.task == task.get_name()

    assert database.stats().holders == ()


async def test_a_snapshot_names_its_pools_without_a_secret(postgres_url: str) -> None:
    database = Database(postgres_url.replace("postgres@", "postgres:hunter2@"), max_size=7)
    await database.fetch_val("SELECT 1")

    (pool,) = (pool for pool in snapshot().pools if pool.max_connections == 7)
    assert str(database.url.database) in pool.name
    assert "hunter2" not in repr(pool)
