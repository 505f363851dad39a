"""Who waits for a connection is served in turn, whatever becomes of the others; waiting costs little."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import sys
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from loopsafe_db import Database, PoolLimits, Timeouts
from loopsafe_db.engines.lending import Slot, items_of
from loopsafe_db.errors import AcquireTimeout, InvalidSettingError, TooManyRequests

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

PATIENCE = 20.0  # seconds: who is not served at all fails
SEVERAL = 5000  # more pairs than CPython keeps for use again


@pytest.fixture
def pool_of(database: Database) -> Callable[..., Database]:
    """Make handles on the database of this test, in process scope."""

    def make(size: int, acquire: float = PATIENCE) -> Database:
        limits, timeouts = PoolLimits(size), Timeouts(acquire=acquire)
        return Database(database.url, pool=limits, timeouts=timeouts, scope="process")

    return make


async def waiting(database: Database, count: int) -> None:
    """Wait until so many callers queue."""
    async with asyncio.timeout(PATIENCE):
        while database.stats().waiting != count:  # noqa: ASYNC110 (no event tells of it)
            await asyncio.sleep(0)


async def use(database: Database) -> None:
    async with database.connection():
        await asyncio.sleep(0)


def beside(coroutine: Coroutine[object, object, None]) -> asyncio.Task[None]:
    """Start what uses a connection of its own."""
    return asyncio.create_task(coroutine, context=contextvars.Context())


def in_thread(work: Coroutine[object, object, None]) -> threading.Thread:
    thread = threading.Thread(target=asyncio.run, args=(work,))
    thread.start()
    return thread


def test_who_waits_in_a_loop_that_does_not_run_is_passed_over_and_served_when_it_does(
    pool_of: Callable[..., Database],
) -> None:
    database, served = pool_of(1), []

    async def ask(name: str) -> None:
        await database.fetch_val("SELECT 1")
        served.append(name)

    async def begin() -> asyncio.Task[None]:
        task = asyncio.create_task(ask("first"))
        await waiting(database, 1)
        return task

    async def main(runner: asyncio.Runner) -> asyncio.Task[None]:
        async with database.connection():
            first = await asyncio.to_thread(runner.run, begin())
            second = asyncio.create_task(ask("second"))
            await waiting(database, 2)
        await second
        return first

    with asyncio.Runner() as runner:
        runner.get_loop()
        first = asyncio.run(main(runner))
        assert served == ["second"]
        runner.run(asyncio.wait_for(first, PATIENCE))
    assert served == ["second", "first"]
    assert (database.stats().in_use, database.stats().waiting) == (0, 0)


def test_what_a_loop_was_given_just_before_it_stopped_goes_to_others(
    pool_of: Callable[..., Database],
) -> None:
    database, served = pool_of(1), []
    loop = asyncio.new_event_loop()

    async def ask(name: str) -> None:
        await database.fetch_val("SELECT 1")
        served.append(name)

    async def give_and_stop() -> None:
        async with database.connection():
            tasks.append(asyncio.create_task(ask("stopped")))
            await waiting(database, 1)
            # This turn is the loop's last but one: uvloop's stop() lets it run what is ready once more.
            if isinstance(loop, uvloop.Loop):
                loop.stop()
            else:
                loop.call_soon(loop.stop)
            await asyncio.sleep(0)

    tasks = [loop.create_task(give_and_stop())]
    loop.run_forever()
    assert database.stats().waiting == 0
    asyncio.run(ask("other"))
    assert served == ["other"]
    loop.run_until_complete(asyncio.wait_for(tasks[-1], PATIENCE))
    loop.close()
    assert served == ["other", "stopped"]
    assert (database.stats().in_use, database.stats().waiting) == (0, 0)


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="the collector runs between steps of Python"
)
def test_what_is_lent_can_be_listed_though_the_collector_runs_finalizers_meanwhile() -> None:
    shared = {number: str(number) for number in range(SEVERAL)}
    before = gc.get_threshold()

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            shared[len(shared)] = "more"
            if gc.get_threshold() != before:
                Garbage()

    Garbage()
    gc.set_threshold(5)
    try:
        found = items_of(shared)
    finally:
        gc.set_threshold(*before)
    assert found[:SEVERAL] == [(number, str(number)) for number in range(SEVERAL)]
    assert len(shared) > SEVERAL


def test_callers_may_be_served_while_what_is_lost_is_looked_for(database: Database) -> None:
    lending: Any = database._pool().lending  # noqa: SLF001
    served = lending._served  # noqa: SLF001

    class Waiter:
        def is_lost(self, _now: float) -> bool:
            return False

    class Given:
        def __hash__(self) -> int:  # in which another thread serves
            served[Waiter()] = Slot.OPEN
            return 1

    served[Waiter()] = Given()
    try:
        assert lending.take_lost() == []
    finally:
        served.clear()


async def test_what_a_caller_was_given_before_it_was_cancelled_goes_to_the_next(
    pool_of: Callable[..., Database],
) -> None:
    database = pool_of(1)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(database.connection())
        first, second = (asyncio.create_task(use(database)) for _ in range(2))
        await waiting(database, 2)
        await stack.aclose()
        first.cancel()
        await second
    assert first.cancelled()
    assert (database.stats().in_use, database.stats().waiting) == (0, 0)


async def test_a_hundred_callers_time_out_and_nothing_is_lost(
    pool_of: Callable[..., Database],
) -> None:
    database = pool_of(1, acquire=0.05)
    async with database.connection():
        jobs = [asyncio.create_task(use(database)) for _ in range(100)]
        ends = await asyncio.gather(*jobs, return_exceptions=True)
        assert {type(end) for end in ends} == {AcquireTimeout}
        assert database.stats().waiting == 0
    await use(database)
    assert (database.stats().in_use, database.stats().waiting) == (0, 0)


@pytest.mark.parametrize("size", [1, 2, 5])
async def test_a_thousand_cancellations_lose_no_place(
    pool_of: Callable[..., Database], size: int
) -> None:
    database, chance = pool_of(size), random.Random(size)
    jobs = [asyncio.create_task(use(database)) for _ in range(10)]
    for _ in range(1000):
        jobs.append(asyncio.create_task(use(database)))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        chance.choice(jobs[-8:]).cancel()
    ends = await asyncio.gather(*jobs, return_exceptions=True)
    assert {type(end) for end in ends} == {type(None), asyncio.CancelledError}
    assert (database.stats().in_use, database.stats().waiting) == (0, 0)
    await fill(database, size)


async def fill(database: Database, size: int) -> None:
    """Have so many connections in use at once."""
    barrier = asyncio.Barrier(size)

    async def hold() -> None:
        async with database.connection():
            await barrier.wait()

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(hold() for _ in range(size)))


def test_of_many_callers_in_many_loops_each_has_a_turn_before_any_has_two(
    pool_of: Callable[..., Database],
) -> None:
    database = pool_of(1)
    turns: list[tuple[int, int]] = []

    async def ask(*name: int) -> None:
        for _ in range(3):
            async with database.connection():
                turns.append((name[0], name[1]))

    async def many(loop: int) -> None:
        await asyncio.gather(*(ask(loop, number) for number in range(50)))

    async def main() -> None:
        async with database.connection():
            threads.extend(in_thread(many(loop)) for loop in range(4))
            await waiting(database, 200)

    threads: list[threading.Thread] = []
    asyncio.run(main())
    for thread in threads:
        thread.join()
    assert len(set(turns[:200])) == 200
    assert len(turns) == 600
    assert (database.stats().in_use, database.stats().waiting) == (0, 0)


def test_within_one_loop_a_connection_changes_hands_without_waking_the_loop(
    pool_of: Callable[..., Database],
) -> None:
    database, calls = pool_of(2), []

    class CountingLoop(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *args: object, **options: object) -> asyncio.Handle:
            calls.append(args)
            return super().call_soon_threadsafe(*args, **options)  # type: ignore[arg-type]

    async def main() -> None:
        await asyncio.gather(*(use(database) for _ in range(4)))  # opens what there may be
        calls.clear()
        await asyncio.gather(*(use(database) for _ in range(50)))

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        runner.run(main())
        assert calls == []


async def test_each_caller_may_have_a_time_of_its_own(pool_of: Callable[..., Database]) -> None:
    database = pool_of(1, acquire=0.05)

    async def wait(timeout: float | None) -> None:
        async with database.connection(timeout=timeout):
            pass

    async with database.connection() as held:
        longest = beside(wait(PATIENCE))
        await waiting(database, 1)
        for shorter in (0.01, None, 0.1):
            with pytest.raises(AcquireTimeout) as caught:
                await beside(wait(shorter))
            assert caught.value.waited == (shorter or 0.05)
        async with database.connection(timeout=0.01) as joined:  # there is nothing to wait for
            assert joined is held
    await longest
    assert (database.stats().in_use, database.stats().waiting) == (0, 0)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), "soon"])
def test_a_time_that_cannot_be_is_refused(pool_of: Callable[..., Database], wrong: float) -> None:
    with pytest.raises(InvalidSettingError, match="timeout must be more than 0 seconds"):
        pool_of(1).connection(timeout=wrong)


async def test_no_more_wait_than_may(database: Database) -> None:
    database = Database(database.url, pool=PoolLimits(1, max_waiting=2), scope="process")

    async def by_engine() -> None:
        async with database.engine.connect():
            pass

    async with database.connection():
        two = [beside(use(database)) for _ in range(2)]
        await waiting(database, 2)
        for one_more in (use, lambda _: by_engine()):
            with pytest.raises(TooManyRequests, match="2 callers wait for one of 1 connections"):
                await beside(one_more(database))
        two[0].cancel()  # and leaves room for another
        await waiting(database, 1)
        two.append(beside(use(database)))
        await waiting(database, 2)
    await asyncio.gather(*two[1:])
    stats = database.stats()
    assert (stats.requests_errors, stats.requests_queued) == (3, 3)
    assert (stats.in_use, stats.waiting, stats.queue_peak) == (0, 0, 2)
