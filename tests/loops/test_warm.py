"""Connections stay warm over loops and threads: one limit for a process, a fair queue, nothing lost."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from loopsafe_db import Database, PoolLimits, Timeouts, configure, default, get_database
from loopsafe_db._runtime.registry import process_state
from loopsafe_db.engines import lending
from loopsafe_db.engines.lending import Lending
from loopsafe_db.errors import AcquireTimeout, ForeignLoopError, InvalidSettingError
from loopsafe_db.settings import load_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loopsafe_db.options import DatabaseOptions

OTHERS = """FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND backend_type = 'client backend'"""  # autovacuum may come at any time


@pytest.fixture
def warm(database: Database) -> Callable[..., Database]:
    """Make handles on the database of this test, in process scope."""

    def make(
        max_connections: int = 10,
        acquire: float = 30.0,
        idle_timeout: float | None = None,
        recycle: float | None = None,
    ) -> Database:
        limits = PoolLimits(max_connections, idle_timeout=idle_timeout, recycle=recycle)
        timeouts = Timeouts(acquire=acquire)
        return Database(database.url, pool=limits, timeouts=timeouts, scope="process")

    return make


@pytest.fixture
def other_loop() -> Iterator[Callable[..., Future[None]]]:
    """Run coroutines in a loop of another thread, that lives as long as the test."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def use(database: Database) -> None:
    async with database.connection() as connection:
        await connection.fetch_val("SELECT 1")


async def waiting(database: Database, count: int) -> None:
    """Wait until so many callers queue."""
    async with asyncio.timeout(5):
        while database.stats().waiting != count:  # noqa: ASYNC110 (no event tells of it)
            await asyncio.sleep(0)


def test_a_hundred_runs_use_the_same_connection(warm: Callable[..., Database]) -> None:
    database = warm()

    for _ in range(100):
        asyncio.run(use(database))
    assert database.stats().opened == 1


def test_a_hundred_runs_meet_the_same_backend(postgres_url: str) -> None:
    database = Database(postgres_url)
    pids = {asyncio.run(database.fetch_val("SELECT pg_backend_pid()")) for _ in range(100)}

    assert len(pids) == 1


def test_six_threads_of_runs_share_two_connections_among_four_sessions_each(
    warm: Callable[..., Database],
) -> None:
    database = warm(2)

    async def one(number: int) -> int:
        async with AsyncSession(database.engine) as session:
            query = text("SELECT CAST(:n AS integer)")
            return int((await session.execute(query, {"n": number})).scalar_one())

    async def four(first: int) -> list[int]:
        return await asyncio.gather(*(one(first + offset) for offset in range(4)))

    def jobs(thread: int) -> bool:
        firsts = [thread * 1000 + turn * 4 for turn in range(200)]
        return all(asyncio.run(four(first)) == [first + n for n in range(4)] for first in firsts)

    with ThreadPoolExecutor(6) as executor:
        assert all(executor.map(jobs, range(6)))
    assert database.stats().opened <= 2 + database.stats().terminated
    assert (database.stats().in_use, database.stats().waiting) == (0, 0)


def test_callers_of_all_loops_are_served_in_the_order_they_came(
    warm: Callable[..., Database], other_loop: Callable[..., Future[None]]
) -> None:
    database, served = warm(1), []

    async def caller(name: int) -> None:
        async with database.connection():
            served.append(name)

    async def main() -> None:
        async with database.connection():
            here, there = [], []
            for name in range(0, 10, 2):
                here.append(asyncio.create_task(caller(name)))
                await waiting(database, name + 1)
                there.append(other_loop(caller(name + 1)))
                await waiting(database, name + 2)
        await asyncio.gather(*here, *map(asyncio.wrap_future, there))

    asyncio.run(main())
    assert served == list(range(10))


@pytest.mark.parametrize(
    "end", ["cancelled", "timed out", "loop closed", "loop closed on its turn"]
)
def test_a_waiter_that_goes_loses_no_connection_and_no_wake_up(
    warm: Callable[..., Database], end: str
) -> None:
    database = warm(1, acquire=0.05 if end == "timed out" else 30)
    loop = asyncio.new_event_loop()
    kept: list[object] = []  # a task that somebody keeps is not collected with its loop

    async def ask() -> None:
        await database.fetch_val("SELECT 1")

    async def main() -> None:
        async with database.connection():
            if end.startswith("loop"):
                loop.call_soon(lambda: kept.append(loop.create_task(ask())))
                loop.call_soon(loop.call_soon, loop.stop)
                await asyncio.to_thread(loop.run_forever)
                await waiting(database, 1)
                if end == "loop closed":
                    close(loop)
            else:
                task = asyncio.create_task(ask())
                await waiting(database, 1)
                if end == "cancelled":
                    task.cancel()
                with suppress(asyncio.CancelledError, AcquireTimeout):
                    await task
        if end == "loop closed on its turn":
            close(loop)
        assert await database.fetch_val("SELECT 7") == 7

    asyncio.run(main())
    close(loop)
    assert (database.stats().in_use, database.stats().waiting) == (0, 0)
    assert database.stats().opened == 1


def close(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop the rough way, and let its task go without the remark that it was pending."""
    for task in asyncio.all_tasks(loop) if not loop.is_closed() else ():
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
    loop.close()
    gc.collect()


def test_an_idle_connection_of_a_loop_that_does_not_run_is_no_reason_to_wait(
    warm: Callable[..., Database],
) -> None:
    database = warm(1, acquire=5)
    with asyncio.Runner() as sleeping:
        assert sleeping.run(database.fetch_val("SELECT 1")) == 1
        assert asyncio.run(database.fetch_val("SELECT 2")) == 2
        assert sleeping.run(database.fetch_val("SELECT 3")) == 3


def test_one_limit_holds_for_all_threads_and_loops(
    warm: Callable[..., Database], postgres_url: str
) -> None:
    database = Database(postgres_url, pool=PoolLimits(3), scope="process")
    witness = Database(postgres_url)
    stop, seen = threading.Event(), []

    async def watch() -> None:
        query = f"SELECT count(*) {OTHERS}"
        async with witness.connection() as connection:
            while not stop.is_set():
                seen.append(await connection.fetch_val(query))

    async def job(_: int) -> None:
        await asyncio.gather(*(database.fetch_val("SELECT pg_sleep(0.001)") for _ in range(5)))

    watcher = threading.Thread(target=lambda: asyncio.run(watch()))
    watcher.start()
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda number: asyncio.run(job(number)), range(80)))
    stop.set()
    watcher.join()
    assert 1 <= max(seen) <= 3


def test_what_is_lent_again_meanwhile_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread looks at what a closed loop had, another gives that back and lends it to a third."""
    closed, living = asyncio.new_event_loop(), asyncio.new_event_loop()
    closed.close()
    entries: Lending[Any] = Lending(
        2, movable=True, sticky=True, ask=print, evict=print, sweep=print, may_open=bool
    )
    kept, again = object(), object()
    entries.held = dict.fromkeys((kept, again), weakref.ref(closed))

    def is_gone(loop: asyncio.AbstractEventLoop | None) -> bool:
        entries.held[again] = weakref.ref(living)  # just now
        return loop is closed

    monkeypatch.setattr(lending, "is_gone", is_gone)
    assert entries.take_lost() == [kept]
    assert entries.held == {again: weakref.ref(living)}
    living.close()


def test_a_full_pool_tells_who_holds_what_since_when_in_every_loop(
    warm: Callable[..., Database], other_loop: Callable[..., Future[None]]
) -> None:
    database = warm(1, acquire=0.05)
    held, release = threading.Event(), threading.Event()

    async def hold() -> None:
        async with database.connection():
            held.set()
            await asyncio.to_thread(release.wait)

    holding = other_loop(hold())
    held.wait()
    with pytest.raises(AcquireTimeout, match=r"Task-\d+ for 0\.\d s, .*test_warm\.py:\d+"):
        asyncio.run(database.fetch_val("SELECT 1"))
    release.set()
    holding.result()


async def once(database: Database) -> None:
    await database.fetch_val("SELECT 1")


async def in_a_transaction(database: Database) -> None:
    async with database.transaction():
        await database.fetch_val("SELECT 1")


async def in_a_session(database: Database) -> None:
    async with database.session() as session:
        await session.execute(text("SELECT 1"))


async def streamed(database: Database) -> None:
    assert [row[0] async for row in database.iterate("SELECT 1")] == [1]


async def several_at_once(database: Database) -> None:
    all_here = asyncio.Barrier(4)

    async def one() -> None:
        async with database.connection():
            await all_here.wait()

    await asyncio.gather(*(one() for _ in range(4)))


USES = [once, in_a_transaction, in_a_session, streamed, several_at_once]


@pytest.mark.parametrize("scope", ["process", "loop"])
@pytest.mark.parametrize("use_it", USES)
async def test_a_loop_that_lives_gives_idle_connections_back_that_it_has_used_once(
    database: Database, use_it: Callable[[Database], Any], scope: Any
) -> None:
    database = Database(database.url, pool=PoolLimits(5, idle_timeout=0.05), scope=scope)
    await use_it(database)

    async with asyncio.timeout(10):
        while database.stats().closed < database.stats().opened:  # noqa: ASYNC110 (no event tells of it)
            await asyncio.sleep(0)
    assert database.stats().idle == 0


@pytest.mark.parametrize("scope", ["process", "loop"])
async def test_a_connection_that_has_lived_is_closed_when_its_user_gives_it_back(
    database: Database, scope: Any
) -> None:
    database = Database(database.url, pool=PoolLimits(5, recycle=1e-9), scope=scope)
    for use_it in USES:
        before = database.stats().opened
        await use_it(database)
        assert database.stats().idle == 0
        assert database.stats().opened > before
    assert database.stats().returns_bad == 0


@pytest.mark.parametrize("scope", ["process", "loop"])
async def test_a_connection_that_has_lived_is_closed_while_nobody_uses_it(
    database: Database, scope: Any
) -> None:
    limits = PoolLimits(5, idle_timeout=None, recycle=1.0)
    database = Database(database.url, pool=limits, scope=scope)
    await several_at_once(database)
    assert database.stats().idle

    async with asyncio.timeout(10):
        while database.stats().closed < database.stats().opened:  # noqa: ASYNC110 (no event tells of it)
            await asyncio.sleep(0.01)
    assert database.stats().idle == 0


GIVEN_BACK = [{"idle_timeout": 0.3}, {"recycle": 1.0}]


@pytest.mark.parametrize("idle_timeout", [None, 0.2], ids=["disconnected", "idle"])
def test_handles_that_are_gone_are_kept_by_nothing_though_the_process_never_forks(
    warm: Callable[..., Database], idle_timeout: float | None
) -> None:
    others = set(threading.enumerate())
    database = warm(5, idle_timeout=idle_timeout)  # else its reaper would look in a minute
    asyncio.run(once(database))
    engine = weakref.ref(database.engine.sync_engine)
    if idle_timeout is None:
        asyncio.run(database.disconnect())
    while database.stats().idle:
        time.sleep(0.01)
    del database
    for thread in set(threading.enumerate()) - others:
        if thread.name == "loopsafe_db reaper":
            thread.join(10)
    gc.collect()
    assert engine() is None


class Collected(dict[Any, Any]):
    """A dict in which a finalizer takes something away between two pairs: CPython 3.11 may collect garbage there."""

    def items(self) -> Any:
        for pair in super().items():
            yield pair
            self.popitem()


async def test_a_handle_is_used_first_though_others_are_collected_meanwhile(
    warm: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [warm(1) for _ in range(3)]
    for other in others:
        await once(other)
    state = process_state()
    monkeypatch.setattr(state, "resources", Collected(state.resources))
    async with warm(1) as database:
        await once(database)
    monkeypatch.undo()
    for other in others:
        await other.disconnect()


async def test_handles_that_went_before_their_connections_are_kept_until_the_next_is_used(
    warm: Callable[..., Database],
) -> None:
    database = warm(5)
    engine = weakref.ref(database.engine.sync_engine)
    connection = database.connection()
    async with connection:
        await connection.fetch_val("SELECT 1")
        del database
        gc.collect()
    del connection
    async with warm(5) as other:
        await once(other)
        gc.collect()
        assert engine() is None


async def test_handles_that_are_gone_are_kept_by_nothing_though_their_loop_lives(
    warm: Callable[..., Database],
) -> None:
    database = warm(5)
    await once(database)
    engine = weakref.ref(database.engine.sync_engine)
    await database.disconnect()
    del database
    gc.collect()
    assert engine() is None


@pytest.mark.parametrize("limit", GIVEN_BACK, ids=["idle", "lived"])
@pytest.mark.parametrize("forks", [0, 1, 3])
def test_idle_connections_are_given_back_where_no_loop_runs(
    warm: Callable[..., Database], forks: int, limit: dict[str, float]
) -> None:
    database = warm(5, **limit)
    asyncio.run(several_at_once(database))
    for _ in range(forks):
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)

    give_up = time.monotonic() + 10
    while database.stats().idle and time.monotonic() < give_up:
        time.sleep(0.01)  # no event tells of it
    assert database.stats().idle == 0
    assert asyncio.run(database.fetch_val("SELECT 2")) == 2


def test_a_connection_that_the_server_ended_while_it_was_idle_is_replaced(
    postgres_url: str,
) -> None:
    raws: list[Any] = []

    async def keep(raw: Any) -> None:
        raws.append(raw)

    database, killer = Database(postgres_url, init=keep), Database(postgres_url)

    async def kill_all() -> None:
        await killer.fetch_all(f"SELECT pg_terminate_backend(pid, 5000) {OTHERS}")

    async def both() -> None:
        await database.fetch_val("SELECT 1")
        await kill_all()
        async with asyncio.timeout(5):
            while not raws[0].is_closed():  # noqa: ASYNC110 (no event tells of it)
                await asyncio.sleep(0)
        assert await database.fetch_val("SELECT 2") == 2  # idle in a loop that runs

    asyncio.run(both())
    asyncio.run(kill_all())
    assert asyncio.run(database.fetch_val("SELECT 3")) == 3  # idle between two loops


def test_a_session_kept_across_loops_names_owner_and_user(warm: Callable[..., Database]) -> None:
    database = warm()
    sessions: list[AsyncSession] = []

    async def keep() -> None:
        sessions.append(AsyncSession(database.engine))
        await sessions[0].execute(text("SELECT 1"))

    async def use() -> None:
        await sessions[0].execute(text("SELECT 1"))

    with asyncio.Runner() as owner:
        owner.run(keep())
        with pytest.raises(
            (ForeignLoopError, StatementError), match=r"LDB101.*loop \d+ of process"
        ):
            asyncio.run(use())
        owner.run(sessions[0].close())


def test_threads_that_race_to_the_first_handle_share_its_connections(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(6)
    options = replace(Database(postgres_url)._options, pool=PoolLimits(1))  # noqa: SLF001

    def load_together(_: str) -> DatabaseOptions:
        together.wait()
        return options

    monkeypatch.setattr(default, "load_options", load_together)

    def first_use(_: int) -> int:
        return int(asyncio.run(get_database("racing").fetch_val("SELECT pg_backend_pid()")))

    with ThreadPoolExecutor(6) as executor:
        assert len(set(executor.map(first_use, range(6)))) == 1


def test_a_handle_that_is_configured_anew_closes_what_it_had(postgres_url: str) -> None:
    first = configure(postgres_url, name="changing")
    asyncio.run(first.fetch_val("SELECT 1"))
    again = configure(postgres_url, name="changing")

    assert again is first
    assert again.stats().idle == 0
    query = f"SELECT count(*) {OTHERS}"
    give_up = time.monotonic() + 20
    while asyncio.run(again.fetch_val(query)):  # until the server has noticed
        assert time.monotonic() < give_up


def test_an_engine_keeps_the_handle_that_made_it(warm: Callable[..., Database]) -> None:
    engine = warm().engine.execution_options(isolation_level="AUTOCOMMIT")
    gc.collect()

    async def ask() -> None:
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT 5"))).scalar_one() == 5

    for _ in range(3):
        asyncio.run(ask())
    assert engine.handle.stats().opened == 1  # type: ignore[attr-defined]


def test_a_fleet_s_budget_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPSAFE_DB_FLEET_URL", "postgresql://u@h/d")
    monkeypatch.setenv("LOOPSAFE_DB_FLEET_FLEET_CONNECTIONS", "20")
    monkeypatch.setenv("LOOPSAFE_DB_FLEET_FLEET_WORKERS", "6")
    assert load_options("fleet").pool.max_connections == 3

    monkeypatch.setenv("LOOPSAFE_DB_FLEET_FLEET_WORKERS", "21")
    with pytest.raises(InvalidSettingError, match="FLEET_WORKERS=21"):
        load_options("fleet")


@pytest.mark.parametrize("scope", ["threads", ""])
def test_an_unknown_scope_is_refused(scope: Any) -> None:
    with pytest.raises(InvalidSettingError, match="'auto', 'loop' or 'process'"):
        Database("postgresql://u@h/d", scope=scope)
