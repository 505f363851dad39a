"""An order of steps that asyncio tasks, event loops and threads of one process have to keep.

A race that a test hopes for comes once in a thousand runs. Here it is staged::

    sequencer = Sequencer()

    async def reader():
        async with sequencer(0):
            await db.fetch_val(...)
        async with sequencer(2):
            ...

    def writer():  # in a thread, without a loop
        with sequencer(1):
            ...

The idea is `trio.testing.Sequencer`'s.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Self

from loopsafe_db.errors import LoopsafeError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["SequenceError", "Sequencer", "Step"]


class SequenceError(LoopsafeError, RuntimeError):
    """The steps of a `Sequencer` cannot come in their order any more."""

    code = "LDB503"


class Sequencer:
    """Lets step 0 begin at once, and each later one when the one before it has ended.

    A step that fails, is cancelled or does not get its turn in time breaks the sequence: whoever waits is told at
    once, and so is whoever comes later. One process only: a forked child has a copy that nobody else moves on.

    Args:
        timeout: Seconds that a step waits for its turn, at most.
    """

    def __init__(self, *, timeout: float = 10.0) -> None:
        self._timeout = timeout
        self._turns = _Turns()

    def __call__(self, position: int) -> Step:
        """The step of that number, to be entered once, by ``async with``, or ``with`` in code that is not async."""
        return Step(self._turns, position, self._timeout)

    def __repr__(self) -> str:
        return f"<Sequencer {self._turns.describe()}>"


class Step:
    """One step of a `Sequencer`: its block runs when its turn has come."""

    def __init__(self, turns: _Turns, position: int, timeout: float) -> None:
        self._turns, self._position, self._timeout = turns, position, timeout

    def __repr__(self) -> str:
        return f"<Step {self._position}>"

    def __enter__(self) -> Self:
        turn = self._turns.claim(self._position)
        try:
            turn.result(self._timeout)
        except TimeoutError:
            self._turns.give_up(self._position, self._timeout)
        except BaseException as error:  # Ctrl-C, or an alarm of the test runner
            self._turns.fail(self._position, error)
            raise
        self._turns.check()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._turns.end(self._position)
        else:
            self._turns.fail(self._position, error)

    async def __aenter__(self) -> Self:
        turn = self._turns.claim(self._position)
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.wrap_future(turn)
        except TimeoutError:
            self._turns.give_up(self._position, self._timeout)
        except BaseException as error:  # cancelled: nobody will end this step
            self._turns.fail(self._position, error)
            raise
        self._turns.check()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)


class _Turns:
    """Whose turn it is, for every loop and thread.

    A waiter is a `concurrent.futures.Future`, which belongs to no loop; what a loop makes of it ends with the wait.
    It carries no exception, only "look again": an asyncio future with one that a cancellation left unread would
    complain in the log.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self._claimed: set[int] = set()
        self._waiting: dict[int, Future[None]] = {}
        self._broken = ""

    def claim(self, position: int) -> Future[None]:
        """Take a step; the future is done when its turn has come, or never will."""
        turn: Future[None] = Future()
        turn.set_running_or_notify_cancel()  # from here on a cancelled task cannot cancel it
        with self._lock:
            if self._broken:
                raise SequenceError(self._broken)
            if position in self._claimed or position < 0:
                why = "is used twice" if position in self._claimed else "comes before the first"
                raise SequenceError(f"step {position} {why}")
            self._claimed.add(position)
            if position == self._now:
                turn.set_result(None)
            else:
                self._waiting[position] = turn
        return turn

    def check(self) -> None:
        """Refuse to go on in a broken sequence."""
        with self._lock:
            if self._broken:
                raise SequenceError(self._broken)

    def end(self, position: int) -> None:
        """Let the step after this one begin."""
        with self._lock:
            if self._broken:  # meanwhile, elsewhere
                return
            self._now = position + 1
            turn = self._waiting.pop(self._now, None)
        if turn is not None:
            turn.set_result(None)

    def fail(self, position: int, error: BaseException) -> None:
        """Break the sequence: this step failed, in its block or while it waited."""
        self._break(f"the sequence is broken: step {position} failed with {error!r}")

    def give_up(self, position: int, timeout: float) -> None:
        """Break the sequence: this step has waited too long, unless its turn came at the last moment."""
        with self._lock:
            if position == self._now:
                return
            state = "began and has not ended" if self._now in self._claimed else "never came"
            text = f"step {position} waited {timeout:g} s for its turn: step {self._now} {state}"
        self._break(text)

    def describe(self) -> str:
        """The state, for a ``repr``."""
        with self._lock:
            if self._broken:
                return f"broken: {self._broken}"
            waiting = ", ".join(map(str, sorted(self._waiting))) or "nobody"
            return f"at step {self._now}, waiting: {waiting}"

    def _break(self, text: str) -> None:
        with self._lock:
            self._broken = self._broken or text  # the first reason is the reason
            waiting, self._waiting = self._waiting, {}
        for turn in waiting.values():
            turn.set_result(None)
