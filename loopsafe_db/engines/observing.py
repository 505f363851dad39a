"""What is told of each statement, and who hears of it. Where nobody listens, nothing of this is called."""

from __future__ import annotations

import asyncio
import inspect
import logging
import multiprocessing
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from loopsafe_db._runtime.lag import lag_of
from loopsafe_db._runtime.registry import current_key, process_state, shared_values
from loopsafe_db.drivers.url import describe_target
from loopsafe_db.engines.holders import caller
from loopsafe_db.queries import without_passwords

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from loopsafe_db._runtime.keys import LoopKey
    from loopsafe_db.engines.entry import PoolEntry
    from loopsafe_db.engines.pool import ConnectionPool
    from loopsafe_db.url import DatabaseURL

Kind = Literal["text", "many", "clause", "session", "stream", "copy", "transaction", "acquire"]
MASK = "***"
_log = logging.getLogger("loopsafe_db")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that is over; what `Database.on_statement` calls its listeners with.

    Attributes:
        sql: As it was sent, without literal passwords. "" of an `acquire`.
        kind: ``"text"``; ``"copy"``; ``"many"``: a text of `execute_many`;
            ``"clause"``; ``"session"``: of a session, or another
            user of ``db.engine``; ``"stream"``: of `iterate`; ``"transaction"``: BEGIN, COMMIT, ROLLBACK and those of
            savepoints; ``"acquire"``: no statement, but a wait for a connection that ended without one.
        parameters: In the driver's order; ``"***"`` for each, unless the listener has asked for values.
        batch: How many rows of parameters, of "many"; else 0.
        started_at: When it was sent, or it was given up to wait: seconds since 1970.
        wait: Seconds in the pool's queue. Of a block, its first statement has them, here and in `connect`.
        connect: Seconds to open the connection, if it is new.
        query: Seconds from the sending to the answer, or to the first rows of a stream.
        fetch: Seconds for the other rows of a stream, without those that its reader took.
        lag: Of `query` and `fetch`, seconds that the event loop was late with what was due: busy with something else.
        rows: Rows that came back, or else were changed, where the driver tells.
        error: What it failed with: the driver's own error; or the `asyncio.CancelledError`.
        place: File and line that asked for it; of a ROLLBACK, for its BEGIN.
        task: The asyncio task.
        process: The name of the process.
        loop: Process and event loop.
        url: Of the database; ``str()`` of it shows the password.
    """

    sql: str
    kind: Kind
    parameters: tuple[Any, ...]
    batch: int
    started_at: float
    wait: float
    connect: float
    query: float
    fetch: float
    lag: float
    rows: int | None
    error: BaseException | None
    place: str
    task: str
    process: str
    loop: LoopKey
    url: DatabaseURL

    @property
    def seconds(self) -> float:
        """All of the time together."""
        return self.wait + self.connect + self.query + self.fetch

    @property
    def database(self) -> str:
        """The driver, the host and the database's name, without user and password."""
        return describe_target(self.url)


@dataclass(frozen=True, slots=True)
class Use:
    """A connection that has come back; what `Listener.used` is called with.

    Attributes:
        database: As `Statement.database`.
        wait: Seconds that its user has waited in the pool's queue.
        connect: Seconds to open it, if it was new.
        seconds: For how long it was in use, from then on.
    """

    database: str
    wait: float
    connect: float
    seconds: float


Callback = Callable[[Statement], object]
Around = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Listener:
    """Whom to tell.

    Attributes:
        callback: Called with each statement that is over.
        around: Gives what is entered while a statement is on its way; None is nothing.
        parameters: Whether it is told their values.
        used: Called with each `Use` that is over; None is nothing.
    """

    callback: Any
    around: Around | None
    parameters: bool
    used: Callable[[Use], object] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be called.

        Raises:
            TypeError: The callback is none, or a coroutine function.
        """
        if not callable(self.callback) or inspect.iscoroutinefunction(self.callback):
            raise TypeError(
                f"on_statement takes a plain function of one Statement, not {self.callback!r}: it is called "
                "between two lines of the caller's, and what takes long goes to a queue or a task"
            )


class Listeners:
    """Those of one handle, or of all. Any thread may add one; who is being told just now is not disturbed."""

    def __init__(self) -> None:
        self.live: tuple[Listener, ...] = ()

    def add(self, listener: Listener) -> Callable[[], None]:
        """Have it told from now on; give what ends that, as often as it is called."""
        with process_state().lock:
            self.live = (*self.live, listener)
        _look_again()

        def stop() -> None:
            with process_state().lock:
                self.live = tuple(one for one in self.live if one is not listener)
            _look_again()

        return stop


def no_listeners() -> None:
    """Be a weak reference to those of a handle that is gone."""


everywhere: Listeners = Listeners()


def on_statement(
    callback: Callback, *, around: Around | None = None, parameters: bool = False
) -> Callable[[], None]:
    """Have a function called with each statement of every handle of this process. See `Database.on_statement`."""
    return everywhere.add(Listener(callback, around, parameters))


def _look_again() -> None:
    """Have each pool of the process look who listens now."""
    for pool in shared_values():
        look = getattr(pool, "look_for_listeners", None)
        if look is not None:
            look()


class Observer:
    """Tells the listeners of one pool's statements."""

    def __init__(
        self,
        pool: ConnectionPool,
        loggers: tuple[Listener, ...],
        own: Callable[[], Listeners | None],
    ) -> None:
        """Note whom to tell.

        Args:
            pool: Whose statements.
            loggers: What logs them.
            own: Gives those who listen to its handle; None when that is gone.
        """
        self._pool, self._loggers, self._own = pool, loggers, own
        self._told: weakref.WeakSet[Listener] = weakref.WeakSet()  # those whose failure is logged

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Those who listen now."""
        own = self._own()
        return (*self._loggers, *everywhere.live, *(() if own is None else own.live))

    def watch(
        self,
        kind: Kind,
        raw: Any,
        sql: str,
        args: Any = (),
        *,
        batch: int = 0,
        place: str | None = None,
    ) -> Observation:
        """Begin to observe a statement that is about to be sent; `place` is the caller's if None."""
        told = Observation(self, self._waits_of(raw), kind, without_passwords(sql), args, batch)
        told.place = place or told.place
        return told

    def missed(self, seconds: float, error: BaseException) -> None:
        """Tell that somebody waited for a connection, and got none."""
        told = Observation(self, (seconds, 0.0), "acquire", "", (), 0)
        told.tell(error)

    def enter(self, sql: str) -> list[tuple[Listener, AbstractContextManager[object]]]:
        """Enter what the listeners have around a statement."""
        entered = []
        for listener in self.listeners:
            if listener.around is not None:
                try:
                    around = listener.around(sql)
                    around.__enter__()
                except Exception as error:  # noqa: BLE001 (the statement is not to fail with it)
                    self._note(listener, error)
                else:
                    entered.append((listener, around))
        return entered

    def leave(self, entered: list[tuple[Listener, AbstractContextManager[object]]]) -> None:
        """Leave it."""
        while entered:
            listener, around = entered.pop()
            try:
                around.__exit__(None, None, None)
            except Exception as error:  # noqa: BLE001
                self._note(listener, error)

    def tell(self, statement: Statement, args: Any) -> None:
        """Tell all of a statement."""
        for listener in self.listeners:
            shown = (
                replace(statement, parameters=_values(args)) if listener.parameters else statement
            )
            try:
                listener.callback(shown)
            except Exception as error:  # noqa: BLE001 (the statement is not to fail with it)
                self._note(listener, error)

    def used(self, entry: PoolEntry) -> None:
        """Tell of a connection that has come back."""
        if entry.raw is None or entry.since < 0:
            return  # it could not be opened, or lent
        wait, connect = entry.waits
        seconds = max(entry.rested - entry.since - connect, 0.0)
        use = Use(describe_target(self.url), wait, connect, seconds)
        for listener in self.listeners:
            if listener.used is not None:
                try:
                    listener.used(use)
                except Exception as error:  # noqa: BLE001 (the connection is to come back)
                    self._note(listener, error)

    @property
    def url(self) -> DatabaseURL:
        """The pool's."""
        return self._pool.options.url

    def _waits_of(self, raw: Any) -> tuple[float, float]:
        """Give what the one who has a connection has waited for it; once."""
        for entry in list(self._pool.lending.held):
            if entry.raw is raw:
                return entry.take_waits()
        return 0.0, 0.0

    def _note(self, listener: Listener, error: Exception) -> None:
        if listener not in self._told:
            self._told.add(listener)
            _log.error(
                "a listener of on_statement has failed; what it fails with later is not shown: %r",
                listener.callback,
                exc_info=error,
            )


class Observation:
    """One statement on its way, from before it is sent until it is told of. A block of each of its stages."""

    def __init__(
        self,
        observer: Observer,
        waits: tuple[float, float],
        kind: Kind,
        sql: str,
        args: Any,
        batch: int,
    ) -> None:
        self._observer, self._kind, self._sql, self._args = observer, kind, sql, args
        self._wait, self._connect = waits
        self._batch, self._query, self._fetch, self._lag = batch, 0.0, 0.0, 0.0
        self.place: str = caller()
        self._started_at = time.time()
        self._is_over = False
        self._entered: list[Any] = []
        self.rows: int | None = None

    def __enter__(self) -> Self:
        """Let it be sent."""
        self._go_on()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Tell of it: its answer is here."""
        self._query += self._pause()
        self.tell(error)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Observe the first of several stages; one that fails is the last."""
        self._go_on()
        try:
            yield
        except BaseException as error:
            self.__exit__(None, error, None)
            raise
        self.pause()

    def pause(self) -> None:
        """Note that the first of several stages is over."""
        self._query += self._pause()

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Observe another one."""
        self._go_on()
        try:
            yield
        except BaseException as error:
            self._fetch += self._pause()
            self.tell(error)
            raise
        self._fetch += self._pause()

    def forget(self) -> None:
        """Tell nothing of it: it was not sent."""
        self._is_over = True

    def tell(self, error: BaseException | None = None) -> None:
        """Tell of it, once."""
        if self._is_over:
            return
        self._is_over = True
        task = asyncio.current_task()
        self._observer.tell(
            Statement(
                self._sql,
                self._kind,
                (MASK,) * len(_values(self._args)),
                self._batch,
                self._started_at,
                self._wait,
                self._connect,
                self._query,
                self._fetch,
                self._lag,
                self.rows,
                error,
                self.place,
                "" if task is None else task.get_name(),
                multiprocessing.current_process().name,
                current_key(),
                self._observer.url,
            ),
            self._args,
        )

    def _go_on(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._entered = self._observer.enter(self._sql)
        self._lag_before = lag_of(self._loop).enter(self._loop)
        self._since = time.perf_counter()

    def _pause(self) -> float:
        seconds = time.perf_counter() - self._since
        self._lag += lag_of(self._loop).leave(self._loop, self._lag_before)
        self._observer.leave(self._entered)
        return seconds


def _values(args: Any) -> tuple[Any, ...]:
    """Give parameters as a tuple: a driver has them in order, or by name."""
    return tuple(args.values() if isinstance(args, dict) else args or ())
