"""The statement timeout of what SQLAlchemy executes on a handle's engine: for sessions, and for libraries."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.util import await_only

from loopsafe_db.engines.holders import caller
from loopsafe_db.errors import StatementTimeout
from loopsafe_db.queries import explain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import URL, Engine
    from sqlalchemy.engine import ExceptionContext

TIMED: Mapping[str, Any] = {"loopsafe_timed": True}  # execution options: the caller has a timeout


def limit_statements(engine: Engine, url: URL, seconds: float) -> None:
    """Have each statement fail with `StatementTimeout` after `seconds`, but for those that are `TIMED`.

    Args:
        engine: Whose statements.
        url: For the error.
        seconds: How long each may take.
    """

    def begin(*arguments: Any) -> None:
        context = arguments[4]
        if not TIMED.keys() <= context.execution_options.keys():
            context.loopsafe_timeout = asyncio.timeout(seconds)
            await_only(context.loopsafe_timeout.__aenter__())

    def end(*arguments: Any) -> None:
        _leave(arguments[4], None)

    def fail(failure: ExceptionContext) -> StatementTimeout | None:
        try:
            _leave(failure.execution_context, failure.original_exception)
        except TimeoutError:
            error = StatementTimeout(seconds)
            explain(error, failure.statement, url, caller())
            return error
        return None

    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)
    event.listen(engine, "handle_error", fail)


def _leave(context: Any, error: BaseException | None) -> None:
    timeout = vars(context).pop("loopsafe_timeout", None) if context is not None else None
    if timeout is not None:
        await_only(timeout.__aexit__(None if error is None else type(error), error, None))
