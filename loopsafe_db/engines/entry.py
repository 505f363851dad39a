"""PoolEntry: a place for one connection, and where that is at home."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.pool.base import _ConnectionFairy, _ConnectionRecord
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from loopsafe_db._runtime.endings import Alarm
from loopsafe_db._runtime.pids import getpid
from loopsafe_db._runtime.transport import nowhere
from loopsafe_db.drivers.session_state import Touched
from loopsafe_db.drivers.url import connect_timeout, describe_target
from loopsafe_db.engines.holders import holder_of
from loopsafe_db.engines.statement_timeout import call_within
from loopsafe_db.errors import (
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    LoopsafeError,
    StatementTimeout,
    TooManyConnections,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopsafe_db._runtime.keys import LoopKey
    from loopsafe_db.drivers.base import Driver
    from loopsafe_db.engines.pool import ConnectionPool
    from loopsafe_db.engines.stats import Holder


_SHORTEST_LIFE = (
    0.9  # of `PoolLimits.recycle`: connections opened together are not replaced together
)
_SQLALCHEMY = "an engine or a session"  # which took it, where nobody has noted the line
NOT_USED = -1.0  # `PoolEntry.since`, of one that could not be lent


class Proxy(_ConnectionFairy):
    """SQLAlchemy's proxy of what a `Connection` has, whose transaction SQLAlchemy does not know."""


def user_side(driver: Driver, raw: Any) -> Any:
    """Give the connection of the driver's package: of an adapted one what it adapts."""
    return raw.driver_connection if driver.traits.adapted else raw


class PoolEntry(_ConnectionRecord):
    """A place for one connection: SQLAlchemy's record, which knows where the connection is at home.

    Attributes:
        lender: The pool that it is of.
        raw: The driver's own connection.
        home_ref: The loop that used it last.
        home_key: That of the loop that it was lent in last.
        fresh_until: When it has been idle or open for too long, on the monotonic clock.
        task_ref: The asyncio task that has it, if one has. Weakly: it keeps its loop.
        thread: The thread that its loop ran in then.
        since: When that got it, on the same clock; or `NOT_USED`.
        rested: When its last user gave it back.
        taken_at: File and line where it was taken, if it is held for longer than one call.
        is_stuck: Whether that was not woken up for long, and never will be.
        waited: Seconds in the queue, of the one who got it at `waited_since`.
        connecting: Seconds that it took to open it, for that one.
        waited_since: As `since`; -1 until it is known.
        ticket: The number that the one who has waited last had in the queue.
        is_spare: Whether it is opened for nobody: it waits for none that is open already.
        waits_told: Whether a statement of that one has told of these two.
        in_doubt: Whether something was begun on it whose end nobody has seen; then it is ended.
        is_lost: Whether it was closed when something failed on it: by the server, or on the way.
        ended_because: Why it was ended by us, where its user is to hear of it.
        begun_at: File and line of the last BEGIN that SQLAlchemy has sent; kept while somebody listens.
        kept_by: What has a transaction open that no text may end: a block, a session; or "".
        readonly: Whether a block has a transaction open that was asked to refuse writes.
        commits: Whether SQLAlchemy has sent a COMMIT whose answer has not come.
        interrupted: Whether a statement was cancelled or timed out, so that the connection has to be recovered.
        suspect: Whether the server has refused a write, and is to be asked whether it takes any, before the next use.
        touched: What has to be undone before anybody else gets it. It says so before anything is sent.
        handed_out: The driver's own connection, as the user has it.
        alarm: Ends it where ending a transaction, or a session, takes too long.
    """

    raw: Any = None
    home_ref: Callable[[], asyncio.AbstractEventLoop | None] = staticmethod(nowhere)
    home_key: LoopKey
    fresh_until: float = math.inf
    thread: threading.Thread | None = None
    since: float = 0.0
    rested: float = 0.0
    task_ref: Callable[[], asyncio.Task[Any] | None] | None = None
    taken_at: str = ""
    waited: float = 0.0
    connecting: float = 0.0
    waited_since: float = 0.0
    ticket: int = 0
    is_spare: bool = False
    waits_told: bool = False
    is_stuck: bool = False
    in_doubt: bool = False
    is_lost: bool = False
    ended_because: str = ""
    begun_at: str | None = None
    kept_by: str = ""
    readonly: bool = False
    commits: bool = False
    interrupted: bool = False
    suspect: bool = False
    touched: int = Touched.NOTHING
    handed_out: Any = None
    lender: ConnectionPool
    alarm: Alarm
    dbapi_connection: Any
    fairy_ref: Any

    def __init__(self, pool: ConnectionPool) -> None:
        super().__init__(pool.queue, connect=False)
        self.lender, self.alarm = pool, Alarm()
        self._share = random.uniform(_SHORTEST_LIFE, 1.0)
        self._lent, self._rested = pool.driver.traits.lent, pool.driver.traits.rested

    @property
    def home(self) -> asyncio.AbstractEventLoop | None:
        """The open loop that has it."""
        loop = self.home_ref()
        return None if loop is None or loop.is_closed() else loop

    @property
    def is_old(self) -> bool:
        """Whether it has been idle or open for too long."""
        return self.fresh_until <= time.monotonic()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self.dbapi_connection is not None

    def lend(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Bring its connection to the running loop `loop`; tell whether it can be used there at once."""
        self.since = now = time.monotonic()
        task = asyncio.current_task(loop)
        self.task_ref = None if task is None else weakref.ref(task)
        self.thread = threading.current_thread()
        lender = self.lender
        if (
            now > self.fresh_until
            or self.dbapi_connection is None
            or lender.queue._invalidate_time > self.starttime  # noqa: SLF001
            or self._soft_invalidate_time > self.starttime
            or self.suspect
        ):
            return False
        if self.home_ref() is not loop:
            lender.driver.move(self.raw)
            self._settle_in(loop)
        if lender.driver.is_lost(self.raw, self.rested) and (
            # Under `force_rollback` who has the driver's own is answered while this is not lent: that is no farewell.
            self.handed_out is None or lender.driver.is_closed(self.raw)
        ):
            lender.counts.connections_lost += 1
            self.terminate()  # what it has said is forgotten when it is given back
            return False
        self._lent(self.raw)
        lender.counts.reused += 1
        return True

    def get_connection(self) -> Any:
        """Give SQLAlchemy's connection, opening one if need be; this awaits, in a greenlet."""
        loop = asyncio.get_running_loop()
        ready = self._is_ready(loop) or self._open_or_wait(loop)
        self.touched |= self.lender.untouched
        self.note_who_waited()
        if self.lender.options.setup is not None and not (ready and self.lender.pinned):
            await_only(self.lender.set_up(self))
        return self.dbapi_connection

    def _open_or_wait(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Open a connection; tell whether one has come back instead, where the server is full."""
        has_waited = self.waited_since < 0
        since = time.monotonic() - (self.waited if has_waited else 0)
        ticket = self.ticket if has_waited else None
        while True:
            self.terminate()
            try:
                self._connect()
            except TooManyConnections as error:
                ticket = await_only(self.lender.wait_for_room(self, error, since, ticket))
                if self._is_ready(loop):
                    return True
            else:
                break
        self.raw, self.touched = self.of_driver, Touched.NOTHING
        self.in_doubt = self.interrupted = self.is_lost = False
        self.ended_because = ""
        self._settle_in(loop)
        self._lent(self.raw)
        return False

    def take_over(self, other: PoolEntry) -> None:
        """Become an idle one; from now on that is nothing."""
        vars(self).update(vars(other))
        for name in (
            "fresh",
            "starttime",
            "finalize_callback",
            "dbapi_connection",
        ):  # some SQLAlchemys have slots
            setattr(self, name, getattr(other, name))
        other.dbapi_connection = None

    def _is_ready(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether it has a connection that works, in the running loop `loop`."""
        suspect, self.suspect = self.suspect, False
        ready = was_ready = self.lend(loop)
        if ready and suspect:
            ready = await_only(self.lender.takes_writes(self))
        elif ready and self.lender.options.pool.pre_ping:
            ready = await_only(self.lender.answers(self))
        if was_ready and not ready:
            self.lender.counts.reused -= 1
            self.lender.counts.connections_lost += 1
        return ready

    def _connect(self) -> None:
        """Have SQLAlchemy open a connection, and prepare it."""
        task, known = asyncio.current_task(), False
        try:
            self._open_counted()
            known = True
        finally:
            self.lender.first.leave(task, known=known)

    def _open_counted(self) -> None:
        counts, began = self.lender.counts, time.monotonic()
        counts.connections_num += 1
        self.raw = None  # that of a connection before
        try:
            self._open()
        except TooManyConnections:
            raise  # it is counted when nothing has come back, either
        except BaseException:
            counts.connections_errors += 1
            counts.requests_errors += 1
            raise
        seconds = time.monotonic() - began
        counts.connections_ms += seconds * 1000
        self.note_wait(connecting=seconds)

    def note_wait(self, *, waited: float = 0.0, connecting: float = 0.0) -> None:
        """Note what the one who is about to get it has waited for."""
        if self.waited_since >= 0:
            self.waited = self.connecting = 0.0
        self.waited, self.connecting = self.waited + waited, self.connecting + connecting
        self.waited_since, self.waits_told = -1.0, False

    def note_who_waited(self) -> None:
        """Note that it was the one who has it now."""
        if self.waited_since < 0:
            self.waited_since = self.since

    def take_waits(self) -> tuple[float, float]:
        """Give what the one who has it has waited in the queue, and for it to be opened; once."""
        told, self.waits_told = self.waits_told, True
        return (0.0, 0.0) if told else self.waits

    @property
    def waits(self) -> tuple[float, float]:
        """What the one who has it has waited in the queue, and for it to be opened."""
        return (self.waited, self.connecting) if self.waited_since == self.since else (0.0, 0.0)

    def note_commit(self) -> None:
        """Note that SQLAlchemy is about to commit; where the connection is closed already, nothing is sent."""
        self.commits = not self.lender.driver.is_closed(self.raw)

    def touch(self, touched: int) -> None:
        """Note what is about to be changed of the session."""
        self.touched |= touched

    @property
    def driver_connection(self) -> Any:  # type: ignore[override]
        """The driver's own connection, for SQLAlchemy's users: refused when it is back."""
        if self.is_being_opened:
            return super().driver_connection
        return user_side(self.lender.driver, self.hand_out())

    def hand_out(self) -> Any:
        """Give the driver's own connection, which its user may keep for too long."""
        self.touched |= Touched.RAW
        if self.handed_out is None:
            self.handed_out = self.lender.driver.hand_out(self.raw)
        return self.handed_out

    def take_back(self) -> None:
        """Refuse from now on what was handed out."""
        handed_out, self.handed_out = self.handed_out, None
        if handed_out is not None:
            place = self.taken_at or _SQLALCHEMY
            self.lender.driver.take_back(self.raw, handed_out, place)

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:  # noqa: FBT001, FBT002
        """End its connection, for SQLAlchemy; where a statement was cancelled the server stops that, and it stays.

        SQLAlchemy by itself may end it before the server has been told, which then goes on with the statement.
        """
        if (
            isinstance(e, asyncio.CancelledError)
            and self.lender.driver.traits.settles
            and not soft
            and in_greenlet()
            and self.lender.key.pid == getpid()
            and not self.is_being_opened
        ):
            proxy = self.fairy_ref
            stays = not isinstance(proxy and proxy(), Proxy)
            with suppress(asyncio.CancelledError):  # `e` is on its way to whoever was cancelled
                await_only(self.lender.returning.recover(self, reset=stays))
            self.fairy_ref = proxy  # else SQLAlchemy would not return what had to be ended
            if stays:
                return
        super().invalidate(e, soft)

    @property
    def is_forgotten(self) -> bool:
        """Whether it was lent for one call to a task that is done: an exception has struck between two lines of ours.

        What SQLAlchemy or a block has may go from task to task. Any thread may ask: meanwhile the task may give it back
        and end, and another get it.
        """
        ref = self.task_ref
        task = None if ref is None else ref()
        is_done = ref is not None and (task is None or task.done()) and self.task_ref is ref
        is_left = is_done and not self.taken_at and self.fairy_ref is None
        return self.is_stuck or is_left or self._is_of_a_dead_thread()

    def _is_of_a_dead_thread(self) -> bool:
        """Tell whether nobody runs its loop any more: the thread that did has ended, and left it open.

        No garbage collector takes a loop of uvloop's that waits for a socket.
        """
        thread, loop = self.thread, self.home
        is_dead = thread is not None and not thread.is_alive()
        return is_dead and (loop is None or not loop.is_running()) and self.thread is thread

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The asyncio task that has it, if there is one."""
        return None if self.task_ref is None else self.task_ref()

    def rest(self) -> None:
        """Note that nobody uses it from now on."""
        self.taken_at = self.kept_by = ""
        self.is_stuck = self.in_doubt = self.interrupted = self.readonly = False
        self.thread = None
        if self.dbapi_connection is not None:
            self._rested(self.raw)
        self.rested = now = time.monotonic()
        lender = self.lender
        self.fresh_until = now + lender.patience
        if lender.options.pool.recycle is not None:
            self.fresh_until = min(self.fresh_until, self._spent_at(now))
        if (tell := lender.tell_use) is not None:
            tell(self)

    def keep(self) -> None:
        """Have it stay idle for as long as it may be open."""
        self.fresh_until = self._spent_at(time.monotonic())

    def _spent_at(self, now: float) -> float:
        """Tell when it will have been open for too long, on the monotonic clock, which says `now`."""
        if (recycle := self.lender.options.pool.recycle) is None:
            return math.inf
        return now + self.starttime + recycle * self._share - time.time()

    def leave(self) -> None:
        """Let any loop have it."""
        self.lender.driver.detach(self.raw)
        self.home_ref = nowhere

    def terminate(self) -> None:
        """End its connection at once; any thread may ask, and twice is fine."""
        self.take_back()
        if self.dbapi_connection is not None:
            self.dbapi_connection = self.fairy_ref = None
            self.lender.driver.terminate(self.raw)
            self.lender.counts.terminated += 1

    def terminate_in_use(self) -> None:
        """End its connection at once, which SQLAlchemy has: it gives its place back as always."""
        proxy = self.fairy_ref
        self.terminate()
        self.fairy_ref = proxy

    @property
    def is_being_opened(self) -> bool:
        """Whether SQLAlchemy has no connection, or a new one, and asks that what it can do."""
        return self.raw is None or self.dbapi_connection is None

    @property
    def holder(self) -> Holder:
        """Who has it, since when and where."""
        nobody = "a callback" if self.task_ref is None else "a task that has ended"
        nowhere = "an unknown place" if self.fairy_ref is None else _SQLALCHEMY
        return holder_of(self.task, self.since, self.taken_at, nobody=nobody, nowhere=nowhere)

    def _open(self) -> None:
        """Open a connection, and ask what SQLAlchemy asks first: in twice the time for connecting, all in all."""
        options = self.lender.options
        target, seconds = describe_target(options.url), 2 * connect_timeout(options)
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(seconds, self._end_opening)
        try:
            call_within(seconds, super().get_connection)
        except Exception as error:
            is_late = isinstance(error, StatementTimeout)
            if not (is_late or self._was_lost(error)):
                raise
            if is_late or loop.time() >= alarm.when():
                raise ConnectTimeout(target, f"no answer within {seconds:g} s") from error
            reason = str(self.lender.driver.original(error)).strip().splitlines()[0]
            raise ConnectError(target, reason) from error
        finally:
            alarm.cancel()

    def _was_lost(self, error: Exception) -> bool:
        """Tell whether a connection has ended while SQLAlchemy asked what it asks first."""
        if isinstance(error, LoopsafeError):
            return False
        driver = self.lender.driver
        means_it = driver.traits.failure(driver.original(error)) is ConnectionLost
        return means_it or isinstance(error, ConnectionError)

    def _end_opening(self) -> None:
        if self.dbapi_connection is not None:
            self.lender.driver.terminate(self.of_driver)
            self.dbapi_connection = None

    @property
    def of_driver(self) -> Any:
        """The driver's own connection that SQLAlchemy has; `raw` when all has been asked of it."""
        adapted = self.lender.driver.traits.adapted
        return self.dbapi_connection if adapted else super().driver_connection

    def _settle_in(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.home_ref() is loop:
            return
        self.home_ref, self.home_key = weakref.ref(loop), self.lender.watch(loop)
        # SQLAlchemy's lock is bound to the loop of its last contention.
        if hasattr(self.dbapi_connection, "_execute_mutex"):
            cast("Any", self.dbapi_connection)._execute_mutex = asyncio.Lock()  # noqa: SLF001
