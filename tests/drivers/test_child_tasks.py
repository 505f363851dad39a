"""Tasks that are started inside a transaction are in it: what they ask of the handle joins it, in turn."""

from __future__ import annotations

import asyncio
import contextvars
import os
import time
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import sqlalchemy as sa

from loopsafe_db import Database, connection, pinned
from loopsafe_db.errors import ForeignTransactionError, TransactionError
from loopsafe_db.testing.conformance import SLOW
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from sqlalchemy.ext.asyncio import AsyncSession

INSERT = "INSERT INTO things (n) VALUES (:n)"
COUNT = "SELECT count(*) FROM things"
things = sa.Table("things", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True))


@pytest.fixture(params=["plain", "force_rollback"])
async def handle(request: pytest.FixtureRequest, any_database: Database) -> AsyncIterator[Database]:
    """A handle of one connection, and one whose work is undone."""
    await any_database.execute("CREATE TABLE things (n integer PRIMARY KEY)")
    undone = request.param == "force_rollback"
    handle = Database(any_database.url, scope=SCOPE, max_size=1, force_rollback=undone)
    yield handle
    assert handle.stats().in_use == 0
    await handle.disconnect()


@pytest.fixture
async def plain(any_database: Database) -> AsyncIterator[Database]:
    await any_database.execute("CREATE TABLE things (n integer PRIMARY KEY)")
    yield any_database
    assert any_database.stats().in_use == 0
    await any_database.disconnect()


async def numbers(handle: Database) -> set[int]:
    return {row.n for row in await handle.fetch_all("SELECT n FROM things")}


async def insert(handle: Database, n: int) -> Any:
    return await handle.execute(INSERT, {"n": n})


async def insert_in(session: AsyncSession, n: int) -> None:
    await session.execute(things.insert(), {"n": n})


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def in_transaction(handle: Database, n: int, *, fail: bool = False) -> None:
    async with handle.transaction():
        await insert(handle, n)
        await asyncio.sleep(0)
        await insert(handle, n + 1)
        if fail:
            raise ZeroDivisionError


async def by_wait_for(work: Coroutine[Any, Any, Any]) -> None:
    await asyncio.wait_for(work, 20)


async def by_gather(work: Coroutine[Any, Any, Any]) -> None:
    await asyncio.gather(work)


async def by_shield(work: Coroutine[Any, Any, Any]) -> None:
    await asyncio.shield(work)


async def by_task_group(work: Coroutine[Any, Any, Any]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(work)


async def by_anyio(work: Coroutine[Any, Any, Any]) -> None:
    async def run() -> None:
        await work

    async with anyio.create_task_group() as group:
        group.start_soon(run)


async def by_text(handle: Database) -> None:
    await insert(handle, 1)


async def by_clause(handle: Database) -> None:
    await handle.execute(things.insert(), {"n": 1})


async def by_many(handle: Database) -> None:
    await handle.execute_many(INSERT, [{"n": 1}])


async def on_connection(handle: Database) -> None:
    async with handle.connection() as connection:
        await connection.execute(INSERT, {"n": 1})


async def nested(handle: Database) -> None:
    await handle.transaction()(by_text)(handle)


async def by_hand(handle: Database) -> None:
    transaction = await handle.transaction()
    await insert(handle, 1)
    await transaction.commit()


STARTS = [by_wait_for, by_gather, by_shield, by_task_group, by_anyio]
WORKS = [by_text, by_clause, by_many, on_connection, nested, by_hand]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("work", WORKS)
async def test_what_a_child_task_does_is_in_the_transaction(
    handle: Database,
    start: Callable[[Coroutine[Any, Any, Any]], Awaitable[None]],
    work: Callable[[Database], Coroutine[Any, Any, None]],
) -> None:
    async with handle.transaction(force_rollback=True):
        await insert(handle, 0)
        await start(work(handle))
        assert await numbers(handle) == {0, 1}
    assert await numbers(handle) == set()


async def test_children_read_what_is_not_committed(handle: Database) -> None:
    async def stream() -> set[int]:
        return {row.n async for row in handle.iterate("SELECT n FROM things")}

    async def replica() -> Any:
        return await handle.read().fetch_val(COUNT)

    async with handle.transaction(force_rollback=True):
        await insert(handle, 1)
        seen = await asyncio.gather(stream(), replica(), handle.fetch_val(COUNT), numbers(handle))
    assert (*seen,) == ({1}, 1, 1, {1})


async def test_a_child_reads_no_replica(plain: Database) -> None:
    nowhere = plain.url.set(database="/nowhere/at/all")
    handle = Database(plain.url, replicas=[nowhere])
    async with handle.transaction():
        await insert(handle, 1)

        async def read() -> Any:
            return await handle.read().fetch_val(COUNT)

        assert await asyncio.create_task(read()) == 1
    await handle.disconnect()


async def test_siblings_nest_in_turn_and_what_fails_is_undone_alone(handle: Database) -> None:
    async with handle.transaction():
        outcomes = await asyncio.gather(
            *(in_transaction(handle, n, fail=n % 20 == 0) for n in range(0, 100, 10)),
            *(insert(handle, n) for n in range(5, 100, 10)),
            return_exceptions=True,
        )
    failed = [n for n, one in zip(range(0, 100, 10), outcomes, strict=False) if one is not None]
    assert failed == [0, 20, 40, 60, 80]
    kept = {n for n in range(0, 100, 10) if n % 20}
    assert await numbers(handle) == kept | {n + 1 for n in kept} | {*range(5, 100, 10)}


@pytest.mark.parametrize("kind", ["transaction", "session"])
async def test_who_waits_for_a_transaction_waits_for_as_long_as_something_is_done_in_it(
    database: Database, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "session" and database.url.dialect == "sqlite":
        pytest.skip(
            "SQLAlchemy awaits something there before it takes its turn, and the clock has gone on"
        )
    await database.execute("CREATE TABLE things (n integer PRIMARY KEY)")
    handle = Database(database.url, scope=SCOPE, force_rollback=True)
    late = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late)
    for module in (connection, pinned):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(connection, "STRANGER_DELAY", 0)

    async def undone() -> None:
        nonlocal late
        async with getattr(handle, kind)() as opened:
            add = partial(insert, handle) if kind == "transaction" else partial(insert_in, opened)
            await add(1)
            waits = asyncio.create_task(in_transaction(handle, 2), context=contextvars.Context())
            for n in range(4, 7):
                await settle()  # it looks whether it may
                late += 10 * pinned.STRANGER_PATIENCE
                await add(n)
            await settle()
            waiting.append(waits)
            raise ZeroDivisionError

    waiting: list[asyncio.Task[None]] = []
    with pytest.raises(ZeroDivisionError):
        await undone()
    await waiting[0]
    assert await numbers(handle) == {2, 3}
    await handle.disconnect()


async def test_the_parent_waits_for_the_transaction_of_a_child_too(handle: Database) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def child() -> None:
        async with handle.transaction():
            await insert(handle, 1)
            begun.set()
            await go_on.wait()
            raise ZeroDivisionError

    async with handle.transaction():
        task = asyncio.create_task(child())
        await begun.wait()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        await insert(handle, 2)
        with pytest.raises(ZeroDivisionError):
            await task
    assert await numbers(handle) == {2}


async def test_one_begun_within_a_time_limit_belongs_to_who_waits_for_it(handle: Database) -> None:
    async with handle.transaction():
        inner = handle.transaction()
        await asyncio.wait_for(inner.start(), 20)
        await insert(handle, 1)
        await asyncio.wait_for(inner.rollback(), 20)
        await insert(handle, 2)
    assert await numbers(handle) == {2}


async def test_a_child_that_is_cancelled_aborts_no_more_than_its_own_transaction(
    handle: Database, request: pytest.FixtureRequest
) -> None:
    if handle.url.get_backend_name() == "mysql" and "force_rollback" not in request.node.name:
        pytest.skip("what is cancelled costs its connection")

    async def child() -> None:
        async with handle.transaction():
            await insert(handle, 1)
            await handle.fetch_val(SLOW[handle.url.get_backend_name()])

    async with handle.transaction():
        await insert(handle, 0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(child(), 0.3)
        await insert(handle, 2)
    assert await numbers(handle) == {0, 2}


async def test_a_child_that_is_cancelled_before_its_turn_does_nothing(handle: Database) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def sibling() -> None:
        async with handle.transaction():
            begun.set()
            await go_on.wait()

    async with handle.transaction():
        task = asyncio.create_task(sibling())
        await begun.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(insert(handle, 1), 0.05)
        go_on.set()
        await task
        await insert(handle, 2)
    assert await numbers(handle) == {2}


async def test_a_child_that_outlives_the_block_works_on_a_connection_of_its_own(
    plain: Database,
) -> None:
    inserted, go_on = asyncio.Event(), asyncio.Event()

    async def child() -> None:
        await insert(plain, 1)
        inserted.set()
        await go_on.wait()
        await insert(plain, 2)
        await in_transaction(plain, 3)

    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with plain.transaction():
            task = asyncio.create_task(child())
            await inserted.wait()
            raise ZeroDivisionError
    async with plain.transaction(force_rollback=True):
        if plain.url.get_backend_name() != "sqlite":  # one writes at a time
            go_on.set()
            await task
    go_on.set()
    await task
    assert await numbers(plain) == {2, 3, 4}


@pytest.mark.parametrize("work", WORKS)
async def test_one_that_waits_for_its_turn_when_the_block_ends_goes_on_by_itself(
    plain: Database, work: Callable[[Database], Coroutine[Any, Any, None]]
) -> None:
    undone, tasks = False, []
    try:
        async with plain.transaction():
            await plain.fetch_val("SELECT 1")
            tasks.append(asyncio.create_task(work(plain)))
            await asyncio.sleep(0)
    except TransactionError:  # the child has begun one inside of it, and not ended that
        undone = True
    async with plain.transaction(force_rollback=True):  # on no connection that the child has
        await asyncio.sleep(0)
    with suppress(TransactionError):
        await asyncio.gather(*tasks)
        undone = False
    assert await numbers(plain) == (set() if undone else {1})


async def test_the_parent_does_not_wait_for_a_child_after_its_block(plain: Database) -> None:
    if plain.url.get_backend_name() == "sqlite":
        pytest.skip("one writes at a time")
    go_on, entered = asyncio.Event(), asyncio.Event()
    mysql = plain.url.get_backend_name() == "mysql"
    which = f"SELECT {'connection_id' if mysql else 'pg_backend_pid'}()"

    async def child() -> None:
        async with plain.connection() as connection:
            entered.set()
            await go_on.wait()
            async with connection.transaction():
                await connection.execute(INSERT, {"n": 1})
                async with plain.transaction(force_rollback=True):
                    await insert(plain, 2)
                await insert(plain, 3)

    async with plain.transaction():
        task = asyncio.create_task(child())
        await entered.wait()
    async with plain.connection() as connection:
        before = await connection.fetch_val(which)
        go_on.set()
        await task
        assert await plain.fetch_val(which) == before
    assert await numbers(plain) == {1, 3}


async def test_without_the_context_a_task_is_beside(plain: Database) -> None:
    async with plain.transaction(readonly=True):
        task = asyncio.create_task(insert(plain, 1), context=contextvars.Context())
        await task
    assert await numbers(plain) == {1}


async def test_inside_a_connections_block_children_have_connections_of_their_own(
    plain: Database,
) -> None:
    async with plain.connection() as connection:
        await asyncio.gather(insert(plain, 1), in_transaction(plain, 2))
        assert len(await connection.fetch_all("SELECT n FROM things")) == 3
        task = asyncio.create_task(plain.fetch_val(COUNT))
        async with connection.transaction(readonly=True):
            assert await task == 3


async def test_what_cannot_be_in_it_is_refused_and_says_why(plain: Database) -> None:
    async def session() -> None:
        async with plain.session() as session:
            await session.scalar(sa.text(COUNT))

    async with plain.transaction():
        for start in (
            asyncio.create_task(session()),
            asyncio.to_thread(asyncio.run, plain.fetch_val(COUNT)),
            asyncio.to_thread(asyncio.run, by_clause(plain)),
        ):
            with pytest.raises(ForeignTransactionError, match="contextvars"):
                await start
        await insert(plain, 1)
        await session()
    await asyncio.to_thread(asyncio.run, insert(plain, 2))
    await asyncio.create_task(session())
    assert await numbers(plain) == {1, 2}


async def test_a_thread_without_the_context_is_beside(plain: Database) -> None:
    def count() -> Any:
        return asyncio.run(plain.fetch_val(COUNT))

    async with plain.transaction(readonly=True):
        assert await asyncio.get_running_loop().run_in_executor(None, count) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")
async def test_a_forked_child_is_in_no_transaction(plain: Database) -> None:
    if plain.url.dialect == "sqlite":
        pytest.skip("a file that is in use at a fork is refused in the child: test_sqlite")

    async def parent() -> int:
        def child() -> int:
            return asyncio.run(plain.fetch_val(COUNT))  # type: ignore[no-any-return]

        import multiprocessing

        receiver, sender = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=lambda: sender.send(child()))
        process.start()
        found: int = await asyncio.get_running_loop().run_in_executor(None, receiver.recv)
        process.join()
        return found

    async with plain.transaction(readonly=True):
        assert await asyncio.create_task(parent()) == 0
