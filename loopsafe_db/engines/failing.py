"""What failed on a pool's connection, as its user is told of it: which of our errors, of what statement, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopsafe_db.drivers.url import describe_target
from loopsafe_db.engines.holders import caller
from loopsafe_db.errors import CommitUnknown, ConnectionLost, LoopsafeError, ReadOnlyError
from loopsafe_db.failures import joined
from loopsafe_db.queries import described, explain

if TYPE_CHECKING:
    from loopsafe_db.engines.entry import PoolEntry
    from loopsafe_db.engines.pool import ConnectionPool
    from loopsafe_db.errors import DriverError
    from loopsafe_db.queries import CompiledText


def tell(
    pool: ConnectionPool,
    entry: PoolEntry | None,
    error: Exception,
    query: CompiledText | str | None,
    *,
    undone: bool,
    commits: bool = False,
) -> None:
    """Name the statement that has failed, and the database.

    Args:
        pool: The connection's.
        entry: The connection; `Returning.note_error` has seen the error. None where it is not there any more.
        error: The driver's, or one of ours.
        query: The statement, if it is known.
        undone: Whether nothing is stored if the connection is lost: a transaction is open.
        commits: Whether a COMMIT was sent.

    Raises:
        DriverError: That is what it means, for `error` is of the family that all drivers have.
    """
    made = named(pool, entry, error, query, undone=undone, commits=commits)
    if made is not None:
        raise made from error
    explain(error, query, pool.options.url, caller())


def named(
    pool: ConnectionPool,
    entry: PoolEntry | None,
    error: Exception,
    query: CompiledText | str | None,
    *,
    undone: bool,
    commits: bool = False,
) -> DriverError | None:
    """Give the error that `tell` raises, if there is one."""
    if isinstance(error, LoopsafeError):
        return None
    original = pool.driver.original(error)
    kind = pool.driver.traits.failure(original)
    if kind is None and entry is not None and entry.is_lost:
        kind = ConnectionLost
    if kind is None:
        return None
    if kind is ConnectionLost and commits:
        kind = CommitUnknown
    reason, sqlstate = str(original), getattr(original, "sqlstate", None)
    if entry is not None and kind is ConnectionLost and (sqlstate or "08").startswith("08"):
        # The server has not answered; it may have said before why it would not.
        said = None if entry.raw is None else pool.driver.traits.farewell(entry.raw)
        reason, sqlstate = said or (reason, sqlstate)
        reason = entry.ended_because or reason
    retryable, hint = kind.retryable, ""
    if kind is ConnectionLost:
        retryable = undone
    elif kind is ReadOnlyError:
        retryable, hint = _refused_write(pool, entry, original)
    made = joined(kind, error, _text(reason, original, query, pool), hint)
    made.sqlstate, made.retryable = sqlstate, retryable
    return made


def _refused_write(
    pool: ConnectionPool, entry: PoolEntry | None, original: BaseException
) -> tuple[bool, str]:
    """Tell whether a write that was refused may be taken if all is tried again; and the cure, "" for the usual one."""
    if entry is not None and entry.readonly:
        return False, "begin the transaction without readonly=True, or write in another one"
    if not pool.refuses_writes(original):
        return False, ""
    return True, (
        "run the whole transaction again: another server is looked for; if that is refused, too, the session is "
        "read-only: look for default_transaction_read_only"
    )


def tell_of_opening(entry: PoolEntry, error: Exception) -> None:
    """Have what fails while a connection is opened fail alike, whatever it is that meets its end.

    Raises:
        ConnectionResetError: It has ended.
    """
    driver = entry.lender.driver
    if isinstance(error, LoopsafeError):
        return
    original = driver.original(error)
    raw = entry.of_driver
    is_closed = raw is None or driver.is_closed(raw)  # None: it took too long
    if is_closed or driver.traits.failure(original) is ConnectionLost:
        raise ConnectionResetError(str(original)) from error


def _text(
    reason: str,
    original: BaseException,
    query: CompiledText | str | None,
    pool: ConnectionPool,
) -> str:
    reason = (reason.strip() or repr(original)).splitlines()[0]
    asked = "" if query is None else f"\nquery: {described(query)}"
    return f"{reason}, at {caller()}{asked}\non {describe_target(pool.options.url)}"
