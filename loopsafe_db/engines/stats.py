"""PoolStats: the figures of a pool."""

from __future__ import annotations

from dataclasses import dataclass, fields


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
        waiting: Callers that wait for a connection, now.
    """

    opened: int = 0
    reused: int = 0
    closed: int = 0
    terminated: int = 0
    idle: int = 0
    in_use: int = 0
    waiting: int = 0

    def add(self, other: PoolStats) -> None:
        """Add another pool's figures."""
        for name in (item.name for item in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))


past: PoolStats = PoolStats()  # what the ended pools of this process have done
