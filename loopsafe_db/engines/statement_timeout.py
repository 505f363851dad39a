"""The statement timeout of what no driver limits: BEGIN and COMMIT, streams, and what SQLAlchemy executes."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import event
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from loopsafe_db.engines.holders import caller
from loopsafe_db.errors import CommitUnknown, StatementTimeout
from loopsafe_db.queries import explain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from sqlalchemy import URL, Engine
    from sqlalchemy.engine import ExceptionContext

T = TypeVar("T")
TIMED: Mapping[str, Any] = {"loopsafe_timed": True}  # execution options: the caller has a timeout


async def within(seconds: float | None, operation: Awaitable[T]) -> T:
    """Await what the server is to do in `seconds`; None is no limit.

    Raises:
        StatementTimeout: It has not.
    """
    if seconds is None:
        return await operation
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await operation
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise StatementTimeout(seconds) from error


class _Limit:
    """A limit of what SQLAlchemy's greenlet does, kept by the task.

    It knows the task, and so the loop, which a greenlet is not to keep: see `greenlets`.
    """

    def __init__(self, seconds: float) -> None:
        self.timeout = asyncio.timeout(seconds)

    def __call__(self, _: asyncio.Task[Any]) -> None:
        """Be a callback, which the task keeps."""


LimitRef = Callable[[], _Limit | None]  # a weak reference


def _enter(seconds: float) -> LimitRef:
    limit = _Limit(seconds)
    await_only(limit.timeout.__aenter__())
    _task().add_done_callback(limit)
    return weakref.ref(limit)


def _leave(ref: LimitRef, error: BaseException | None) -> None:
    limit = ref()
    if limit is not None:  # else its loop is gone
        _task().remove_done_callback(limit)
        await_only(limit.timeout.__aexit__(None if error is None else type(error), error, None))


def _task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "asyncio.timeout has refused it"
    return task


def call_within(seconds: float, do: Callable[[], T]) -> T:
    """Call what awaits, in SQLAlchemy's greenlet, and is to end in `seconds`.

    Raises:
        StatementTimeout: It has not.
    """
    limit = _enter(seconds)
    try:
        result = do()
    except BaseException as error:
        try:
            _leave(limit, error)
        except TimeoutError:
            raise StatementTimeout(seconds) from error
        raise
    _leave(limit, None)
    return result


def limit_transactions(dialect: Any, url: URL, seconds: float) -> None:
    """Have an engine's BEGIN fail with `StatementTimeout` after `seconds`, and a COMMIT with `CommitUnknown`."""
    do_commit = _limited(dialect.do_commit, "COMMIT", url, seconds)

    def commit(proxy: Any) -> None:
        try:
            do_commit(proxy)
        except StatementTimeout as error:
            raise commit_unknown(error) from error

    dialect.do_begin = _limited(dialect.do_begin, "BEGIN", url, seconds)
    dialect.do_commit = commit


def commit_unknown(error: StatementTimeout) -> CommitUnknown:
    """Give what it means where it was a COMMIT that took too long."""
    return CommitUnknown(
        f"no answer to COMMIT within {error.timeout:g} s, at {error.place}\non {error.target}"
    )


def _limited(
    do: Callable[[Any], None], what: str, url: URL, seconds: float
) -> Callable[[Any], None]:
    def call(proxy: Any) -> None:
        if not in_greenlet():
            do(proxy)
            return
        try:
            call_within(seconds, lambda: do(proxy))
        except StatementTimeout as error:
            explain(error, what, url, caller())
            raise

    return call


def limit_statements(engine: Engine, url: URL, seconds: float) -> None:
    """Have each statement fail with `StatementTimeout` after `seconds`, but for those that are `TIMED`.

    Args:
        engine: Whose statements.
        url: For the error.
        seconds: How long each may take; and each batch of the rows that stay on the server.
    """

    def begin(*arguments: Any) -> None:
        context = arguments[4]
        if not TIMED.keys() <= context.execution_options.keys():
            context.loopsafe_limit = _enter(seconds)

    def end(*arguments: Any) -> None:
        _leave_of(arguments[4], None)

    def fail(failure: ExceptionContext) -> StatementTimeout | None:
        try:
            _leave_of(failure.execution_context, failure.original_exception)
        except TimeoutError:
            error = StatementTimeout(seconds)
            context: Any = failure.execution_context
            explain(error, context.statement, url, caller())
            return error
        return None

    dialect: Any = engine.dialect
    dialect.execution_ctx_cls = _with_timed_cursors(dialect.execution_ctx_cls, seconds)
    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)
    event.listen(engine, "handle_error", fail)


def _with_timed_cursors(context: type[Any], seconds: float) -> type[Any]:
    """Make execution contexts whose server-side cursors give rows in time."""

    class Context(context):  # type: ignore[misc]
        def create_server_side_cursor(self) -> Any:
            made = super().create_server_side_cursor()
            is_timed = TIMED.keys() <= self.execution_options.keys()
            return made if is_timed else TimedCursor(made, self, seconds)

    return Context


class TimedCursor:
    """A server-side cursor of an engine or a session: its rows come later, each time within the limit."""

    def __init__(self, cursor: Any, context: Any, seconds: float) -> None:
        self._cursor, self._context, self._seconds = cursor, context, seconds

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._cursor, name)
        return self._in_time(found) if name in _FETCHING else found

    def _in_time(self, fetch: Callable[..., T]) -> Callable[..., T]:
        def call(*args: Any) -> T:
            self._context.loopsafe_limit = _enter(self._seconds)
            rows = fetch(*args)  # what fails is handled as the error of a statement is
            _leave_of(self._context, None)
            return rows

        return call


_FETCHING = {"fetchall", "fetchmany", "fetchone"}


def _leave_of(context: Any, error: BaseException | None) -> None:
    limit = vars(context).pop("loopsafe_limit", None) if context is not None else None
    if limit is not None:
        _leave(limit, error)
