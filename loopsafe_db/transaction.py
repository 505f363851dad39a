"""Transaction: a driver's transaction or savepoint, as a block, as a decorator, or begun and ended by hand."""

from __future__ import annotations

import warnings
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from loopsafe_db.engines.holders import caller
from loopsafe_db.errors import TransactionAborted, TransactionError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType
    from typing import Self

    from loopsafe_db.connection import Connection
    from loopsafe_db.drivers.base import TransactionOptions

P = ParamSpec("P")
T = TypeVar("T")


class Transaction:
    """All or nothing. Made by `Database.transaction` and `Connection.transaction`.

    ::

        async with db.transaction():            # committed at its end, rolled back on an exception
            ...

        @db.transaction()                       # each call in one of its own
        async def transfer(): ...

        transaction = await db.transaction()    # until commit() or rollback(), in the same asyncio task
    """

    def __init__(
        self,
        borrow: Callable[[], Connection],
        options: TransactionOptions,
        *,
        force_rollback: bool = False,
    ) -> None:
        self._borrow, self._options, self._force_rollback = borrow, options, force_rollback
        self._state = "new"

    def __await__(self) -> Generator[Any, Any, Self]:
        return self.start().__await__()

    async def __aenter__(self) -> Self:
        connection = self._borrow()
        # A task that was started inside of the block of another may be at it for longer than that.
        return await self._start(connection, holds=not connection.is_held or connection.is_guest)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._state != "open":
            return
        try:
            if kind is None and not self._force_rollback:
                await self.commit()
        finally:
            if self._state == "open":
                await self.rollback()

    def __call__(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Have each call of a coroutine function run in a transaction of its own, like this one."""

        @wraps(function)
        async def in_transaction(*args: P.args, **kwargs: P.kwargs) -> T:
            async with type(self)(self._borrow, self._options, force_rollback=self._force_rollback):
                return await function(*args, **kwargs)

        return in_transaction

    @property
    def connection(self) -> Connection:
        """The connection that it is on, from its beginning to its end."""
        if self._state != "open":
            raise TransactionError(f"this transaction is {self._state}, and has no connection")
        return self._connection

    async def start(self) -> Self:
        """Begin it; as ``await`` on it does."""
        connection, place = self._borrow(), caller()
        await self._start(connection, holds=not connection.is_held)
        self._opened.begun_at = place
        return self

    def __del__(self) -> None:
        """Tell where one was begun that nobody can end any more; its connection's place is for who waits."""
        if self._state == "open" and self._connection.has_open(self._opened):
            if self._holds:
                self._connection.forsake()
            warnings.warn(
                f"a transaction was neither committed nor rolled back: {self._opened.holder}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    async def _start(self, connection: Connection, *, holds: bool) -> Self:
        if self._state == "open":
            raise TransactionError("this transaction is open; make another for one inside it")
        self._holds = holds  # else whoever does gives it back
        if self._holds:
            await connection.__aenter__()
        try:
            self._opened = await connection.begin(self._options)
            self._connection, self._state = connection, "open"
            self._opened.block.enter()
        except BaseException as error:
            self._state = "new"
            connection.note_begin_failed(error)
            if self._holds:
                await connection.__aexit__(None, None, None)
            raise
        return self

    async def commit(self) -> None:
        """Make it permanent; only where its block is about to end.

        Raises:
            TransactionAborted: The server does not: something failed in it. It is rolled back.
            TransactionError: Another one is open inside it. It stays open.
        """
        self._check("committed")
        try:
            await self._connection.commit(self._opened)
        except BaseException as error:
            if not isinstance(error, TransactionError) or isinstance(error, TransactionAborted):
                await self.rollback()
            raise
        await self._leave("committed")

    async def rollback(self) -> None:
        """Undo it. Bounded: if the server does not answer in 2 s, the connection is terminated."""
        self._check("rolled back")
        try:
            await self._connection.rollback(self._opened)
        finally:
            await self._leave("rolled back")

    def _check(self, state: str) -> None:
        if self._state != "open":
            raise TransactionError(f"this transaction is {self._state}, it cannot be {state}")

    async def _leave(self, state: str) -> None:
        self._state = state
        self._opened.block.leave()
        if self._holds:
            await self._connection.__aexit__(None, None, None)
