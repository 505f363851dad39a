"""ConnectionPool: one AsyncEngine of one loop, whose pool lends connections, to the fast path and to SQLAlchemy."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import sqlalchemy.exc
from sqlalchemy.util import greenlet_spawn

from loopsafe_db.errors import AcquireTimeout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import PoolProxiedConnection

    from loopsafe_db._runtime.forks import SocketId
    from loopsafe_db._runtime.keys import LoopKey
    from loopsafe_db.drivers.base import Driver
    from loopsafe_db.engines.options import DatabaseOptions

SETTLE_TIMEOUT = (
    2.0  # seconds for an interrupted statement to end before its connection is terminated
)


@dataclass(slots=True)
class PoolStats:
    """What a pool has done, or several together.

    Attributes:
        opened: Connections opened.
        reused: Acquisitions served by an idle connection.
        closed: Connections closed politely.
        terminated: Connections ended without a farewell.
        idle: Connections that wait to be used, now.
        in_use: Connections that are checked out, now.
    """

    opened: int = 0
    reused: int = 0
    closed: int = 0
    terminated: int = 0
    idle: int = 0
    in_use: int = 0

    def add(self, other: PoolStats) -> None:
        """Add another pool's figures."""
        for name in (item.name for item in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True, eq=False)
class Lease:
    """One checked-out connection.

    Attributes:
        fairy: SQLAlchemy's proxy; closing it gives the connection back.
        raw: The driver's own connection.
        doubtful: Whether a statement was interrupted, so that its state is not known.
        used_by_sqlalchemy: Whether SQLAlchemy ran something on it, and has to tidy up with awaits.
    """

    fairy: PoolProxiedConnection
    raw: Any
    holder: str
    taken_at: str
    since: float
    doubtful: bool = False
    used_by_sqlalchemy: bool = False


class ConnectionPool:
    """The connections of one loop. Should live as long as that loop."""

    def __init__(self, key: LoopKey, driver: Driver, options: DatabaseOptions) -> None:
        self.key, self.driver, self.options = key, driver, options
        self.engine: AsyncEngine  # set by the factory, which needs this pool to open connections
        self.bound: dict[
            asyncio.Task[Any], list[Any]
        ] = {}  # asyncio task -> its connections in a transaction
        self._raws: set[Any] = set()
        self._leases: set[Lease] = set()
        self._stats = PoolStats()

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<ConnectionPool of {self.key}: {stats.idle} idle, {stats.in_use} in use>"

    def opened(self, raw: Any) -> None:
        """Take note of a connection that the engine has opened."""
        self._forget_closed()
        self._raws.add(raw)
        self._stats.opened += 1

    async def acquire(self, holder: str, taken_at: str) -> Lease:
        """Check a connection out.

        Raises:
            AcquireTimeout: None came free in ``timeouts.acquire`` seconds.
            ConnectError: A new one could not be opened.
        """
        while True:
            idle = self._idle()
            fairy = await self._check_out()
            raw = fairy.driver_connection
            if not self.driver.is_closed(raw):
                break
            fairy.invalidate()  # the server ended it while it was idle
        if idle:
            self._stats.reused += 1
        lease = Lease(fairy, raw, holder, taken_at, time.monotonic())
        self._leases.add(lease)
        return lease

    async def release(self, lease: Lease) -> None:
        """Give a connection back, or end it if it is in doubt. Bounded in time; a cancellation loses nothing."""
        self._leases.discard(lease)
        if lease.doubtful and not await self._settled(lease.raw):
            self._stats.terminated += 1
            lease.fairy.invalidate()
        elif lease.used_by_sqlalchemy:
            await asyncio.shield(greenlet_spawn(lease.fairy.close))
        else:
            lease.fairy.close()

    def stats(self) -> PoolStats:
        """Give the figures of now."""
        stats = PoolStats()
        stats.add(self._stats)
        stats.in_use = len(self._leases)
        stats.idle = self._idle()
        return stats

    async def close(self) -> None:
        """End every connection politely, on the loop that owns them."""
        for raw in list(self._raws):
            if not self.driver.is_closed(raw):
                await self.driver.close(raw)
                self._stats.closed += 1
        self._retire()

    def terminate(self) -> None:
        """End every connection at once; the loop need not run, nor be open."""
        for raw in list(self._raws):
            if not self.driver.is_closed(raw):
                self.driver.terminate(raw)
                self._stats.terminated += 1
        self._retire()

    def sockets(self) -> Iterable[SocketId]:
        """Give the open sockets, for a forked child to let go of."""
        for raw in list(self._raws):
            yield from self.driver.sockets(raw)

    def _retire(self) -> None:
        self._raws.clear()
        past.add(self._stats)
        self._stats = PoolStats()

    def _idle(self) -> int:
        return int(self.engine.sync_engine.pool.checkedin())  # type: ignore[attr-defined]

    async def _check_out(self) -> PoolProxiedConnection:
        pool = self.engine.sync_engine.pool
        if self._idle():
            try:
                return (
                    pool.connect()
                )  # an idle connection is lent without a greenlet: a fifth of the time
            except sqlalchemy.exc.MissingGreenlet:
                pass  # it has to be replaced first, which awaits
        try:
            return await greenlet_spawn(pool.connect)
        except sqlalchemy.exc.TimeoutError:
            now = time.monotonic()
            holders = [
                f"{lease.holder} for {now - lease.since:.1f} s, {lease.taken_at}"
                for lease in self._leases
            ]
            limits = self.options
            raise AcquireTimeout(limits.timeouts.acquire, limits.pool.size, holders) from None

    async def _settled(self, raw: Any) -> bool:
        if self.driver.is_closed(raw):
            return False
        settling = asyncio.ensure_future(self.driver.settle(raw))
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT):
                await asyncio.shield(settling)
        except BaseException as error:
            settling.cancel()
            self.driver.terminate(raw)
            if isinstance(error, asyncio.CancelledError):
                raise
            return False
        return True

    def _forget_closed(self) -> None:
        self._raws = {raw for raw in self._raws if not self.driver.is_closed(raw)}


past = PoolStats()  # what the ended pools of this process have done
