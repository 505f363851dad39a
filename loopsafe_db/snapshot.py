"""snapshot(): what this process has open, and has done."""

from __future__ import annotations

import os
from dataclasses import dataclass

from loopsafe_db._runtime.registry import live_states, loops_seen, shared_values
from loopsafe_db.engines.pool import ConnectionPool
from loopsafe_db.engines.stats import PoolStats, past


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """The figures of one process.

    Attributes:
        pid: The process.
        loops_seen: Event loops that have used a database.
        loops_alive: Those that hold one now.
        pools: The live pools, a figure each.
        total: All pools together, with those that have ended.
    """

    pid: int
    loops_seen: int
    loops_alive: int
    pools: tuple[PoolStats, ...]
    total: PoolStats

    @property
    def opened(self) -> int:
        """Connections opened since the process began."""
        return self.total.opened

    @property
    def reused(self) -> int:
        """Acquisitions that found an idle connection."""
        return self.total.reused

    @property
    def left_open(self) -> int:
        """Connections open now."""
        return self.total.idle + self.total.in_use


def live_pools() -> list[ConnectionPool]:
    """Give the pools of this process."""
    return [pool for pool in shared_values() if isinstance(pool, ConnectionPool)]


def snapshot() -> ProcessSnapshot:
    """Say what this process has open now, and what it has done."""
    live = [pool.stats() for pool in live_pools()]
    total = PoolStats()
    for stats in [past, *live]:
        total.add(stats)
    return ProcessSnapshot(os.getpid(), loops_seen(), len(live_states()), tuple(live), total)
