"""snapshot(): what this process has open, and has done."""

from __future__ import annotations

import os
from dataclasses import dataclass

from loopsafe_db._runtime.registry import live_states, loops_seen
from loopsafe_db.engines import pool as pools
from loopsafe_db.engines.pool import ConnectionPool, PoolStats


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """The figures of one process.

    Attributes:
        pid: The process.
        loops_seen: Event loops that have used a database.
        loops_alive: Those that hold one now.
        pools: The live pools, a figure each.
        opened: Connections opened since the process began.
        reused: Acquisitions that found an idle connection.
        left_open: Connections open now.
    """

    pid: int
    loops_seen: int
    loops_alive: int
    pools: tuple[PoolStats, ...]
    opened: int
    reused: int
    left_open: int


def snapshot() -> ProcessSnapshot:
    """Say what this process has open now, and what it has done."""
    states = live_states()
    resources = [resource for state in states for resource in list(state.resources.values())]
    live = [item.value.stats() for item in resources if isinstance(item.value, ConnectionPool)]
    total = PoolStats()
    for stats in [pools.past, *live]:
        total.add(stats)
    left_open = sum(stats.idle + stats.in_use for stats in live)
    return ProcessSnapshot(
        os.getpid(), loops_seen(), len(states), tuple(live), total.opened, total.reused, left_open
    )
