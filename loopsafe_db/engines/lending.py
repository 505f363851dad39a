"""Lending: which connection a caller gets, and who waits for one, over all loops and threads of a process.

Callers wait in one queue, first come, first served, each in a loop of its own; nothing here belongs to a loop but
the waiters. An idle connection has a *home*, the loop that used it last; it is lent there before it is lent
elsewhere.
"""

from __future__ import annotations

import asyncio
import enum
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from types import FrameType

HAND_OVER_TIMEOUT = (
    0.05  # seconds for a loop to let go of an idle connection that another waits for
)
TAKE_TIMEOUT = 1.0  # seconds for whoever has the lock, which is held for microseconds
LOST_TIMEOUT = 1.0  # seconds after which a place that is nowhere to be found is free again
LoopRef = Callable[[], asyncio.AbstractEventLoop | None]  # a weak reference


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
    """

    OPEN = "open"
    NUDGE = "nudge"


class _Waiter(Generic[E]):
    """One caller's place in the queue; lives in the caller's loop."""

    __slots__ = ("item", "leaving", "loop", "urgent", "woken")

    def __init__(self) -> None:
        self.item: E | Slot | None = None  # set and taken back under the lock
        self.leaving = self.urgent = False
        self.loop = asyncio.get_running_loop()
        self.woken: asyncio.Future[None] = self.loop.create_future()

    def wake(self, undeliverable: Callable[[_Waiter[E]], None]) -> None:
        """Tell the caller that `item` is there; if its loop is gone, tell so."""
        delivery = _Delivery(self, undeliverable)
        with suppress(RuntimeError):  # the loop is closed: the delivery dies, and says so
            self.loop.call_soon_threadsafe(delivery)


class _Delivery(Generic[E]):
    """A wake-up under way. A loop that is closed before it comes to it drops it: then the item goes back."""

    __slots__ = ("_undeliverable", "_waiter")

    def __init__(self, waiter: _Waiter[E], undeliverable: Callable[[_Waiter[E]], None]) -> None:
        self._waiter: _Waiter[E] | None = waiter
        self._undeliverable = undeliverable

    def __call__(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.woken.done():
            waiter.woken.set_result(None)

    def __del__(self) -> None:
        if self._waiter is not None:
            self._waiter.leaving = True
            self._undeliverable(self._waiter)


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
        held: Those that are lent now, and the loop that each is lent in; exact at any moment.
    """

    limit: int
    open: int

    def __init__(
        self,
        limit: int,
        *,
        movable: bool,
        sticky: bool,
        ask: Callable[[E], None],
        evict: Callable[[E], None],
    ) -> None:
        """Say what may be lent.

        Args:
            limit: The most connections.
            movable: Whether a connection may be lent in another loop than its home.
            sticky: Whether its home has to be closed, or to have let go of it, before.
            ask: Has the home of an idle connection let go of it (see `hand_over`), as soon as that loop runs.
            evict: Ends an idle connection whose home did not do so in time.
        """
        self.limit, self.open = limit, 0
        self.held: dict[E, LoopRef] = {}
        self._movable, self._sticky, self._ask, self._evict = movable, sticky, ask, evict
        self._idle: list[E] = []  # the one used last is last
        self._settled = self._retired = False
        self._waiters: deque[_Waiter[E]] = deque()
        self._inbox: deque[E | Slot | _Waiter[E]] = deque()
        self._lock: Any = RLock()
        self._missing_since: float | None = None

    @property
    def idle(self) -> int:
        """How many connections wait to be lent."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return len(self._waiters)

    def take_here(self, loop: asyncio.AbstractEventLoop) -> E | None:
        """Give the connection used last, if it was used in `loop`: the common case, without the lock."""
        if self._waiters or not self._idle:
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
        with self._lock:
            item = None if self._waiters else self._find(loop)
        if self._inbox:
            self._work()
        return item

    async def wait(self, timeout: float) -> E | Slot | None:
        """Wait in the queue; None if the time is over.

        A caller that is cancelled, times out or whose loop ends gives back what it was about to get.
        """
        waiter: _Waiter[E] = _Waiter()
        self._post(waiter)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wait([waiter.woken], timeout=HAND_OVER_TIMEOUT)
                if not waiter.woken.done():
                    waiter.urgent = True
                    self._post(Slot.NUDGE)
                await waiter.woken
        except BaseException as error:
            waiter.leaving = True
            self._post(waiter)
            if not isinstance(error, TimeoutError):
                raise
            return None
        return waiter.item

    def hold(self, entry: E) -> None:
        """Say which entry the running loop has made of its leave to open a connection."""
        self.held[entry] = weakref.ref(asyncio.get_running_loop())

    def opened(self) -> None:
        """Say that leave to open has become a connection."""
        if not self._settled:
            self._settled = True
            self._post(Slot.NUDGE)

    def give_back(self, entry: E) -> None:
        """Return an entry that was in `held`; one whose connection is gone leaves its place."""
        if entry.is_open and not self._retired:
            self._put_back(entry)
        else:
            self._post(entry)

    def contended(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether another loop may soon need what is given back in `loop`."""
        if self.open < self.limit:
            return bool(self._waiters)
        if self._waiters:
            return True
        return any(ref() is not loop for ref in list(self.held.values())) or any(
            entry.home not in (None, loop) for entry in list(self._idle)
        )

    def take_lost(self) -> list[E]:
        """Take back what is lent in loops that are closed, or was to tasks that are done."""
        lost = [
            (entry, ref)
            for entry, ref in list(self.held.items())
            if is_gone(ref()) or entry.is_forgotten
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
        if self._waiters:
            self._post(Slot.NUDGE)

    def take_idle(self, wanted: Callable[[E], bool]) -> list[E]:
        """Take idle entries out, for good; frees their places."""
        # The collector may end a loop, and call this, while this very thread has the lock: then nothing is taken.
        if self._is_at_work():
            return []
        try:
            if not self._lock.acquire(timeout=TAKE_TIMEOUT):
                return []
            taken = [e for e in list(self._idle) if wanted(e) and self._pick(e)]
            self.open -= len(taken)
        finally:
            self._unlock()
        self._post(Slot.NUDGE)
        return taken

    def retire(self) -> bool:
        """Evict what is idle and all that comes back; tell whether nothing is left. A finalizer may call it."""
        self._retired = True
        self._post(Slot.NUDGE)
        return not self.open

    def _put_back(self, entry: E) -> None:
        self._idle.append(entry)
        # Who began to wait since looks at the idle ones after queueing, as this looks at the queue after putting
        # back: one of them sees the other.
        if self._waiters or self._retired:
            self._post(Slot.NUDGE)

    def _post(self, item: E | Slot | _Waiter[E]) -> None:
        self._inbox.append(item)
        self._work()

    def _work(self) -> None:
        # Whoever holds the lock looks into the inbox after letting go of it, so nothing is left lying there.
        while not self._is_at_work():
            try:
                if not self._lock.acquire(blocking=False):
                    return
                served, asked, evicted = self._work_off()
            finally:
                self._unlock()
            for waiter in served:
                waiter.wake(self._post)
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
            given = [waiter.item for waiter in list(self._waiters)]
            known = len(self.held) + len(self._idle) + len(self._inbox) + len(given)
            now = time.monotonic()
            if self.open <= known:
                self._missing_since = None
            elif self._missing_since is None:
                self._missing_since = now
            elif now - self._missing_since > LOST_TIMEOUT:
                self.open, self._missing_since = known, None
        self._post(Slot.NUDGE)

    # -- these run under the lock

    def _accept(self, item: E | Slot | _Waiter[E]) -> None:
        if isinstance(item, _Waiter):
            if item.leaving:
                self._withdraw(item)
            else:
                self._waiters.append(item)
        elif item is Slot.OPEN or (item is not Slot.NUDGE and not item.is_open):
            self.open -= 1
        elif item is not Slot.NUDGE:
            self._idle.append(item)

    def _work_off(self) -> tuple[list[_Waiter[E]], list[E], list[E]]:
        """Work the inbox off; give who got something, whom to ask, and whom to evict."""
        while self._inbox:
            self._accept(self._inbox.popleft())
        served, asked, evicted = self._serve() if self._waiters else ([], [], [])
        if self._retired:
            evicted = [entry for entry in list(self._idle) if self._pick(entry)]
        return served, asked, evicted

    def _withdraw(self, waiter: _Waiter[E]) -> None:
        """Take a waiter out of the queue; what it was given but did not take goes to the next."""
        with suppress(ValueError):
            self._waiters.remove(waiter)
        item, waiter.item = waiter.item, None
        if item is None or (not isinstance(item, Slot) and self.held.pop(item, None) is None):
            return  # it had nothing, or the sweep was faster
        self._accept(item)

    def _serve(self) -> tuple[list[_Waiter[E]], list[E], list[E]]:
        """Hand out what is there, in the order of the queue; give who got something, whom to ask, and to evict."""
        served: list[_Waiter[E]] = []
        for waiter in list(self._waiters):
            waiter.item = self._find(waiter.loop)
            if waiter.item is None:
                # What is idle now is so in other loops. The one that is longest may go, or has to.
                elsewhere = list(self._idle)[:1]
                if not waiter.urgent:
                    return served, elsewhere, []
                return served, [], [entry for entry in elsewhere if self._pick(entry)]
            self._waiters.remove(waiter)
            served.append(waiter)
        return served, [], []

    def _find(self, loop: asyncio.AbstractEventLoop) -> E | Slot | None:
        """Give an entry, or leave to open one, or None."""
        while (chosen := self._best(loop)) is not None:
            if self._pick(chosen):
                self.held[chosen] = weakref.ref(loop)
                return chosen
        if self.open and not self._settled:
            # SQLAlchemy learns from the first connection: one at a time until then.
            return None
        if self.open < self.limit:
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
    for function in (Lending.take, Lending.take_idle, Lending.reconcile, Lending._work)  # noqa: SLF001
}


def is_gone(loop: asyncio.AbstractEventLoop | None) -> bool:
    """Tell whether a loop can run nothing any more."""
    return loop is None or loop.is_closed()
