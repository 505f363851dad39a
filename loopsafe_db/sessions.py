"""SQLAlchemy's sessions on a handle's connections; inside a transaction of the task they join it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.ext.asyncio.session import _AsyncSessionContextManager

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy.ext.asyncio import AsyncEngine

    from loopsafe_db.connection import Connection

S = TypeVar("S", bound=AsyncSession)


class SessionMaker:
    """Makes sessions: what ``db.session`` is. Takes what SQLAlchemy's `async_sessionmaker` takes.

    Two options have other defaults: ``expire_on_commit=False``, for an expired attribute cannot be read without
    an ``await``, and ``join_transaction_mode="create_savepoint"``, so that a session inside a transaction is a
    savepoint in it, as a nested `Database.transaction` is.
    """

    def __init__(
        self, engine: Callable[[], AsyncEngine], joined: Callable[[], Connection | None]
    ) -> None:
        self._engine, self._joined = engine, joined

    @overload
    def __call__(self, *, class_: type[S], **options: Any) -> S: ...
    @overload
    def __call__(self, **options: Any) -> AsyncSession: ...
    def __call__(self, *, class_: type[AsyncSession] = AsyncSession, **options: Any) -> Any:
        """Make a session, for one ``async with`` in one asyncio task.

        It takes a connection at its first statement, and gives it back at each commit and rollback. If the task
        has a `Database.transaction` open, the session works in it: its commit releases a savepoint, and what it
        did becomes permanent with the transaction.

        Args:
            class_: `AsyncSession`, or a class below it, such as SQLModel's.
            options: Of the class: ``autoflush``, ``info``, ``sync_session_class``, …; with a ``bind`` of its own
                it joins nothing.

        Raises:
            NoRunningLoopError: No loop runs in this thread.
            ForeignTransactionError: The task was started inside of another's transaction, and cannot join it.
        """
        options.setdefault("expire_on_commit", False)
        if "bind" not in options:
            options["bind"] = engine = self._engine()
            if (connection := self._joined()) is not None:
                options.setdefault("join_transaction_mode", "create_savepoint")
                joined = connection.sqlalchemy_in_transaction()
                options["bind"] = AsyncConnection(engine, joined)
        return class_(**options)

    @overload
    def begin(self, *, class_: type[S], **options: Any) -> AbstractAsyncContextManager[S]: ...
    @overload
    def begin(self, **options: Any) -> AbstractAsyncContextManager[AsyncSession]: ...
    def begin(self, **options: Any) -> Any:
        """Make a session for a block that is committed at its end, or rolled back if it raises."""
        return _AsyncSessionContextManager(self(**options))
