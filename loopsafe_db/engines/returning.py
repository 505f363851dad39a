"""Returning: what becomes of a connection that comes back to its pool. The one place that decides it."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import TwoPhaseTransaction
from sqlalchemy.orm import Session
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from loopsafe_db._runtime.endings import ENDING_TIMEOUT, or_give_up
from loopsafe_db._runtime.pids import getpid
from loopsafe_db.control import SESSION, refuse_end_in_sql
from loopsafe_db.drivers.base import ConnectionState
from loopsafe_db.drivers.session_state import Touched, touched_by_sql
from loopsafe_db.engines.entry import PoolEntry, user_side
from loopsafe_db.engines.failing import tell_of_opening
from loopsafe_db.engines.holders import caller
from loopsafe_db.errors import LoopsafeError
from loopsafe_db.failures import drivers_own

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

    from loopsafe_db.drivers.base import Driver
    from loopsafe_db.engines.pool import ConnectionPool

_log = logging.getLogger("loopsafe_db")
_IDLE = ConnectionState.IDLE
_LEFT_OPEN = "a transaction was left open, and is rolled back; begin one by `async with db.transaction()`, not by BEGIN"


class Returning:
    """Lends a connection again only if it is known to be idle; recovers it first, or ends it.

    An entry is *in doubt* from before its driver is called until the call has ended well, or by what is known to
    be an answer. So no exception, at whatever line it strikes, leaves a connection in an unknown state in the pool.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool, self._driver = pool, pool.driver

    def is_idle(self, entry: PoolEntry) -> bool:
        """Tell whether the next user may have it as it is; asks nobody."""
        return (
            entry.dbapi_connection is not None
            and not (entry.in_doubt or entry.interrupted or entry.touched)
            and self._driver.state(entry.raw) is _IDLE
        )

    def note_error(self, entry: PoolEntry, error: BaseException) -> None:
        """End a connection unless `survives` the error of an operation on it."""
        entry.suspect |= self._pool.refuses_writes(error)
        if not self.survives(entry, error):
            entry.terminate()

    def survives(self, entry: PoolEntry, error: BaseException) -> bool:
        """Note what the error of an operation says of its connection; tell whether that may stay. Nothing is awaited.

        An answer clears the doubt. What was cancelled or timed out is recovered later. Of any other exception
        nobody knows where it struck.
        """
        entry.is_lost = self._driver.is_closed(entry.raw)  # before anything here closes it
        if self._is_answer(entry, error):
            entry.in_doubt = False
        elif isinstance(error, (asyncio.CancelledError, TimeoutError)) or self._pool.only_one:
            entry.in_doubt, entry.interrupted = False, True
        return not entry.in_doubt

    async def release(self, entry: PoolEntry) -> None:
        """Take a connection back, idle or ended: what is left open on it is undone, in 2 s."""
        try:
            await self.make_idle(entry)
        finally:
            self.release_nowait(entry)

    def release_nowait(self, entry: PoolEntry) -> None:
        """Take a connection back where nothing can be awaited: what is not idle is ended."""
        if entry.is_open and not self.is_idle(entry):
            entry.terminate()
        self._pool.give_back(entry)
        if (
            entry.raw is not None and not entry.is_open
        ):  # one that could not be opened is not tried again at once
            self._pool.keep_least()

    async def make_idle(self, entry: PoolEntry) -> None:
        """Undo what is left open on a connection, or end it: nobody is to use it before it is released."""
        if not entry.is_open or self.is_idle(entry):
            return
        entry.take_back()
        if entry.in_doubt and not self._pool.only_one:
            entry.terminate()  # an exception has struck between two lines of ours
            return
        if self._driver.is_closed(entry.raw):
            entry.terminate()  # its user has ended it
            return
        if entry.interrupted or entry.in_doubt or self._driver.state(entry.raw) is not _IDLE:
            await self._end_transaction(entry)
        if not entry.touched or not entry.is_open:
            return
        if entry.touched & Touched.LAST and not self._pool.only_one:
            await self._pool.close_entry(entry)  # nobody is to use it any more
        else:
            await self.reset_session(entry)

    async def recover(self, entry: PoolEntry, *, reset: bool = True, settle: bool = True) -> None:
        """Make an interrupted connection usable again, or end it; in 2 s, whatever happens.

        Args:
            entry: What has the connection.
            reset: Whether a transaction that is open then is rolled back.
            settle: Whether something may be under way.
        """
        if self._pool.key.pid != getpid():
            return  # in a forked child that runs its parent's tasks down

        raw = entry.raw

        def give_up() -> None:
            # This goes on where its caller does not: the place may have another connection by then.
            if entry.raw is raw:
                entry.terminate()

        entry.interrupted = True
        recover = partial(self._recover, entry, reset=reset, settle=settle)
        await or_give_up(recover, ENDING_TIMEOUT, give_up)
        if self._driver.is_closed(entry.raw):
            entry.terminate()

    async def reset_session(self, entry: PoolEntry) -> None:
        """Make a session what it was when it was new, or end its connection; in 2 s, whatever happens.

        Who is being cancelled may be cancelled again and again (AnyIO does so): then another task does it, and the
        connection stays warm. Else that would only cost time: who is cancelled just now loses the connection.
        """
        entry.take_back()
        if not entry.is_open or self._pool.key.pid != getpid():
            return
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if self._pool.only_one or task is None or task.cancelling():
            await or_give_up(partial(self._reset_session, entry), ENDING_TIMEOUT, entry.terminate)
            return
        entry.alarm.set(loop, entry.terminate)
        try:
            await self._reset_session(entry)
        except BaseException as error:
            entry.terminate()
            if not isinstance(error, Exception):
                raise
        finally:
            entry.alarm.clear()

    # -- below

    async def _recover(self, entry: PoolEntry, *, reset: bool, settle: bool) -> None:
        raw = entry.raw
        if settle:
            await self._driver.settle(raw)
        if reset:
            # what SQLAlchemy has begun, then what it has not come to know of
            dialect = self._pool.engine.dialect
            await greenlet_spawn(dialect.do_rollback, entry.dbapi_connection)
            await self._driver.reset(raw)
        if entry.raw is raw:  # the caller may not come to do it: it may be cancelled again
            entry.in_doubt = entry.interrupted = False

    async def _end_transaction(self, entry: PoolEntry) -> None:
        left_open = self._driver.state(entry.raw) is ConnectionState.IN_TRANSACTION
        if left_open and not (entry.interrupted or entry.in_doubt):
            if self._driver.traits.autocommit:  # else each statement has begun one
                place = entry.taken_at or caller()
                _log.warning("%s: %s", _LEFT_OPEN, place)
            await self.recover(entry, settle=False)
        else:
            await self.recover(entry)

    async def _reset_session(self, entry: PoolEntry) -> None:
        raw, hook = entry.raw, self._pool.options.reset
        touched = entry.touched & ~Touched.USED
        if touched and hook != "never" and self._pool.options.pgbouncer != "transaction":
            pool = self._pool
            initialise = partial(pool.initialise_again, entry) if pool.initialises else _nothing
            await self._driver.reset_session(raw, touched, initialise)
            self._pool.counts.resets += 1
        if callable(hook) and not self._driver.is_closed(raw):
            await hook(user_side(self._driver, raw))
            if self._driver.state(raw) is not _IDLE:
                await self._driver.reset(raw)
        if self._driver.is_closed(raw):
            entry.terminate()
        entry.touched = Touched.NOTHING

    def _is_answer(self, entry: PoolEntry, error: BaseException) -> bool:
        error = drivers_own(error)
        if isinstance(error, LoopsafeError):  # ours: before anything was sent
            return not isinstance(error, (TimeoutError, ConnectionError))
        return isinstance(error, Exception) and self._driver.is_answer(entry.raw, error)


async def _nothing() -> None:
    """Do again nothing."""


def mark_doubt(dialect: Any) -> None:
    """Have an engine's connections be in doubt while the dialect asks the server something; and know what it changes.

    `end_in_time` does so for rollbacks.

    By no event: with one, SQLAlchemy would make a list of listeners for each event of each connection.
    """
    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        setattr(dialect, name, _executing(getattr(dialect, name), dialect.name))
    dialect.do_begin = _marking(dialect.do_begin)
    dialect.do_commit = _marking(_noting_commit(dialect.do_commit))


def end_in_time(dialect: Any, driver: Driver) -> None:
    """Have an engine's rollback take 2 s at most: then the connection is ended, and the server rolls back."""
    do_rollback = dialect.do_rollback
    in_doubt = _marking(do_rollback)

    def call(proxy: Any) -> None:
        entry = _entry_of_proxy(proxy)
        if entry is None:
            do_rollback(proxy)
        elif entry.is_being_opened:
            try:
                do_rollback(proxy)
            except Exception as error:
                tell_of_opening(entry, error)
                raise
        elif driver.state(entry.raw) is _IDLE or not in_greenlet():
            in_doubt(proxy)
        else:
            entry.alarm.set(asyncio.get_running_loop(), entry.terminate_in_use)
            try:
                in_doubt(proxy)
            except Exception:
                if entry.is_open:
                    raise
            finally:
                entry.alarm.clear()

    dialect.do_rollback = call


def _executing(do: Callable[..., None], dialect: str) -> Callable[..., None]:
    """Mark, and note what the statement may change of the session: that is undone at the release.

    What would end the transaction of a block, or of a session, is refused.
    """

    def call(cursor: Any, statement: str, *rest: Any) -> None:
        entry = _entry_of_context(rest[-1])
        if entry is None:
            do(cursor, statement, *rest)
            return
        if entry.kept_by:
            refuse_end_in_sql(statement, dialect, entry.kept_by)
        if touched := touched_by_sql(statement, dialect):
            entry.touch(touched)
        entry.in_doubt = True
        do(cursor, statement, *rest)
        entry.in_doubt = False

    return call


def _marking(do: Callable[[Any], None]) -> Callable[[Any], None]:
    def call(proxy: Any) -> None:
        entry = _entry_of_proxy(proxy)
        if entry is None:  # the connection is being opened
            do(proxy)
            return
        if entry.kept_by == SESSION:
            entry.kept_by = ""
        entry.in_doubt = True
        do(proxy)
        entry.in_doubt = False

    return call


@event.listens_for(Session, "after_begin")
def _keep(_session: Session, _transaction: object, connection: Connection) -> None:
    """Note that a session has a transaction. One of two phases is prepared by a text of SQLAlchemy's."""
    entry = _entry_of_proxy(connection.connection)
    if not isinstance(entry, PoolEntry) or entry.kept_by or connection._is_autocommit_isolation():  # noqa: SLF001
        return
    if not isinstance(connection.get_transaction(), TwoPhaseTransaction):
        entry.kept_by = SESSION


def _noting_commit(do_commit: Callable[[Any], None]) -> Callable[[Any], None]:
    """Note what is being committed: if that fails, it may have been done."""

    def call(proxy: Any) -> None:
        if (entry := _entry_of_proxy(proxy)) is not None:
            entry.note_commit()
        do_commit(proxy)
        if entry is not None:
            entry.commits = False

    return call


def _entry_of_context(context: Any) -> PoolEntry | None:
    return None if context is None else _entry_of_proxy(context.root_connection.connection)


def _entry_of_proxy(proxy: Any) -> PoolEntry | None:
    if not isinstance(proxy, PoolProxiedConnection):  # a driver's own, asked by us
        return None
    return proxy._connection_record  # type: ignore[no-any-return]  # noqa: SLF001
