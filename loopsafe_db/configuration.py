"""Configuration: what a handle resolves to at each use, and the blocks that override it meanwhile."""

from __future__ import annotations

import itertools
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

from loopsafe_db._runtime.pids import getpid
from loopsafe_db._runtime.registry import Resource, process_state
from loopsafe_db.engines.factory import connect_options, make_engine, make_pool
from loopsafe_db.engines.lending import items_of
from loopsafe_db.engines.listeners import hand_on, unlock
from loopsafe_db.engines.observing import Listeners, no_listeners
from loopsafe_db.engines.stats import PoolStats
from loopsafe_db.pinned import PinnedConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from loopsafe_db.database import Database
    from loopsafe_db.drivers.base import Driver
    from loopsafe_db.engines.pool import ConnectionPool
    from loopsafe_db.options import DatabaseOptions


class ProcessPools:
    """The pools of one configuration, one in each process, and SQLAlchemy's engine, which uses that of its process.

    Who has only the engine has these, and not the configuration, which ends its connections when nobody has it.

    Attributes:
        options: URL and options.
        before: What a handle used before; then what listens to the engine of that listens to this one, too.
        engine: Made with the first pool; what is forked later has it, too.
        listeners: Gives those who hear of statements: the handle's; None when that is gone.
        pool: Of the process that it was used in last; `find` knows whether that is this one.
    """

    __slots__ = ("before", "engine", "listeners", "options", "pool")
    options: DatabaseOptions
    before: ProcessPools | None
    engine: AsyncEngine | None
    listeners: Callable[[], Listeners | None]
    pool: ConnectionPool | None

    def __init__(self, options: DatabaseOptions) -> None:
        self.options = options
        self.before = self.engine = self.pool = None
        self.listeners = no_listeners

    def find(self) -> ConnectionPool:
        """Give the pool of this process, made at the first call."""
        pool = self.pool
        if pool is None or pool.key.pid != getpid():
            pool = self.pool = process_state().get(self, self._make)
        return pool

    def stats(self) -> PoolStats:
        """Give the figures of the pool of this process, if there is one."""
        found = process_state().resources.get(self)
        return PoolStats() if found is None else found.value.stats()

    def retire(self) -> None:
        """End the pool of this process: what is idle now, the other connections when they come back."""
        resources = process_state().resources
        found = resources.get(self)
        if found is not None and found.value.retire():
            resources.pop(self, None)

    def _make(self) -> Resource:
        _look_again()
        self.engine = engine = self._find_engine()
        pool = make_pool(self.options, engine)
        if self.options.force_rollback:
            pool.pin(PinnedConnection(pool))
        pool.observe(self.listeners)
        return Resource(pool, pool.close, pool.terminate, pool.sockets, pool.before_fork)

    def _find_engine(self) -> AsyncEngine:
        """Give the engine; a new one where a parent process was just asking its first connection."""
        before, inherited, engine = self.before, self.pool, self.engine
        self.before = None
        if engine is not None and not (inherited is not None and inherited.first.is_asking):
            unlock(engine)
            return engine
        made = make_engine(self.options, self.find)
        former = engine or (before.engine if before is not None else None)
        if former is not None:
            hand_on(former, made)
        return made


def _look_again() -> None:
    """Let go of pools whose handles went before their last connections, which have come back since or never will."""
    for pools, resource in items_of(process_state().resources):
        if isinstance(pools, ProcessPools) and resource.value.lending.retired:
            resource.value.lending.reconcile()
            pools.retire()


class Configuration:
    """One database and how to use it. Never changed; a handle that is to work otherwise gets another.

    Attributes:
        options: URL and options.
        driver: That of the URL.
        replicas: A handle for each.
        pools: One in each process.
        find_pool: Gives that of this process, made at the first call.
        is_transient: Whether it ends with the last block that uses it.
        retire: Ends its connections: what is idle now, the others when they come back. A configuration that nobody
            has any more does so by itself.
    """

    __slots__ = (
        "__weakref__",
        "_turns",
        "driver",
        "find_pool",
        "is_transient",
        "options",
        "pools",
        "replicas",
        "retire",
    )
    driver: Driver
    options: DatabaseOptions
    pools: ProcessPools
    find_pool: Callable[[], ConnectionPool]
    replicas: Sequence[Database]
    is_transient: bool
    retire: Callable[[], object]

    def __init__(self, options: DatabaseOptions, replicas: Sequence[Database]) -> None:
        self.driver, _ = connect_options(options)  # refuses what cannot work, here and now
        self.options, self.replicas = options, replicas
        self.pools = ProcessPools(options)
        self.find_pool = self.pools.find
        self.is_transient = False
        self._turns = itertools.count()
        retire = weakref.finalize(self, self.pools.retire)
        retire.atexit = False
        self.retire = retire

    def stats(self) -> PoolStats:
        """Give the figures of the pool of this process, if there is one."""
        return self.pools.stats()

    def next_replica(self) -> Database:
        """Give the replica whose turn it is."""
        return self.replicas[next(self._turns) % len(self.replicas)]


class Overrides:
    """The configurations of one handle: its own, and those of the blocks that override it. The newest is current.

    Blocks may end in any order, in any thread.

    Attributes:
        base: The handle's own.
        current: What every use of the handle reads, once.
        listeners: Who hears of the handle's statements, whatever configuration it uses.
    """

    __slots__ = ("_live", "base", "current", "listeners")
    base: Configuration
    current: Configuration
    listeners: Listeners

    def __init__(self, base: Configuration) -> None:
        self.base = self.current = base
        self.listeners = Listeners()
        self.adopt(base)
        self._live: list[Configuration] = []

    def rebase(self, base: Configuration) -> None:
        """Have the handle use `base` from now on, or as soon as no block overrides it."""
        with process_state().lock:
            self.adopt(base)
            former, self.base = self.base, base
            base.pools.before = former.pools
            self._resolve()
        former.retire()

    @contextmanager
    def override(self, configuration: Configuration) -> Iterator[None]:
        """Have the handle use `configuration` in the block, unless a newer block overrides that."""
        self._enter(configuration)
        try:
            yield
        finally:
            self._leave(configuration)

    @contextmanager
    def roll_back(self, make: Callable[[], Configuration]) -> Iterator[None]:
        """Have the handle's work undone at the end of the block.

        A block that begins in another one shares its connection. It would not see what was done there otherwise, or
        would wait for a lock of it for ever.
        """
        with process_state().lock:
            outermost = not self.current.options.force_rollback
            undone = make() if outermost else self.current
            mark = None if outermost else undone.find_pool().pinned.mark()
            undone.is_transient |= outermost
            self._enter(undone)
        try:
            yield
        finally:
            if mark is not None:
                mark.is_over = True
            self._leave(undone)

    def adopt(self, configuration: Configuration) -> None:
        """Have those who listen to the handle hear of what is sent by this one, and by its replicas."""
        pools = configuration.pools
        pools.listeners = weakref.ref(
            self.listeners
        )  # they may have the handle, whose end ends the pools
        if pools.pool is not None:
            pools.pool.observe(pools.listeners)
        for replica in configuration.replicas:
            replica._overrides.hear_for(self.listeners)  # noqa: SLF001

    def hear_for(self, listeners: Listeners) -> None:
        """Have those who listen to another handle hear of this one's statements."""
        self.listeners = listeners
        self.adopt(self.base)

    def _enter(self, configuration: Configuration) -> None:
        with process_state().lock:
            self.adopt(configuration)
            if configuration.pools.engine is None:
                configuration.pools.before = self.current.pools
            self._live.append(configuration)
            self._resolve()

    def _leave(self, configuration: Configuration) -> None:
        with process_state().lock:
            self._live.remove(configuration)
            self._resolve()
            if configuration.is_transient and configuration not in self._live:
                configuration.retire()

    def _resolve(self) -> None:
        self.current = self._live[-1] if self._live else self.base
