"""Scopes: where the pool of a handle lives, and so which pool a caller gets."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from loopsafe_db.engines.factory import make_pool
from loopsafe_db.engines.pool import ConnectionPool
from loopsafe_db.local import LoopLocal

if TYPE_CHECKING:
    from loopsafe_db.engines.options import DatabaseOptions


class Scope(Protocol):
    """Answers one question: which pool serves the caller."""

    def pool(self) -> ConnectionPool:
        """Give the caller's pool, making it on first use."""

    def peek(self) -> ConnectionPool | None:
        """Give the caller's pool if there is one."""

    def pools(self) -> list[ConnectionPool]:
        """List the live pools of this process."""

    async def aclose(self) -> None:
        """End the caller's pool."""


class PerLoop:
    """A pool for each loop of each process, ended with its loop."""

    def __init__(self, options: DatabaseOptions) -> None:
        self._local: LoopLocal[ConnectionPool] = LoopLocal(
            partial(make_pool, options),
            close=ConnectionPool.close,
            terminate=ConnectionPool.terminate,
            sockets=ConnectionPool.sockets,
            name="a database",
        )
        self.pool = self._local.get
        self.peek = self._local.peek
        self.pools = self._local.values
        self.aclose = self._local.aclose
