"""Rows that are fetched as they are needed, on a connection that is held meanwhile.

A stream is left when nobody reads on, and Python says so late, or never: an async generator is closed by its loop some
turns later, in another task. So nothing that a connection does waits for that. See decision 0005.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import greenlet_spawn

from loopsafe_db._runtime.endings import ENDING_TIMEOUT, or_give_up
from loopsafe_db._runtime.generators import Outer
from loopsafe_db.drivers.base import TransactionOptions
from loopsafe_db.records import Record, RecordKeys, TupleRecord

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from sqlalchemy import CursorResult

    from loopsafe_db.connection import Connection, OpenTransaction
    from loopsafe_db.drivers.base import DriverCursor, DriverTransaction
    from loopsafe_db.queries import Query

BATCH = 500  # rows that are fetched at once
MANY = 10 * BATCH  # and where all the rest is
_TOO_LATE = "a COPY was left early on this connection, and its rest could not be read in time"
_log = logging.getLogger("loopsafe_db")


class ClauseCursor:
    """The rows of a clause, by SQLAlchemy's server-side cursor."""

    def __init__(self, result: CursorResult[Any]) -> None:
        self._result = result
        self._keys = RecordKeys(tuple(result.keys()))

    async def fetch(self, count: int) -> Sequence[Record]:
        """Give the next `count` rows; fewer at the end, then none."""
        rows = await greenlet_spawn(self._result.fetchmany, count)
        return TupleRecord.many(self._keys, rows)

    async def close(self) -> None:
        """Let go of the cursor."""
        await greenlet_spawn(self._result.close)


class RowStream:
    """What one stream has open on its connection: a cursor, and outside a transaction one of its own.

    Inside a transaction of the user's it lives in that, and ends with it. Outside, it has the connection to itself:
    before anything else is done there, it steps aside: it reads the rest of its rows, and ends its transaction. So
    whatever the user writes meanwhile is never a part of that. It has ended as soon as all its rows are here.

    Attributes:
        abandoned: Whether nobody can read it any more. Any thread may set it, at any moment.
        occupies: Whether its connection can do nothing else meanwhile, in a transaction, either: the stream of a COPY.
        within: The transaction that it ends with, if its reader is in one.
    """

    def __init__(
        self,
        query: Query,
        borrow: Callable[[], Connection],
        open_cursor: Callable[[Connection], Any],
        *,
        occupies: bool = False,
    ) -> None:
        """Note what to read.

        Args:
            query: For errors.
            borrow: Gives the connection, when the first row is asked for.
            open_cursor: Begins to read on it, in its turn.
            occupies: See the attribute.
        """
        self.occupies: bool = occupies
        self._query, self._borrow, self._open_cursor = query, borrow, open_cursor
        self._connection: Connection
        self._cursor: DriverCursor | None = None
        self._own: DriverTransaction | None = None
        self._here: deque[Sequence[Record]] = deque()  # rows that were fetched, and not given
        self._is_read = False  # whether all rows have come
        self._error: Exception | None = None  # what its reader is to learn then
        self.abandoned: bool = False
        self.within: OpenTransaction | None = None

    async def rows(self) -> AsyncGenerator[Record, None]:
        """Give the rows; whenever this is closed, only what is its own is ended."""
        self._connection = self._borrow()
        if self._connection.is_lone:
            await self._connection.__aenter__()
        try:
            await self._open()
            while rows := await self._fetch():
                for row in rows:
                    yield row
        except GeneratorExit:
            if (
                self.abandoned
            ):  # whoever closes it now, the loop or Python, is not to hear of an error
                await self._end_after_its_rows()
            raise
        finally:
            await self._close()

    # -- what the connection calls, in its turn

    async def step_aside(self) -> None:
        """Fetch the rest, for whoever reads it, and end."""
        try:
            while self._cursor and not self.abandoned:
                rows = await self._connection.in_time(self._cursor.fetch(MANY))
                if not rows:
                    break
                self._here.append(rows)
        except BaseException:
            await self._undo()
            raise
        await self.end()

    async def end(self) -> None:
        """Let go of the cursor; keep what was done by it. Twice is fine."""
        cursor, own = self._let_go_of_cursor()
        if cursor is None:
            return
        try:
            if self.occupies:
                if not await self._read_rest(cursor):
                    return  # the server rolls back
            else:
                async with asyncio.timeout(ENDING_TIMEOUT):
                    await cursor.close()
            if own is not None:
                await self._connection.in_time(own.commit())
        except BaseException:
            if own is not None:
                await or_give_up(own.rollback, ENDING_TIMEOUT, self._connection.give_up)
            raise

    async def _read_rest(self, cursor: DriverCursor) -> bool:
        """Read the rest of a COPY, and tell whether it has come in time; else the connection is ended."""
        is_late = False

        def give_up() -> None:
            nonlocal is_late
            is_late = True
            self._connection.give_up(_TOO_LATE)

        alarm = asyncio.get_running_loop().call_later(ENDING_TIMEOUT, give_up)
        try:
            async with asyncio.timeout(ENDING_TIMEOUT):
                await cursor.close()
        except Exception:
            if not is_late:
                raise
        finally:
            alarm.cancel()
        return not is_late

    def fail(self, error: Exception) -> None:
        """Have its reader learn of an error, after the rows that are here."""
        self._error = error
        if self.abandoned:
            _log.warning("a stream that was left could not be ended: %s", error)

    def cut(self, error: Exception) -> None:
        """Have its reader learn that no more rows come; what it had open is gone."""
        self._let_go_of_cursor()
        self._error = self._error or error

    # -- below

    async def _open(self) -> None:
        connection = self._connection
        alone = not connection.in_transaction
        try:
            await connection.run(self._begin, begins=True)
        except Exception as error:
            if not connection.drops_plans(error) or not alone:
                self._tell(error)
                raise
            await connection.run(self._begin, begins=True)

    async def _begin(self, _: object) -> None:
        """Begin to read, in the connection's turn."""
        connection = self._connection
        self.within = connection.enclosing
        if not connection.in_transaction:  # a server-side cursor lives in one
            own = connection.driver_transaction(TransactionOptions(deferred=True))
            await connection.in_time(own.start())
            self._own = own
        try:
            self._cursor = await connection.in_time(self._open_cursor(connection))
        except BaseException:
            await self._undo()
            raise
        connection.streams.append(self)

    @property
    def _is_open(self) -> bool:
        return self._cursor is not None

    async def _fetch(self) -> Sequence[Record]:
        if self._is_open:
            try:
                await self._connection.read(self, self._fetch_here)
            except Exception as error:
                self._tell(error)
                raise
            if self._is_read or not self._is_open:
                await self._end_after_its_rows()
        if self._here:
            return self._here.popleft()
        if self._error is not None:
            self._tell(self._error)
            raise self._error
        return ()

    async def _fetch_here(self) -> None:
        """Fetch the next rows, in the connection's turn."""
        assert self._cursor is not None
        try:
            rows = await self._connection.in_time(self._cursor.fetch(BATCH))
        except BaseException:
            await self._undo()
            raise
        self._is_read = len(rows) < BATCH
        if rows:
            self._here.append(rows)

    async def _end_after_its_rows(self) -> None:
        try:
            await self._close()
        except Exception as error:  # noqa: BLE001 (the reader learns of it, after the rows)
            self.fail(error)

    async def _close(self) -> None:
        connection = self._connection
        try:
            if self._cursor is not None and connection.is_here:
                await self._tell_in_time(connection.read(self, self.end))
        finally:
            if self._cursor is not None:  # closed in another loop, or a forked child
                self.abandoned = True
                if connection.is_lone:
                    connection.give_up()
            if connection.is_lone and connection.is_held:
                await connection.__aexit__()

    async def _tell_in_time(self, ending: Awaitable[None]) -> None:
        """Have an error be told as what it means while its connection is known: a lone one is given back."""
        try:
            await ending
        except Exception as error:
            self._tell(error)
            raise

    def _tell(self, error: Exception) -> None:
        self._connection.tell(error, self._connection.written(self._query))

    async def _undo(self) -> None:
        """Let go of everything after a failure, whoever is cancelled."""
        cursor, own = self._let_go_of_cursor()

        async def undo() -> None:
            if cursor is not None:
                await cursor.close()
            if own is not None:
                await own.rollback()

        if self._connection.is_here:
            await or_give_up(undo, ENDING_TIMEOUT, self._connection.give_up)

    def _let_go_of_cursor(self) -> tuple[DriverCursor | None, DriverTransaction | None]:
        had = self._cursor, self._own
        self._cursor, self._own = None, None
        if self in self._connection.streams:
            self._connection.streams.remove(self)
        return had


class ReadCursor:
    """What has been read already."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = list(rows)

    async def fetch(self, count: int) -> Sequence[Any]:
        """Give the next."""
        given, self._rows = self._rows[:count], self._rows[count:]
        return given

    async def close(self) -> None:
        """Do nothing: nothing is open."""


class Rows(Outer[Record]):
    """What ``iterate`` gives: an async generator that knows when nobody has it any more.

    A generator cannot: its loop has it again before it can tell.
    """

    __slots__ = ("_stream",)
    _stream: RowStream

    def __init__(self, stream: RowStream) -> None:
        super().__init__(stream.rows())
        self._stream = stream

    def __del__(self) -> None:
        """Only note it: this runs at any moment, in any thread. The generator ends as its loop ends those."""
        self._stream.abandoned = True
