"""The contract between a driver and the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence

    from loopsafe_db._runtime.forks import SocketId
    from loopsafe_db.records import Record


@dataclass(frozen=True, slots=True)
class DriverTraits:
    """What the core has to know of a driver.

    Attributes:
        name: As in the URL, ``postgresql+NAME``.
        dialect: SQLAlchemy's dialect and driver, ``postgresql+asyncpg``.
        loop_bound: Whether a connection works only in the loop that opened it.
        reset_on_return: Whether SQLAlchemy's rollback at release costs nothing, and so may stay on.
    """

    name: str
    dialect: str
    loop_bound: bool
    reset_on_return: bool


@dataclass(frozen=True, slots=True)
class TransactionOptions:
    """How an outermost transaction begins.

    Attributes:
        isolation: ``"serializable"``, ``"repeatable_read"``, ``"read_committed"``, or None for the server's.
        readonly: Whether writes are refused.
        deferrable: Whether it may wait for a safe snapshot (PostgreSQL, serializable and read-only).
    """

    isolation: str | None = None
    readonly: bool = False
    deferrable: bool = False


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How one connection is opened.

    Attributes:
        arguments: The driver's own connect arguments.
        target: Where to, for error texts; holds no secret.
        timeout: Seconds.
    """

    arguments: Mapping[str, Any]
    target: str
    timeout: float


class DriverTransaction(Protocol):
    """A transaction, or a savepoint where one is open already."""

    def start(self) -> Awaitable[None]: ...
    def commit(self) -> Awaitable[None]: ...
    def rollback(self) -> Awaitable[None]: ...


class Driver(Protocol):
    """What a driver does with one connection of its own kind (``raw``). It has no state."""

    traits: DriverTraits

    async def connect(self, options: ConnectOptions) -> Any:
        """Open a connection, or raise `ConnectError` or one below it."""

    async def fetch_all(
        self, raw: Any, sql: str, args: Sequence[Any], timeout: float | None
    ) -> list[Record]:
        """Give every row."""

    async def fetch_one(
        self, raw: Any, sql: str, args: Sequence[Any], timeout: float | None
    ) -> Record | None:
        """Give the first row."""

    async def execute(self, raw: Any, sql: str, args: Sequence[Any], timeout: float | None) -> Any:
        """Give the first value of the first row, else the number of rows affected, else None."""

    async def execute_many(
        self, raw: Any, sql: str, rows: Sequence[Sequence[Any]], timeout: float | None
    ) -> int | None:
        """Apply a statement to each row of arguments, all or none; give the rows affected, if known."""

    def iterate(self, raw: Any, sql: str, args: Sequence[Any]) -> AsyncIterator[Record]:
        """Give rows as they are needed, inside an open transaction."""

    def transaction(self, raw: Any, options: TransactionOptions) -> DriverTransaction:
        """Make a transaction that has not begun."""

    def original(self, error: BaseException) -> BaseException:
        """Give the driver's own exception behind one of SQLAlchemy's."""

    async def settle(self, raw: Any) -> None:
        """Wait until an interrupted statement is over, so that the connection can be used again."""

    def is_closed(self, raw: Any) -> bool:
        """Tell whether a connection is known to be closed."""

    async def close(self, raw: Any) -> None:
        """Close politely."""

    def terminate(self, raw: Any) -> None:
        """Close at once, without a loop."""

    def sockets(self, raw: Any) -> Iterable[SocketId]:
        """Give the sockets that a forked child has to let go of."""
