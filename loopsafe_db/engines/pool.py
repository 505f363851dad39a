"""ConnectionPool: the connections of one handle in one process, lent to its loops and to SQLAlchemy's engine."""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import math
import threading
import time
import warnings
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import event
from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from loopsafe_db._runtime.contexts import in_no_context
from loopsafe_db._runtime.endings import ENDING_TIMEOUT
from loopsafe_db._runtime.keys import LoopKey
from loopsafe_db._runtime.pids import getpid
from loopsafe_db._runtime.reaper import Reaper
from loopsafe_db._runtime.registry import Resource, current_key, current_state, forget
from loopsafe_db._runtime.tasks import may_be_left, stuck_on
from loopsafe_db._runtime.transport import nowhere
from loopsafe_db.drivers.base import ConnectionState
from loopsafe_db.drivers.session_state import Touched
from loopsafe_db.drivers.url import connect_timeout, describe_target
from loopsafe_db.engines.connecting import Outage
from loopsafe_db.engines.entry import NOT_USED, PoolEntry, Proxy, user_side
from loopsafe_db.engines.first_connection import FirstConnection
from loopsafe_db.engines.holders import leave_out
from loopsafe_db.engines.lending import LOST_TIMEOUT, Lending, Slot, is_gone, items_of
from loopsafe_db.engines.logs import loggers
from loopsafe_db.engines.observed import ObservedDriver, observe_engine
from loopsafe_db.engines.observing import Observer, no_listeners
from loopsafe_db.engines.returning import Returning
from loopsafe_db.engines.stats import PoolStats, past
from loopsafe_db.errors import (
    AcquireTimeout,
    ConnectError,
    ConnectTimeout,
    ForeignLoopError,
    InvalidSettingError,
    TooManyConnections,
    TooManyRequests,
    TransactionError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping

    from sqlalchemy.ext.asyncio import AsyncEngine

    from loopsafe_db._runtime.forks import SocketId
    from loopsafe_db.drivers.base import Driver
    from loopsafe_db.engines.compiled_clause import Clauses
    from loopsafe_db.engines.observing import Listeners
    from loopsafe_db.engines.scopes import Scope
    from loopsafe_db.options import DatabaseOptions
    from loopsafe_db.records import Record

_log = logging.getLogger("loopsafe_db")
_READ_ONLY = "25006"  # SQLSTATE
# By itself, and not for what the user has said of a transaction or a session.
_REFUSES_WRITES = """SELECT pg_is_in_recovery() OR EXISTS (SELECT FROM pg_settings WHERE
name = 'default_transaction_read_only' AND setting = 'on' AND source NOT IN ('session', 'client'))"""
_FORGOTTEN = "a connection was not given back before its event loop was closed"


_LEFT = "a connection was not given back by its task, which is done or never runs again"


class SharedQueue(Pool):
    """SQLAlchemy's side of the pools of all processes: its engine, and sessions, are lent connections by it.

    Attributes:
        find_pool: Gives the pool of this process.
        own_listeners: What we have the engine call; all others are the program's.
        clauses: Those that need no cursor of SQLAlchemy's; None where the driver takes none.
        is_observed: Whether the observers of the pools hear of what the engine sends.
    """

    _is_asyncio = True
    is_observed: bool = False
    _counted, _is_heard = -1, False  # listeners to `connect`; whether any is the program's
    find_pool: Callable[[], ConnectionPool]
    own_listeners: frozenset[int]
    clauses: Clauses | None

    def __init__(
        self, creator: Any, find_pool: Callable[[], ConnectionPool], **options: Any
    ) -> None:
        super().__init__(creator, **options)
        self.find_pool = find_pool

    def _do_get(self) -> PoolEntry:
        lender, loop = self.find_pool(), asyncio.get_running_loop()
        return lender.take_now(loop) or await_only(lender.take_later(loop))

    def _do_return_conn(self, record: Any) -> None:
        returning = record.lender.returning
        if returning.is_idle(record):
            record.lender.give_back(record)
        elif record.is_open and in_greenlet():
            await_only(returning.release(record))
        else:
            returning.release_nowait(record)

    def prepare_again(self, entry: PoolEntry) -> None:
        """Have the program's listeners do to a session that was reset what they do to a new one."""
        connection, dialect = entry.dbapi_connection, self.find_pool().engine.dialect
        if dialect._on_connect_isolation_level is not None:  # noqa: SLF001
            dialect.reset_isolation_level(connection)
        for listener in self._listeners():
            listener(connection, entry)

    @property
    def prepares(self) -> bool:
        """Whether `prepare_again` has anything to do."""
        count = len(self.dispatch.connect)
        if count != self._counted:  # each reset asks
            self._counted, self._is_heard = count, bool(self._listeners())
        level = cast("Any", self._dialect)._on_connect_isolation_level  # noqa: SLF001
        return self._is_heard or level is not None

    def _listeners(self) -> list[Any]:
        return [one for one in self.dispatch.connect if id(one) not in self.own_listeners]

    def recreate(self) -> SharedQueue:
        """Give a pool for an engine that was disposed of: the same, for the connections are shared."""
        return self

    def dispose(self) -> None:
        """End the connections of this process: those that are checked out when they come back.

        Under `force_rollback` that waits for its end: an application under test disposes of its engine, too.
        """
        pool = self.find_pool()
        if pool.pinned is None:
            pool.expire()

    def status(self) -> str:
        """Describe it, for logs."""
        return (
            f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} Current Overflow: {self.overflow()} "
            f"Current Checked out connections: {self.checkedout()}"
        )

    def size(self) -> int:
        """Give ``pool_size``, if that was given, else the most connections."""
        options = self.find_pool().options
        return options.pool.max_connections if options.pool_size is None else options.pool_size

    def timeout(self) -> float:
        """Give the seconds that a caller waits for a connection."""
        return self.find_pool().options.timeouts.acquire

    def checkedin(self) -> int:
        """Count the idle connections of this process."""
        return self.find_pool().stats().idle

    def checkedout(self) -> int:
        """Count the connections of this process that are in use."""
        return self.find_pool().stats().in_use

    def overflow(self) -> int:
        """Tell how many connections there are more than `size`; less than 0: so many may still be opened."""
        stats = self.find_pool().stats()
        return stats.idle + stats.in_use - self.size()


def refuse_others(_: Any, record: Any) -> None:
    """Refuse a connection that a listener of SQLAlchemy's ``do_connect`` has given, in place of one of the pool.

    Raises:
        InvalidSettingError: It is one.
    """
    if not record.lender.has_opened(record.of_driver):
        raise InvalidSettingError(
            "a do_connect listener has given a connection of its own, which nobody here could look after: have it "
            "change the arguments, and give None"
        )


class ConnectionPool:
    """The connections of one handle in one process. Should live as long as the process.

    Attributes:
        key: The process.
        lending: Who gets which connection.
        returning: What becomes of those that come back.
        first: Which of the new connections SQLAlchemy asks what it has to know.
        outage: Whether the server refuses all that come, and who tries next.
        only_one: Whether it has one connection that no other can replace.
        bound: asyncio task -> the connections that it has checked out; both weakly, for they keep their loop.
        pinned: The one connection that everybody works on, where all of it is undone in the end.
        statements: What was sent, where that is recorded.
        untouched: What is undone of a connection of which nobody knows that it was touched.
        user_driver: The driver as what users ask goes to it: it tells the observer.
        tell_use: Called with each entry that comes back; None where nobody listens.
        direct: Whether a text may go to the driver without a `Connection`.
        counts: What it has done; `stats` adds what is.
        engine: SQLAlchemy's engine, on these connections and those of other processes.
        open_connection: Opens one, with changed arguments if there are any; set by the factory.
        clauses: Those that need no cursor of SQLAlchemy's; None where the driver takes none.
    """

    engine: AsyncEngine
    open_connection: Callable[[Mapping[str, Any]], Awaitable[Any]]
    clauses: Clauses | None
    queue: SharedQueue
    key: LoopKey
    driver: Driver
    options: DatabaseOptions
    scope: Scope
    patience: float
    counts: PoolStats
    only_one: bool
    untouched: int
    pinned: Any
    statements: list[str] | None
    user_driver: Driver
    tell_use: Callable[[PoolEntry], None] | None
    direct: bool

    def __init__(
        self, driver: Driver, options: DatabaseOptions, scope: Scope, engine: AsyncEngine
    ) -> None:
        self.key = LoopKey(getpid(), 0)
        self.engine, self.queue = engine, cast("SharedQueue", engine.sync_engine.pool)
        self.clauses = self.queue.clauses
        self.driver = self.user_driver = driver
        self.options, self.scope = options, scope
        self._observer, self.tell_use = Observer(self, (), no_listeners), None
        leave_out(driver.traits.name)
        self.patience, self._pause = options.pool.idle_timeout or math.inf, options.pool.pause
        self.outage: Outage = Outage()
        self.lending: Lending[PoolEntry] = Lending(
            options.pool.max_connections,
            movable=scope.movable,
            sticky=driver.traits.attaches,
            ask=self._ask,
            evict=self._make_room,
            sweep=self._sweep,
            may_open=self.outage.may_open,
        )
        self.returning: Returning = Returning(self)
        self.first: FirstConnection = FirstConnection()
        self.only_one = False
        wanted = options.query.get("target_session_attrs")
        self._wants_primary = wanted in ("read-write", "primary")
        self.untouched = _untouched(options)
        self._looks_first = bool(options.pool.pre_ping or options.setup or self.untouched)
        self._may_leave = scope.movable and driver.traits.attaches
        self.bound: dict[weakref.ref[asyncio.Task[Any]], list[weakref.ref[Any]]] = {}
        self.pinned = None
        self.statements = None
        self.direct = True
        self._raws: set[Any] = set()
        self._new: set[Any] = set()  # of those, the ones that SQLAlchemy has not seen
        self.counts = PoolStats()
        self._stuck: dict[PoolEntry, tuple[weakref.ref[asyncio.Future[Any]], float]] = {}
        self._working: set[asyncio.Task[None]] = set()
        self._least = 0  # connections that are kept open
        self._ending: set[Callable[[], asyncio.AbstractEventLoop | None]] = set()
        self._reaper = Reaper(self._reap)

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<ConnectionPool of {self.key}: {stats.idle} idle, {stats.in_use} in use>"

    def opened(self, raw: Any) -> None:
        """Take note of a connection that the engine has opened."""
        for known in list(self._raws):
            if self.driver.is_closed(known):
                self._raws.discard(known)
        self._raws.add(raw)
        self._new.add(raw)
        self.counts.opened += 1

    def has_opened(self, raw: Any) -> bool:
        """Tell, once, whether a connection is one of `opened`; it may have ended since."""
        known = raw in self._new
        self._new.discard(raw)
        return known

    # -- lending

    # Of all of these, `loop` is the running one: CPython 3.11 asks the system each time that it is looked up.

    def take_now(self, loop: asyncio.AbstractEventLoop) -> PoolEntry | None:
        """Lend an idle connection, or a place to open one; None if there is neither.

        Raises:
            ForeignLoopError: The pool came through a fork.
        """
        if self.key.pid != getpid():
            raise ForeignLoopError(repr(self.engine), self.key, current_key())
        return self.lending.take_here(loop) or self._entry(self.lending.take(loop))

    async def take_later(
        self, loop: asyncio.AbstractEventLoop, timeout: float | None = None
    ) -> PoolEntry:
        """Wait for what `take_now` gives.

        Raises:
            AcquireTimeout: Nothing came free in so many seconds, or ``timeouts.acquire``.
            TooManyRequests: As many wait as may.
            ConnectError: The server refuses all that come, so that there is nothing to wait for.
        """
        began, counts, queued = time.monotonic(), self.counts, self.lending.queued
        seconds = self.options.timeouts.acquire if timeout is None else timeout
        if self.outage.is_full and not self._has_open:
            seconds = min(seconds, connect_timeout(self.options))
        try:
            most = self.options.pool.max_waiting
            if most and queued >= most and (waiting := self.lending.waiting) >= most:
                raise TooManyRequests(waiting, self.lending.limit)
            counts.requests_queued += 1
            counts.queue_peak = max(counts.queue_peak, queued + 1)
            ticket = self.lending.ticket()
            entry = self._entry(await self.lending.wait(loop, seconds, ticket))
            if entry is None and (refused := self.outage.refused) is not None:
                raise copy.copy(refused) from refused.__cause__
            if entry is None:
                raise self._exhausted(seconds)
        except BaseException as error:
            counts.requests_errors += 1
            if self.observer is not None:
                self.observer.missed(time.monotonic() - began, error)
            raise
        finally:
            counts.requests_wait_ms += (time.monotonic() - began) * 1000
        entry.note_wait(waited=time.monotonic() - began)
        entry.ticket = ticket
        return entry

    async def wait_for_room(
        self, entry: PoolEntry, refused: TooManyConnections, since: float, ticket: int | None
    ) -> int:
        """Have a caller whom a full server has refused wait for a connection that comes back, or its turn to try.

        It waits as others do, without a place, where it would stand had it waited from the first. What comes back goes
        into `entry`, which SQLAlchemy knows already.

        Args:
            entry: Its place.
            refused: What the server has said.
            since: When it came, on the monotonic clock.
            ticket: Its number in the queue, if it has one.

        Returns:
            Its number in the queue.

        Raises:
            TooManyConnections: Its time is over.
        """
        lending, loop, began = self.lending, asyncio.get_running_loop(), time.monotonic()
        number = lending.ticket() if ticket is None else ticket
        try:
            if entry.is_spare:
                await self.outage.turn(since + connect_timeout(self.options))
                return number
            if lending.held.pop(entry, None) is not None:
                lending.free()
            left = since + self._patience_if_full() - began
            item = await lending.wait(loop, left, number, again=True) if left > 0 else None
            if item is None:
                raise copy.copy(refused) from refused.__cause__
        except TooManyConnections:
            self.counts.connections_errors += 1
            self.counts.requests_errors += 1
            raise
        finally:
            self.counts.requests_queued += ticket is None
            self.counts.requests_wait_ms += (time.monotonic() - began) * 1000
        if isinstance(item, Slot):
            lending.hold(entry)
        else:
            entry.take_over(item)
            lending.held[entry] = lending.held[item]
            del lending.held[item]
        entry.note_wait(waited=time.monotonic() - began)
        return number

    def _patience_if_full(self) -> float:
        """Give the seconds that a caller waits while the server is full: there may be nothing that could come back."""
        seconds = connect_timeout(self.options)
        return max(seconds, self.options.timeouts.acquire) if self._has_open else seconds

    @property
    def _has_open(self) -> bool:
        """Whether there is a connection, idle or in use."""
        return self.lending.idle > 0 or any(entry.is_open for entry in list(self.lending.held))

    def _exhausted(self, seconds: float) -> AcquireTimeout:
        held, task = list(self.lending.held), asyncio.current_task()
        is_own = task is not None and any(entry.task is task for entry in held)
        holders = [str(entry.holder) for entry in held]
        return AcquireTimeout(seconds, self.lending.limit, holders, is_own=is_own)

    def acquire_nowait(self, loop: asyncio.AbstractEventLoop) -> PoolEntry | None:
        """Lend what the loop used last, if it works; None: `acquire` will do better."""
        if self._looks_first:
            return None
        entry = self.lending.take_here(loop)
        if entry is None:
            return None
        if entry.lend(loop):
            entry.in_doubt = True
            return entry
        entry.since = NOT_USED
        self.give_back(entry)
        return None

    async def acquire(
        self, loop: asyncio.AbstractEventLoop, timeout: float | None = None
    ) -> PoolEntry:
        """Lend a connection that is open and works.

        Args:
            loop: The running one.
            timeout: Seconds for all of it; None is ``timeouts.acquire`` to wait, and ``timeouts.connect`` to open one.

        Raises:
            AcquireTimeout: None came free in time.
            TooManyRequests: As many wait as may.
            ConnectError: A new one could not be opened.
        """
        began = time.monotonic()
        entry = self.take_now(loop) or await self.take_later(loop, timeout)
        left = None if timeout is None else timeout - (time.monotonic() - began)
        began = time.monotonic()
        try:
            if self._looks_first or not entry.lend(loop):
                await self._make_ready(entry, left)
        except BaseException as error:
            if self.observer is not None:
                self.observer.missed(time.monotonic() - began, error)
            entry._checkin_failed(error, _fairy_was_created=False)  # noqa: SLF001
            raise
        entry.note_who_waited()
        entry.in_doubt = True
        return entry

    async def _make_ready(self, entry: PoolEntry, seconds: float | None) -> None:
        """Open a connection, or try it, in so many seconds.

        Raises:
            ConnectTimeout: It takes longer.
        """
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await greenlet_spawn(entry.get_connection)
        except TimeoutError as error:
            if not limit.expired():
                raise
            target, what = describe_target(self.options.url), "the caller had no more time"
            raise ConnectTimeout(target, what) from error

    async def open_least(self) -> None:
        """Have `PoolLimits.min_connections` be open, and have lost ones replaced, until `keep_none`.

        Raises:
            ConnectError: One could not be opened.
        """
        self._least = self.options.pool.min_connections
        await self._open_missing()

    def keep_none(self) -> None:
        """Have no connection be opened that nobody asks for."""
        self._least = 0

    async def _open_missing(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._least - self.lending.open):
                    group.create_task(self._open_idle())
        except ExceptionGroup as failed:
            first = failed.exceptions[0]
            raise first from first.__cause__

    async def _open_idle(self) -> None:
        """Open one of the least for whoever comes, if it is missing."""
        entry = self._entry(self.lending.take_place(self._least))
        if entry is None:
            return
        entry.is_spare = True
        try:
            await greenlet_spawn(entry.get_connection)
        except BaseException as error:
            entry._checkin_failed(error, _fairy_was_created=False)  # noqa: SLF001
            raise
        entry.is_spare = False
        await self.returning.release(entry)

    def keep_least(self) -> None:
        """Open in the running loop, if there is one that goes on, what is missing of the least."""
        loop = asyncio._get_running_loop()  # noqa: SLF001
        goes_on = loop is not None and weakref.ref(loop) not in self._ending
        if goes_on and self.lending.open < self._least and self.key.pid == getpid():
            self._in_background(cast("Any", loop), self._replace_lost())

    async def _replace_lost(self) -> None:
        try:
            await self._open_missing()
        except ConnectError as error:
            _log.warning("a lost connection was not replaced: %s", error)

    def _in_background(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]
    ) -> None:
        task = loop.create_task(work)
        may_be_left(task)  # where the loop ends before, what it has is taken back
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def initialise(self, raw: Any) -> None:
        """Have ``init`` do what each new session needs."""
        if self.options.init is not None:
            await self.options.init(user_side(self.driver, raw))
            self._refuse_transaction(raw, "init")

    @property
    def initialises(self) -> bool:
        """Whether `initialise_again` has anything to do."""
        return self.options.init is not None or self.queue.prepares

    async def initialise_again(self, entry: PoolEntry) -> None:
        """Have done to a session that was reset what was done to it when it was new."""
        await self.initialise(entry.raw)
        if self.queue.prepares:
            await greenlet_spawn(self.queue.prepare_again, entry)

    async def set_up(self, entry: PoolEntry) -> None:
        """Have ``setup`` do what each user needs; where it fails, the connection is ended."""
        assert self.options.setup is not None
        try:
            await self.options.setup(user_side(self.driver, entry.hand_out()))
            self._refuse_transaction(entry.raw, "setup")
        except BaseException:
            entry.terminate()
            raise

    def _refuse_transaction(self, raw: Any, hook: str) -> None:
        """Refuse a connection that a hook has left in a transaction of its own.

        Raises:
            TransactionError: What its user does would be undone with that.
        """
        state = self.driver.state(raw)
        # Without autocommit, each statement begins one.
        if self.driver.traits.autocommit and state is ConnectionState.IN_TRANSACTION:
            raise TransactionError(
                f"{hook}= has left a transaction open, and what is done next would be undone with it; end it there"
            )

    async def answers(self, entry: PoolEntry) -> bool:
        """Tell whether a connection works, by a query."""
        return await self._ask_server(entry, "SELECT 1") is not None

    async def takes_writes(self, entry: PoolEntry) -> bool:
        """Tell whether the server takes writes; if it does not, have each connection that is open now replaced."""
        row = await self._ask_server(entry, _REFUSES_WRITES)
        if row is not None and row[0]:
            _log.warning("a server takes no writes any more: connections are replaced")
            self.renew()
        return row is not None and not row[0]

    def refuses_writes(self, error: BaseException) -> bool:
        """Tell whether a server that was to take writes has refused one: it may not be the primary any more."""
        sqlstate = getattr(self.driver.original(error), "sqlstate", None)
        return sqlstate == _READ_ONLY and self._wants_primary

    def drops_plans(self, entry: PoolEntry, error: BaseException) -> bool:
        """Tell whether what failed may be sent again: what was prepared is outdated or gone, and forgotten now."""
        return self.driver.drops_plans(entry.raw, self.driver.original(error))

    def pin(self, pinned: Any) -> None:
        """Have everybody work on one connection."""
        self.pinned, self.direct = pinned, False

    def observe(self, own: Callable[[], Listeners | None]) -> None:
        """Tell these, while somebody has them, of statements, too, beside those who listen everywhere."""
        self._observer = Observer(self, loggers(self.options), own)
        self.look_for_listeners()

    def look_for_listeners(self) -> None:
        """Tell who listens now; where nobody does, the driver is called as it is. Any thread may ask."""
        wanted = any(listener.used for listener in self._observer.listeners)
        self.tell_use = self._observer.used if wanted else None
        if self.observer is None:
            self.user_driver = self.driver
            return
        if not self.queue.is_observed:
            self.queue.is_observed = True
            observe_engine(self.engine, self.queue)
        self.user_driver = cast("Driver", ObservedDriver(self.driver, self._observer))

    @property
    def observer(self) -> Observer | None:
        """What tells who listens of statements; None where nobody does."""
        return self._observer if self._observer.listeners else None

    def record(self) -> None:
        """Record statements from now on."""
        if self.statements is None:
            self.statements, self.direct = [], False
            event.listen(self.engine.sync_engine, "before_cursor_execute", self._heard)

    def _heard(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.note(statement)

    def note(self, statement: str) -> None:
        """Record a statement, if they are recorded."""
        if self.statements is not None:
            self.statements.append(statement)

    def renew(self) -> None:
        """Have each connection that is open now replaced before its next use; not the one that must be kept."""
        if self.pinned is None:
            self.queue._invalidate_time = time.time()  # noqa: SLF001 (as SQLAlchemy's pools do it)

    def give_back(self, entry: PoolEntry) -> None:
        """Take a connection back as it is, for `Returning` has looked at it; twice is fine."""
        lending = self.lending
        if entry not in lending.held:
            return
        entry.rest()
        loop = entry.home_ref()
        if entry.dbapi_connection is None:
            self.counts.returns_bad += entry.raw is not None
        elif entry.fresh_until <= entry.rested or (self._ending and entry.home_ref in self._ending):
            entry.terminate()  # it was open for too long, or nothing closes it later
        elif loop is not None and (self.pinned is not None or lending.contended(loop)):
            if self.pinned is None and lending.hand_on(entry, loop):
                entry.task_ref = None
                return
            if self._may_leave:
                entry.leave()
        # Last, and at once: what is in neither is lost for a while if an exception strikes.
        if lending.held.pop(entry, None) is not None:
            entry.task_ref = None
            lending.give_back(entry, is_open=entry.dbapi_connection is not None)

    def proxy(self, entry: PoolEntry) -> Proxy:
        """Make SQLAlchemy's proxy for a lent connection; closing it gives the connection back."""
        fairy = Proxy(self.queue, cast("Any", entry.dbapi_connection), entry, echo=None)
        fairy._counter = 1  # noqa: SLF001 (as SQLAlchemy counts its own)
        entry.fairy_ref = weakref.ref(fairy, _ignore)
        return fairy

    # -- figures

    def stats(self) -> PoolStats:
        """Give the figures of now."""
        self._reaper.go_on()
        self._sweep()
        stats = PoolStats()
        stats.add(self.counts)
        stats.in_use, stats.idle = len(self.lending.held), self.lending.idle
        stats.waiting = self.lending.waiting
        stats.max_connections = self.lending.limit
        stats.name = describe_target(self.options.url)
        stats.holders = tuple(entry.holder for entry in list(self.lending.held))
        return stats

    def sockets(self) -> Iterable[SocketId]:
        """Give the open sockets, for a forked child to let go of."""
        for raw in list(self._raws):
            yield from self.driver.sockets(raw)

    # -- endings

    def watch(self, loop: asyncio.AbstractEventLoop) -> LoopKey:
        """Note that `loop`, which runs, has a connection, so that its end is an end of what it left behind."""
        state = current_state("a connection pool")
        if state.at_close(self, self._loop_ended):
            if self._pause is not None:
                self._tick_later(loop, self._pause)
            if not self.scope.movable:
                state.add(self, Resource(self, self._close_with_loop, _nothing, tuple))
        return state.key

    async def close(self) -> None:
        """Close what is idle in the running loop, or in none; what others use stays."""
        loop = asyncio.get_running_loop()
        here = None, loop
        await self._close(
            self.lending.take_idle(lambda entry: entry.home in here, weakref.ref(loop))
        )
        if not self.lending.idle:
            self._reaper.stop()

    async def _close_with_loop(self) -> None:
        """Close what is idle, as the running loop shuts down, and from now on what comes back there.

        The loop closes its async generators all at once: a stream may end after this, and once the loop is closed,
        uvloop lets nobody close a transport.
        """
        self._ending.add(weakref.ref(asyncio.get_running_loop()))
        await self.close()

    def expire(self) -> None:
        """Have no connection that is open now used again: what is idle is ended, the others when they come back."""
        self._end_idle(lambda _: True)
        for entry in list(self.lending.held):
            entry.touch(Touched.LAST)
        self.keep_least()

    def before_fork(self) -> None:
        """End what is idle, where a connection that is open at a fork is in the way of the child's own."""
        holds_something = self.only_one if self.pinned is None else self.pinned.is_open
        if self.driver.traits.closes_before_fork and not holds_something:
            self._end_idle(lambda _: True)

    def retire(self) -> bool:
        """End what is idle, and later what comes back; tell whether nothing is left. For when the handle is gone."""
        self.keep_none()
        nothing_left = self.lending.retire()
        self._reaper.stop()
        if nothing_left:
            self._retire_stats()
            forget(self)
        return nothing_left

    def terminate(self) -> None:
        """End every connection at once: the process ends."""
        self._reaper.park()
        for raw in list(self._raws):
            if not self.driver.is_closed(raw):
                self.driver.terminate(raw)
                self.counts.terminated += 1
        self._retire_stats()

    async def close_entry(self, entry: PoolEntry) -> None:
        """Close a connection that nobody uses, politely; or end it."""
        if entry.home is not asyncio.get_running_loop():
            self.driver.move(entry.raw)
        try:
            async with asyncio.timeout(ENDING_TIMEOUT):
                await self.driver.close(entry.raw)
            self.counts.closed += 1
        except BaseException as error:
            entry.terminate()
            if not isinstance(error, Exception):
                raise
        entry.dbapi_connection = None

    # -- below

    async def _ask_server(self, entry: PoolEntry, query: str) -> Record | None:
        """Give the first row of a query; None if there is no answer."""
        timeout = self.options.timeouts.connect
        try:
            return await self.driver.fetch_one(entry.raw, query, (), timeout)
        except Exception as error:  # noqa: BLE001 (whatever it is, another one is opened)
            _log.info("a connection did not answer, and is replaced: %s", error)
            return None

    def _entry(self, item: PoolEntry | Slot | None) -> PoolEntry | None:
        if item is not Slot.OPEN:
            return None if isinstance(item, Slot) else item
        entry = PoolEntry(self)
        self.lending.hold(entry)
        return entry

    def _ask(self, entry: PoolEntry) -> None:
        """Have an idle connection's home let go of it, or end it where that is all it can do."""
        let_go = PoolEntry.leave if self.scope.movable else PoolEntry.terminate
        home = entry.home
        with suppress(RuntimeError):  # the loop is closed: then its end frees the connection
            if home is not None:
                home.call_soon_threadsafe(self.lending.hand_over, entry, let_go)

    def _make_room(self, entry: PoolEntry) -> None:
        """End an idle connection whose home is too busy to let go of it."""
        entry.terminate()
        self.lending.make_room(entry)

    def _retire_stats(self) -> None:
        past.add(self.counts)
        self._raws, self.counts = set(), PoolStats()

    def _end_idle(self, wanted: Callable[[PoolEntry], bool]) -> None:
        for entry in self.lending.take_idle(wanted, nowhere):
            self._end(entry)

    def _end(self, entry: PoolEntry) -> None:
        """End what was taken from the idle ones, and free its place."""
        entry.terminate()
        if self.lending.held.pop(entry, None) is not None:
            self.lending.free()

    async def _close(self, entries: list[PoolEntry]) -> None:
        """Close what was taken from the idle ones, all at once, in 2 s; whatever strikes, nothing of it stays open.

        Meanwhile they have their places: no new ones are opened beside them. And where the loop ends before, it is
        seen that they were not given back.
        """
        task, thread = asyncio.current_task(), threading.current_thread()
        for entry in entries:
            entry.since, entry.thread = time.monotonic(), thread
            entry.task_ref = None if task is None else weakref.ref(task)
        try:
            async with asyncio.TaskGroup() as group:
                for entry in entries:
                    group.create_task(self.close_entry(entry))
        finally:
            for entry in entries:
                self._end(entry)

    def _loop_ended(self) -> None:
        """End what a closed loop had lent, and what cannot go elsewhere."""
        forgotten = [self._end_forgotten(entry) for entry in self.lending.take_lost()]
        self._ending.difference_update([ref for ref in list(self._ending) if is_gone(ref())])
        self.lending.look_again()
        if not self.scope.movable:
            self._end_idle(lambda entry: entry.home is None)
        elif self._pause is not None and self.lending.idle:
            self._reaper.wake()
        for holder in forgotten:
            warnings.warn(f"{_FORGOTTEN}: {holder}", ResourceWarning, stacklevel=2)

    def sweep_after(self, task: asyncio.Task[Any]) -> None:
        """Look for what a task has not given back when it is done: that may hold locks. Any thread may call it."""
        if self.only_one:
            return  # what it has is all there is
        look = partial(task.add_done_callback, lambda _: self._sweep())
        with suppress(RuntimeError):  # the loop is closed, and its end has looked
            in_no_context(task.get_loop().call_soon_threadsafe, look)

    def _sweep(self) -> None:
        """End what is lent in loops that are closed, or to tasks that are done or never run again."""
        self._note_stuck()
        for entry in self.lending.take_lost():
            what = _LEFT if entry.is_forgotten else _FORGOTTEN
            _log.warning("%s: %s", what, self._end_forgotten(entry))
        self.lending.reconcile()

    def _note_stuck(self) -> None:
        """Note which tasks of the running loop have not been woken up, and whose have not been for long."""
        loop, now = asyncio._get_running_loop(), time.monotonic()  # noqa: SLF001
        before, self._stuck = self._stuck, {}
        for entry, ref in items_of(self.lending.held):
            if loop is not None and ref() is loop and (future := stuck_on(entry.task)) is not None:
                known, since = before.get(entry, (None, now))
                is_same = known is not None and known() is future
                self._stuck[entry] = weakref.ref(future), since if is_same else now
                entry.is_stuck = is_same and now - since > LOST_TIMEOUT

    def _end_forgotten(self, entry: PoolEntry) -> str:
        holder = str(entry.holder)
        for ref in list(self.bound):
            if ref() is None or ref is entry.task_ref:
                self.bound.pop(ref, None)
        entry.terminate()
        self.lending.free()
        return holder

    def _tick(self, loop: asyncio.AbstractEventLoop, pause: float) -> None:
        """Close now, and after each pause, what this loop has not used for long, or has for too long."""
        self._tick_later(loop, pause)
        here = None, loop
        is_left = self._spare()
        if old := self.lending.take_idle(
            lambda e: e.home in here and is_left(e), weakref.ref(loop)
        ):
            self._in_background(loop, self._close(old))
        self.keep_least()

    def _tick_later(self, loop: asyncio.AbstractEventLoop, pause: float) -> None:
        """Have `_tick` called after a pause; the timer keeps no pool that nobody has any more."""
        in_no_context(
            loop.call_later, pause, _call_if_there, weakref.WeakMethod(self._tick), loop, pause
        )

    def _spare(self) -> Callable[[PoolEntry], bool]:
        """Give what tells of an idle connection, once, whether to close it: it is too old, and none of the least."""
        spare = itertools.count(self.lending.open - self._least, -1)

        def is_left(entry: PoolEntry) -> bool:
            if entry.is_old and next(spare) <= 0:
                entry.keep()
            return entry.is_old

        return is_left

    def _reap(self) -> float | None:
        """End, in the reaper's thread, what no loop has and nobody used for long, or what is open for too long."""
        is_left = self._spare()
        self._end_idle(lambda entry: entry.home is None and is_left(entry))
        return self._pause if self.lending.idle else None


def _untouched(options: DatabaseOptions) -> int:
    if not options.keeps:
        return Touched.LAST
    if callable(options.reset):
        return Touched.USED
    return Touched.SETTINGS if options.reset == "always" else Touched.NOTHING


def _call_if_there(method: weakref.WeakMethod[Callable[..., object]], *args: object) -> None:
    """Be a timer's callback for an object that may be gone."""
    if (call := method()) is not None:
        call(*args)


def _nothing() -> None:
    """Be the second ending of what has one already."""


def _ignore(_: object) -> None:
    """Be a weak reference's callback."""
