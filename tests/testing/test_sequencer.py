"""Steps come in their order, whichever tasks, loops and threads they are in, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from loopsafe_db.testing import SequenceError, Sequencer


async def test_tasks_of_one_loop_take_turns() -> None:
    sequencer, seen = Sequencer(), list[int]()

    async def take(*positions: int) -> None:
        for position in positions:
            async with sequencer(position):
                await asyncio.sleep(0)  # an invitation to the others
                seen.append(position)

    await asyncio.gather(take(1, 3), take(2, 5), take(0, 4))
    assert seen == [0, 1, 2, 3, 4, 5]


def test_loops_and_threads_take_turns() -> None:
    sequencer, seen = Sequencer(), list[tuple[str, int]]()

    async def take(name: str, *positions: int) -> None:
        for position in positions:
            async with sequencer(position):
                seen.append((name, position))

    def take_without_a_loop(*positions: int) -> None:
        for position in positions:
            with sequencer(position):
                seen.append(("thread", position))

    with ThreadPoolExecutor(3) as threads:
        running = [
            threads.submit(lambda: asyncio.run(take("loop 1", 2, 4, 7))),
            threads.submit(lambda: asyncio.run(take("loop 2", 1, 5))),
            threads.submit(take_without_a_loop, 0, 3, 6),
        ]
        for each in running:
            each.result()

    names = ["thread", "loop 2", "loop 1", "thread", "loop 1", "loop 2", "thread", "loop 1"]
    assert seen == list(zip(names, range(8), strict=True))


def test_one_sequence_spans_two_loops_of_a_thread() -> None:
    sequencer, seen = Sequencer(), list[int]()

    async def take(position: int) -> None:
        async with sequencer(position):
            seen.append(position)

    async def take_both(later: int, sooner: int) -> None:
        await asyncio.gather(take(later), take(sooner))

    asyncio.run(take_both(1, 0))
    asyncio.run(take_both(3, 2))
    assert seen == [0, 1, 2, 3]


async def test_a_step_that_never_comes_is_named() -> None:
    sequencer = Sequencer(timeout=0.05)
    async with sequencer(0):
        pass
    with pytest.raises(SequenceError, match=r"step 3 waited 0\.05 s .*: step 1 never came"):
        async with sequencer(3):
            pytest.fail("its turn has not come")


def test_a_step_that_does_not_end_is_named_in_a_thread() -> None:
    sequencer = Sequencer(timeout=0.05)
    with sequencer(0):
        with ThreadPoolExecutor(1) as thread:
            refused = thread.submit(enter, sequencer, 1)
        with pytest.raises(
            SequenceError, match=r"step 1 waited .*: step 0 began and has not ended"
        ):
            refused.result()


@pytest.mark.parametrize(
    ("position", "text"), [(0, "step 0 is used twice"), (-1, "step -1 comes before the first")]
)
async def test_a_wrong_step_is_refused_and_breaks_nothing(position: int, text: str) -> None:
    sequencer = Sequencer()
    async with sequencer(0):
        pass
    with pytest.raises(SequenceError, match=text):
        async with sequencer(position):
            pytest.fail("it was refused")
    async with sequencer(1):
        assert repr(sequencer) == "<Sequencer at step 1, waiting: nobody>"


async def test_a_failure_ends_the_waiting_of_all_others() -> None:
    sequencer = Sequencer(timeout=600)
    outcomes = await asyncio.gather(
        wait_for(sequencer, 1),
        asyncio.to_thread(enter, sequencer, 2),
        fail_when_both_wait(sequencer, 0),
        return_exceptions=True,
    )
    *waiters, failed = map(repr, outcomes)
    assert failed == "KeyError('it')"
    for waiter in waiters:
        assert "the sequence is broken: step 0 failed with KeyError('it')" in waiter
    with pytest.raises(SequenceError, match=r"step 0 failed with KeyError"):
        await wait_for(sequencer, 3)
    assert "broken" in repr(sequencer)


async def test_a_cancelled_step_ends_the_waiting_of_all_others() -> None:
    sequencer = Sequencer(timeout=600)
    first = asyncio.create_task(wait_for(sequencer, 1))
    second = asyncio.create_task(wait_for(sequencer, 2))
    await until_waiting(sequencer, "1, 2")
    first.cancel()
    with pytest.raises(SequenceError, match=r"step 1 failed with CancelledError"):
        await second
    with pytest.raises(asyncio.CancelledError):
        await first


def test_an_interrupted_thread_ends_the_waiting_of_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C comes while a main thread waits; here another exception does, from the wait itself."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    sequencer = Sequencer(timeout=600)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(enter, sequencer, 2)
        while "waiting: 2" not in repr(sequencer):
            threading.Event().wait(0.001)
        monkeypatch.setattr("concurrent.futures.Future.result", interrupt)
        with pytest.raises(KeyboardInterrupt):
            enter(sequencer, 1)
        monkeypatch.undo()
        assert "step 1 failed with KeyboardInterrupt()" in repr(waiting.exception())


async def test_a_timeout_around_a_step_is_the_callers_own() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await wait_for(Sequencer(), 1)


def test_the_error_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(SequenceError("step 1 is used twice")))
    assert str(error) == "[LDB503] step 1 is used twice"


async def wait_for(sequencer: Sequencer, position: int) -> None:
    async with sequencer(position):
        pass


def enter(sequencer: Sequencer, position: int) -> None:
    with sequencer(position):
        pass


async def fail_when_both_wait(sequencer: Sequencer, position: int) -> None:
    async with sequencer(position):
        await until_waiting(sequencer, "1, 2")
        raise KeyError("it")


async def until_waiting(sequencer: Sequencer, whom: str) -> None:
    async with asyncio.timeout(5):
        while f"waiting: {whom}" not in repr(sequencer):  # noqa: ASYNC110 (no event tells of it)
            await asyncio.sleep(0.001)
