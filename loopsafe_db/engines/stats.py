"""PoolStats: the figures of a pool."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a connection now.

    Attributes:
        task: The name of its asyncio task.
        seconds: For how long.
        place: File and line that took it; of a call of the handle, where its task waits.
    """

    task: str
    seconds: float
    place: str

    def __str__(self) -> str:
        return f"{self.task} for {self.seconds:.1f} s, {self.place}"


@dataclass(slots=True)
class PoolStats:
    """What a pool has done since its process began, or several together.

    Those of more than one word are named, and counted, as in psycopg_pool, where that has them.

    Attributes:
        opened: Connections opened.
        reused: Acquisitions served by an idle connection.
        closed: Connections closed politely.
        terminated: Connections ended without a farewell.
        idle: Connections that wait to be used, now.
        in_use: Connections that are checked out, now.
        waiting: Callers that wait for a connection, now.
        requests_queued: Acquisitions that had to wait in the queue.
        requests_wait_ms: Milliseconds that those have waited, all together.
        requests_errors: Acquisitions that got no connection: in vain, cancelled, refused, or none could be opened.
        queue_peak: The most callers that have waited at once.
        connections_num: Attempts to open a connection.
        connections_ms: Milliseconds that those took that succeeded, with the questions of a new one.
        connections_errors: Those that failed.
        connections_lost: Connections that were found closed, or did not answer, when they were to be used again.
        returns_bad: Connections that were ended when they came back: in an unknown state, or broken.
        resets: Sessions that were made what they were when they were new.
        max_connections: The most that may be open.
        name: Driver, host and database; "" of several together.
        holders: Who has those that are in use.
    """

    opened: int = 0
    reused: int = 0
    closed: int = 0
    terminated: int = 0
    idle: int = 0
    in_use: int = 0
    waiting: int = 0
    requests_queued: int = 0
    requests_wait_ms: float = 0.0
    requests_errors: int = 0
    queue_peak: int = 0
    connections_num: int = 0
    connections_ms: float = 0.0
    connections_errors: int = 0
    connections_lost: int = 0
    returns_bad: int = 0
    resets: int = 0
    max_connections: int = 0
    name: str = ""
    holders: tuple[Holder, ...] = ()

    @property
    def requests_num(self) -> int:
        """Acquisitions of a connection, for a call, a block or a session; and what was opened for `min_connections`."""
        opened = self.connections_num - self.connections_errors
        return self.reused + opened + self.requests_errors

    def add(self, other: PoolStats) -> None:
        """Add another pool's figures."""
        peak = max(self.queue_peak, other.queue_peak)
        for name in (item.name for item in fields(self) if item.name != "name"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.queue_peak = peak


past: PoolStats = PoolStats()  # what the ended pools of this process have done
