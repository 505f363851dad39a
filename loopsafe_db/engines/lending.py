"""Lending: which connection a caller gets, and who waits for one, over all loops and threads of a process.

Callers wait in one queue, first come, first served, each in a loop of its own; nothing here belongs to a loop but
the waiters. An idle connection has a *home*, the loop that used it last; it is lent there before it is lent
elsewhere.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import math
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from loopsafe_db._runtime.contexts import in_no_context

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from types import FrameType

HAND_OVER_TIMEOUT = (
    0.05  # seconds for a loop to let go of an idle connection that another waits for
)
TAKE_TIMEOUT = 1.0  # seconds for whoever has the lock, which is held for microseconds
SWEEP_EVERY = 1.1  # seconds from one look for lost connections to the next, while somebody waits
LOST_TIMEOUT = 1.0  # seconds after which a place that is nowhere to be found is free again
LoopRef = Callable[[], asyncio.AbstractEventLoop | None]  # a weak reference
K = TypeVar("K")
V = TypeVar("V")


def items_of(shared: dict[K, V]) -> list[tuple[K, V]]:
    """Give what is in a dict that others change meanwhile.

    CPython 3.11 may collect garbage between two pairs that `dict.items` makes, and finalizers, or other threads, run.
    """
    return [(key, value) for key in list(shared) if (value := shared.get(key)) is not None]


class Entry(Protocol):
    """A place for one connection."""

    home_ref: LoopRef

    @property
    def home(self) -> asyncio.AbstractEventLoop | None:
        """The open loop that has it, or None: any loop may have it."""

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""

    @property
    def is_forgotten(self) -> bool:
        """Whether the task that it was lent to is done, and nobody else can have it."""


E = TypeVar("E", bound=Entry)


class Slot(enum.Enum):
    """What goes through the queue besides entries.

    Attributes:
        OPEN: In place of an idle entry: leave to open a connection.
        NUDGE: Nothing, but somebody should look at the queue.
        RECALL: Nothing, but what was given to waiters that do not take it should be taken back.
    """

    OPEN = "open"
    NUDGE = "nudge"
    RECALL = "recall"


class _Line:
    """Those who wait in one loop, and the one timer that looks after them.

    They enter in the thread of that loop, without a lock; they are taken out under the lock. Who is cancelled stays,
    and is passed over when its turn comes.

    Attributes:
        loop_ref: The loop; who waits keeps it.
        waiters: The first first.
        served: Who was given something; it may be in `waiters`, too, if an exception struck in between.
        period: Seconds from one look of the timer to the next.
        timer: Fires at `due` on the monotonic clock.
        sweep_at: When it looks for lost connections next.
    """

    __slots__ = ("due", "loop_ref", "period", "served", "sweep_at", "timer", "waiters")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        served: Container[_Waiter],
    ) -> None:
        self.loop_ref, self.served = weakref.ref(loop), served
        self.period = min(HAND_OVER_TIMEOUT, timeout / 4)
        self.waiters: deque[_Waiter] = deque()
        self.timer: asyncio.TimerHandle | None = None
        self.due = self.sweep_at = -math.inf

    def first(self) -> _Waiter | None:
        """Give who has waited longest, passing over who has left; under the lock."""
        while self.waiters:
            waiter = self.waiters[0]
            if self.has(waiter):
                return waiter
            self.waiters.popleft()
        return None

    def has(self, waiter: _Waiter) -> bool:
        """Tell whether one of `waiters` still waits; under the lock."""
        return not (waiter.leaving or waiter.expired or waiter in self.served)

    def enter_again(self, waiter: _Waiter) -> None:
        """Put a waiter in its place, whose connection was recalled; under the lock."""
        earlier = sum(other.ticket < waiter.ticket for other in list(self.waiters))
        self.waiters.insert(earlier, waiter)

    def expire(self) -> Iterator[_Waiter]:
        """Pass over from now on who has waited for too long; under the lock. Each has a time of its own."""
        now = time.monotonic()
        for waiter in list(self.waiters):
            if waiter.until <= now and self.has(waiter):
                waiter.expired = True
                yield waiter
        self.first()


class _Waiter:
    """One caller's place in the queue; lives in the caller's loop.

    Attributes:
        ticket: Its number: who came first is served first, whatever the loop.
        until: When its time is over, on the monotonic clock.
        woken: Set, in its own loop, when it was given something or its time is over.
        seen_at: When it was first seen not to have taken what it was given.
    """

    __slots__ = (
        "expired",
        "leaving",
        "line",
        "loop",
        "seen_at",
        "since",
        "ticket",
        "until",
        "woken",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        line: _Line,
        ticket: int,
        since: float,
        timeout: float,
    ) -> None:
        self.loop, self.line, self.ticket = loop, line, ticket
        self.since, self.until = since, since + timeout
        self.leaving = self.expired = False
        self.seen_at = math.inf
        self.woken: asyncio.Future[None] = loop.create_future()

    @property
    def is_urgent(self) -> bool:
        """Whether another loop had time enough to let go of an idle connection."""
        return time.monotonic() - self.since >= HAND_OVER_TIMEOUT

    def is_lost(self, now: float) -> bool:
        """Tell whether it does not take what it was given: its loop does not run, or has lost the wake-up."""
        self.seen_at = min(self.seen_at, now)
        return now - self.seen_at > LOST_TIMEOUT or not self.loop.is_running()

    def wake(self) -> None:
        """Have it look at what it was given."""
        if _runs_task(self.loop):
            self.wake_here()
        else:
            with suppress(RuntimeError):  # the loop is closed: what it was given is recalled
                self.loop.call_soon_threadsafe(self.wake_here)

    def wake_here(self) -> None:
        """Do so in its own loop."""
        if not self.woken.done():
            self.woken.set_result(None)


class Lending(Generic[E]):
    """The connections that one pool may have, and the queue of those who wait for one. Any thread may call it.

    The garbage collector may, too, in the middle of anything: a dropped connection comes back by a finalizer. So
    what comes back is put in an inbox, and whoever gets the lock works the inbox off. Nobody waits for the lock but
    `take`, which no finalizer calls.

    And a signal handler may raise between any two lines. So the lock knows its thread: who finds it locked by its own
    looks whether that is at work in it, further up its stack, or has lost it.

    Attributes:
        limit: The most connections.
        open: Those that are open, or being opened.
        retired: Whether nothing is lent any more, and all that comes back is ended.
        held: Those that are lent now, and the loop that each is lent in; exact at any moment.
    """

    limit: int
    open: int
    retired: bool

    def __init__(
        self,
        limit: int,
        *,
        movable: bool,
        sticky: bool,
        ask: Callable[[E], None],
        evict: Callable[[E], None],
        sweep: Callable[[], None],
        may_open: Callable[[], bool],
    ) -> None:
        """Say what may be lent.

        Args:
            limit: The most connections.
            movable: Whether a connection may be lent in another loop than its home.
            sticky: Whether its home has to be closed, or to have let go of it, before.
            ask: Has the home of an idle connection let go of it (see `hand_over`), as soon as that loop runs.
            evict: Ends an idle connection whose home did not do so in time.
            sweep: Takes back what is lost; called when somebody begins to wait, and now and then.
            may_open: Whether it is time to open one; asked again and again while somebody waits.
        """
        self.limit, self.open = limit, 0
        self.held: dict[E, LoopRef] = {}
        self._movable, self._sticky, self._ask, self._evict = movable, sticky, ask, evict
        self._sweep, self._may_open = sweep, may_open
        self._idle: list[E] = []  # the one used last is last
        self.retired = False
        self._tickets = itertools.count()
        self._lines: dict[int, _Line] = {}  # by id() of the loop, which may be gone
        self._served: dict[_Waiter, E | Slot] = {}  # given, and not taken yet
        self._to_wake: list[_Waiter] = []
        self._asked: tuple[_Waiter, E] | None = None
        self._inbox: deque[E | Slot | _Waiter | _Line] = deque()
        self._lock: Any = RLock()
        self._missing_since: float | None = None

    @property
    def idle(self) -> int:
        """How many connections wait to be lent."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        lines = list(self._lines.values())
        return sum(line.has(waiter) for line in lines for waiter in list(line.waiters))

    @property
    def queued(self) -> int:
        """As `waiting`, without a look at each of them: who has left is counted until its turn comes."""
        queued = 0
        for line in list(self._lines.values()):  # sum() takes twice the time
            queued += len(line.waiters)
        return queued

    def take_here(self, loop: asyncio.AbstractEventLoop) -> E | None:
        """Give the connection used last, if it was used in `loop`: the common case, without the lock."""
        if not self._idle or (self._lines and self._is_awaited()):
            return None
        try:
            entry = self._idle.pop()
        except IndexError:  # another thread was faster
            return None
        if entry.home_ref() is loop:
            self.held[entry] = entry.home_ref
            return entry
        self._put_back(entry)
        return None

    def take(self, loop: asyncio.AbstractEventLoop) -> E | Slot | None:
        """Give an idle entry, or leave to open a connection, or None: then it is time to `wait`."""
        if self._lines and self._is_awaited():
            return None
        with self._lock:
            item = self._find(loop)
        if self._inbox:
            self._work()
        return item

    def take_place(self, least: int) -> Slot | None:
        """Give leave to open a connection if fewer than `least` are open, or being opened."""
        with self._lock:
            if self.open >= least:
                return None
            self.open += 1
            return Slot.OPEN

    def ticket(self) -> int:
        """Give a number for `wait`: the lower is served first."""
        return next(self._tickets)

    async def wait(
        self, loop: asyncio.AbstractEventLoop, timeout: float, ticket: int, *, again: bool = False
    ) -> E | Slot | None:
        """Wait in the queue, in the running loop `loop`; None if the time is over.

        A caller that is cancelled, times out or whose loop ends gives back what it was about to get.

        Args:
            loop: The running one.
            timeout: Seconds.
            ticket: Its number.
            again: Whether others may have come since it was given that.
        """
        now = time.monotonic()
        line = self._line(loop, timeout, now)
        waiter = _Waiter(loop, line, ticket, now, timeout)
        try:
            if again:
                self._post(waiter)
            else:
                line.waiters.append(waiter)
            # Who puts back looks at the queue afterwards, as this looks at what is there: one sees the other.
            if self._idle or self.open < self.limit or self._inbox:
                self._post(Slot.NUDGE)
            await waiter.woken
            while (item := self._served.pop(waiter, None)) is None and not waiter.expired:
                # The recall was faster.
                waiter.woken, waiter.seen_at = loop.create_future(), math.inf
                waiter.line = self._line(loop, timeout, time.monotonic())
                self._post(waiter)
                await waiter.woken
        except BaseException:
            waiter.leaving = True
            self._post(waiter)
            raise
        return item

    def _line(self, loop: asyncio.AbstractEventLoop, timeout: float, now: float) -> _Line:
        """Give the line of the running loop, looked after by a timer."""
        line = self._lines.get(id(loop))
        if line is None or line.loop_ref() is not loop:
            line = self._lines[id(loop)] = _Line(loop, timeout, self._served)
            self._look_after(loop, line)
        elif line.due < now - LOST_TIMEOUT:
            self._look_after(loop, line)  # an exception has struck in it
        return line

    def _look_after(self, loop: asyncio.AbstractEventLoop, line: _Line) -> None:
        now = time.monotonic()
        line.due = now + line.period
        if line.timer is not None:
            line.timer.cancel()
        line.timer = in_no_context(loop.call_later, line.period, self._tick, loop, line)
        if line.sweep_at <= now:
            line.sweep_at = now + SWEEP_EVERY
            self._sweep()

    def _tick(self, loop: asyncio.AbstractEventLoop, line: _Line) -> None:
        if not line.waiters and not self._inbox:  # nor is anybody on the way into it
            self._forget(id(loop), line)
            return
        self._look_after(loop, line)
        self._post(line)

    def hold(self, entry: E) -> None:
        """Say which entry the running loop has made of its leave to open a connection."""
        self.held[entry] = weakref.ref(asyncio.get_running_loop())

    def hand_on(self, entry: E, loop: asyncio.AbstractEventLoop) -> bool:
        """Give what is returned in `loop` to the caller whose turn it is, if that is in `loop`, too: it stays lent."""
        line = self._lines.get(id(loop))
        if line is None or not line.waiters or not _runs_task(loop) or self._inbox or self.retired:
            return False
        if self._lock._is_owned() or not self._lock.acquire(blocking=False):  # noqa: SLF001
            return False
        try:
            waiter = line.first()
            if waiter is None or (len(self._lines) > 1 and self._next_line() is not line):
                return False
            self._served[waiter] = entry
            line.waiters.popleft()
        finally:
            self._unlock()
        waiter.wake_here()
        if self._inbox:
            self._work()
        return True

    def give_back(self, entry: E, *, is_open: bool) -> None:
        """Return an entry that was in `held`; one whose connection is gone leaves its place."""
        if is_open and not self.retired:
            self._put_back(entry)
        else:
            self._post(entry)

    def free(self) -> None:
        """Free the place of an entry that was taken back for good: nobody gets that again, not even if it is open."""
        self._post(Slot.OPEN)

    def contended(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether another loop may soon need what is given back in `loop`."""
        if self._lines and self._is_awaited():
            return True
        if self.open < self.limit:
            return False
        return any(ref() is not loop for ref in list(self.held.values())) or any(
            entry.home not in (None, loop) for entry in list(self._idle)
        )

    def take_lost(self) -> list[E]:
        """Take back what is lent in loops that are closed, or was to tasks that are done."""
        self.look_again()
        given = set(list(self._served.values()))  # others run while Python hashes an enum
        lost = [
            (entry, ref)
            for entry, ref in items_of(self.held)
            if entry not in given and (is_gone(ref()) or entry.is_forgotten)
        ]
        return [entry for entry, ref in lost if self._claim(entry, ref)]

    def _claim(self, entry: E, ref: LoopRef) -> bool:
        """Take back what is lent in one loop; False if it has come back, and may be lent in another by now."""
        if self.held.get(entry) is not ref:
            return False
        taken = self.held.pop(entry, None)
        if taken is None or taken is ref:
            return taken is ref
        self.held[entry] = taken
        return False

    def hand_over(self, entry: E, let_go: Callable[[E], None]) -> None:
        """Do, in the home of an idle connection, what was asked for; nothing if it is in use by now."""
        if self._pick(entry):
            let_go(entry)
            self._post(entry)

    def make_room(self, entry: E) -> None:
        """Give the place of an evicted connection to the next."""
        self._post(entry)

    def look_again(self) -> None:
        """Say that connections may have come free without coming back: their loop is closed."""
        # Who begins to wait after this look will see that by itself.
        if self._lines or self._served:
            self._post(Slot.RECALL)

    def take_idle(self, wanted: Callable[[E], bool], loop_ref: LoopRef) -> list[E]:
        """Lend idle entries to who is to end their connections, in the loop of `loop_ref`, and gives them back then."""
        # The collector may end a loop, and call this, while this very thread has the lock: then nothing is taken.
        if self._is_at_work():
            return []
        try:
            if not self._lock.acquire(timeout=TAKE_TIMEOUT):
                return []
            taken = [e for e in list(self._idle) if wanted(e) and self._pick(e)]
            self.held.update(dict.fromkeys(taken, loop_ref))
        finally:
            self._unlock()
        if self._inbox:
            self._work()
        return taken

    def retire(self) -> bool:
        """Evict what is idle and all that comes back; tell whether nothing is left. A finalizer may call it."""
        self.retired = True
        self._post(Slot.NUDGE)
        return not self.open

    def _put_back(self, entry: E) -> None:
        self._idle.append(entry)
        # Who began to wait since looks at the idle ones after queueing, as this looks at the queue after putting
        # back: one of them sees the other.
        if (self._lines and self._is_awaited()) or self.retired:
            self._post(Slot.NUDGE)

    def _is_awaited(self) -> bool:
        """Tell whether somebody waits; or nobody, who is cancelled."""
        for line in list(self._lines.values()):  # noqa: SIM110 (any() takes twice the time)
            if line.waiters:
                return True
        return False

    def _post(self, item: E | Slot | _Waiter | _Line) -> None:
        self._inbox.append(item)
        self._work()

    def _work(self) -> None:
        # Whoever holds the lock looks into the inbox after letting go of it, so nothing is left lying there.
        while not self._is_at_work():
            try:
                if not self._lock.acquire(blocking=False):
                    return
                woken, asked, evicted = self._work_off()
            finally:
                self._unlock()
            for waiter in woken:
                waiter.wake()
            for entry in asked:
                self._ask(entry)
            for entry in evicted:
                self._evict(entry)
            if not self._inbox:
                return

    def _is_at_work(self) -> bool:
        """Tell whether this thread is in the middle of something under the lock, which a finalizer has interrupted."""
        if not self._lock._is_owned():  # noqa: SLF001
            return False
        frame: FrameType | None = sys._getframe(2)  # noqa: SLF001
        while frame is not None:
            if frame.f_code in _LOCKING and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        self._unlock()  # an exception has struck after it was locked
        return False

    def _unlock(self) -> None:
        while self._lock._is_owned():  # noqa: SLF001
            self._lock.release()

    def reconcile(self) -> None:
        """Free places that are nowhere to be found for long: an exception has struck while they were on their way."""
        if self._is_at_work():
            return
        with self._lock:
            permits = sum(item is Slot.OPEN for item in list(self._served.values()))
            known = len(self.held) + len(self._idle) + len(self._inbox) + permits
            now = time.monotonic()
            if self.open <= known:
                self._missing_since = None
            elif self._missing_since is None:
                self._missing_since = now
            elif now - self._missing_since > LOST_TIMEOUT:
                self.open, self._missing_since = known, None
        self._post(Slot.NUDGE)

    # -- these run under the lock

    def _accept(self, item: E | Slot | _Waiter | _Line) -> None:
        if isinstance(item, _Waiter):
            if item.leaving:
                self._withdraw(item)
            else:
                item.line.enter_again(item)
        elif isinstance(item, _Line):
            self._to_wake.extend(item.expire())
            self._recall()
        elif item is Slot.RECALL:
            self._recall()
        elif item is Slot.OPEN or (item is not Slot.NUDGE and not item.is_open):
            self.open -= 1
        elif item is not Slot.NUDGE:
            self._idle.append(item)

    def _work_off(self) -> tuple[list[_Waiter], list[E], list[E]]:
        """Work the inbox off; give whom to wake up, whom to ask, and whom to evict."""
        while self._inbox:
            self._accept(self._inbox.popleft())
        asked, evicted = self._serve() if self._lines else ([], [])
        if self.retired:
            evicted = [entry for entry in list(self._idle) if self._pick(entry)]
        woken, self._to_wake = self._to_wake, []
        return woken, asked, evicted

    def _withdraw(self, waiter: _Waiter) -> None:
        """Have a waiter passed over; what it was given but did not take goes to the next."""
        waiter.line.first()
        self._take_back(self._served.pop(waiter, None))

    def _recall(self) -> None:
        """Take back what was given to those who do not take it. They queue again, in their place, when they run."""
        now = time.monotonic()
        for waiter in list(self._served):
            if waiter.is_lost(now) and (item := self._served.pop(waiter, None)) is not None:
                self._take_back(item)
                self._to_wake.append(waiter)
        for key, line in items_of(self._lines):
            if is_gone(line.loop_ref()):
                self._forget(key, line)

    def _forget(self, key: int, line: _Line) -> None:
        """Forget the line of a loop that is closed; a new loop's may have its key by now."""
        taken = self._lines.pop(key, None)
        if taken is not None and taken is not line:
            self._lines.setdefault(key, taken)

    def _take_back(self, item: E | Slot | None) -> None:
        if item is None or (not isinstance(item, Slot) and self.held.pop(item, None) is None):
            return  # there is nothing, or the sweep was faster
        self._accept(item)

    def _serve(self) -> tuple[list[E], list[E]]:
        """Hand out what is there, in the order of the queue; give whom to ask, and whom to evict."""
        while (line := self._next_line()) is not None:
            waiter = line.waiters[0]
            item = self._find(waiter.loop)
            if item is None:
                return self._find_elsewhere(waiter)
            self._served[waiter] = item
            line.waiters.popleft()
            self._to_wake.append(waiter)
        self._asked = None
        return [], []

    def _next_line(self) -> _Line | None:
        """Find whose turn it is. Who waits in a loop that does not run has no use for a connection."""
        best, ticket = None, math.inf
        for line in list(self._lines.values()):
            first = line.first()
            if first is not None and first.ticket < ticket and first.loop.is_running():
                best, ticket = line, first.ticket
        return best

    def _find_elsewhere(self, waiter: _Waiter) -> tuple[list[E], list[E]]:
        """Choose what another loop has idle: it may go, or has to."""
        for entry in list(self._idle)[:1]:  # the one that is so for longest
            if waiter.is_urgent:
                return [], [entry] if self._pick(entry) else []
            if self._asked != (waiter, entry):
                self._asked = waiter, entry
                return [entry], []
        return [], []

    def _find(self, loop: asyncio.AbstractEventLoop) -> E | Slot | None:
        """Give an entry, or leave to open one, or None."""
        while (chosen := self._best(loop)) is not None:
            if self._pick(chosen):
                self.held[chosen] = weakref.ref(loop)
                return chosen
        if self.open < self.limit and self._may_open():
            self.open += 1
            return Slot.OPEN
        return None

    def _best(self, loop: asyncio.AbstractEventLoop) -> E | None:
        """Find what was used here last, else what any loop may have."""
        best = None
        for entry in reversed(list(self._idle)):
            home = entry.home
            if home is loop:
                return entry
            if best is None and self._movable and (home is None or not self._sticky):
                best = entry
        return best

    def _pick(self, entry: E) -> bool:
        """Take one of the idle; False if `take_here` has been faster."""
        try:
            self._idle.remove(entry)
        except ValueError:
            return False
        return True


_LOCKING = {
    function.__code__
    for function in (
        Lending.take,
        Lending.take_place,
        Lending.hand_on,
        Lending.take_idle,
        Lending.reconcile,
        Lending._work,  # noqa: SLF001
    )
}


def _runs_task(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether a task of `loop` calls this, not a finalizer that has interrupted the loop on its way to sleep."""
    try:
        return asyncio.get_running_loop() is loop and asyncio.current_task(loop) is not None
    except RuntimeError:
        return False


def is_gone(loop: asyncio.AbstractEventLoop | None) -> bool:
    """Tell whether a loop can run nothing any more."""
    return loop is None or loop.is_closed()
