"""Transaction: a driver's transaction or savepoint on one connection, as an async context manager."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from loopsafe_db.errors import TransactionError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from loopsafe_db.drivers.base import TransactionOptions

ROLLBACK_TIMEOUT = 2.0  # seconds, then the connection is terminated and the server rolls back


class TransactionConnection(Protocol):
    """What a transaction needs of its connection."""

    async def begin(self, options: TransactionOptions) -> None: ...
    async def commit(self) -> None: ...
    async def rollback(self) -> None: ...
    def doubt(self) -> None: ...


class Transaction:
    """All or nothing: committed at the end of its ``async with``, rolled back on an exception."""

    def __init__(self, connection: TransactionConnection, options: TransactionOptions) -> None:
        self._connection, self._options = connection, options
        self._state = "new"

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise TransactionError(f"this transaction is {self._state}; make another")
        await self._connection.begin(self._options)
        self._state = "open"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._state != "open":
            return
        if kind is None:
            await self.commit()
        else:
            await self.rollback()

    async def commit(self) -> None:
        """Make it permanent; only where its block is about to end."""
        self._end("committed")
        await self._connection.commit()

    async def rollback(self) -> None:
        """Undo it. Bounded: if the server does not answer in 2 s, the connection is terminated."""
        self._end("rolled back")
        rolling = asyncio.ensure_future(self._connection.rollback())
        try:
            async with asyncio.timeout(ROLLBACK_TIMEOUT):
                await asyncio.shield(rolling)
        except BaseException as error:
            rolling.cancel()
            self._connection.doubt()
            if not isinstance(error, Exception):
                raise

    def _end(self, state: str) -> None:
        if self._state != "open":
            raise TransactionError(f"this transaction is {self._state}, it cannot be {state}")
        self._state = state
