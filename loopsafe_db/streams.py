"""Rows that are fetched as they are needed, on a connection that is held meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import greenlet_spawn

from loopsafe_db._runtime.endings import ENDING_TIMEOUT
from loopsafe_db.drivers.base import TransactionOptions
from loopsafe_db.records import Record, RecordKeys, TupleRecord
from loopsafe_db.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from sqlalchemy import CursorResult

    from loopsafe_db.connection import Connection
    from loopsafe_db.queries import Query

BATCH = 500  # rows that are fetched at once


class ClauseCursor:
    """The rows of a clause, by SQLAlchemy's server-side cursor."""

    def __init__(self, result: CursorResult[Any]) -> None:
        self._result = result
        self._keys = RecordKeys(tuple(result.keys()))

    async def fetch(self, count: int) -> Sequence[Record]:
        """Give the next `count` rows; fewer at the end, then none."""
        rows = await greenlet_spawn(self._result.fetchmany, count)
        return [TupleRecord(self._keys, row) for row in rows]

    async def close(self) -> None:
        """Let go of the cursor."""
        await greenlet_spawn(self._result.close)


class RowStream:
    """Rows as they are needed, for the length of an ``async with``.

    No generator: one that is left half-way is closed by its loop's shutdown at any moment, before or after
    what is around it.
    """

    def __init__(
        self, connection: Connection, query: Query, values: Mapping[str, Any] | None
    ) -> None:
        self._connection, self._query, self._values = connection, query, values

    async def __aenter__(self) -> Self:
        alone = not self._connection.in_transaction
        try:
            return await self._open()
        except Exception as error:
            if not self._connection.drops_plans(error) or not alone:
                raise
        return await self._open()

    async def _open(self) -> Self:
        async with AsyncExitStack() as stack:
            if not self._connection.in_transaction:  # a server-side cursor lives in one
                options = TransactionOptions(deferred=True)
                await stack.enter_async_context(Transaction(lambda: self._connection, options))
                # What the task asks of the handle meanwhile is not undone with the reading.
                self._connection.alone = True
                stack.callback(self._rejoin)
            self._cursor = await self._connection.open_cursor(self._query, self._values)
            self._stack = stack.pop_all()
        return self

    def _rejoin(self) -> None:
        self._connection.alone = False

    async def fetch(self, count: int) -> Sequence[Record]:
        """Give the next `count` rows; fewer at the end, then none."""
        return await self._connection.run(lambda _: self._cursor.fetch(count))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            async with asyncio.timeout(ENDING_TIMEOUT):
                await self._connection.run(lambda _: self._cursor.close())
        except Exception:
            if kind is None:
                raise
        finally:
            await self._stack.__aexit__(kind, error, trace)
