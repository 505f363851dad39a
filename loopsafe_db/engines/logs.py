"""What is logged of statements: all of them, where somebody wants that, and those that were slow."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from loopsafe_db.engines.observing import Listener
from loopsafe_db.queries import described

if TYPE_CHECKING:
    from loopsafe_db.engines.observing import Statement
    from loopsafe_db.options import DatabaseOptions

_log = logging.getLogger("loopsafe_db")
_statements = logging.getLogger("loopsafe_db.statements")
if _statements.level == logging.NOTSET:  # as SQLAlchemy's: the root's level is not meant for them
    _statements.setLevel(logging.WARNING)


def loggers(options: DatabaseOptions) -> tuple[Listener, ...]:
    """Give what logs the statements of a pool that is made now; none where nobody wants it."""
    made = []
    if options.echo:
        _echo()
    if _statements.isEnabledFor(logging.INFO):
        made.append(Listener(_tell, None, parameters=options.echo == "values"))
    if options.slow_query is not None or options.slow_acquire is not None:
        made.append(Listener(_Slow(options.slow_query, options.slow_acquire), None, False))  # noqa: FBT003
    return tuple(made)


def _echo() -> None:
    """Have the statements shown, as SQLAlchemy's ``echo`` does it: on stdout, if the program logs nowhere."""
    _statements.setLevel(logging.INFO)
    if not _statements.hasHandlers():
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        _statements.addHandler(handler)


def _tell(statement: Statement) -> None:
    rows = "" if statement.rows is None else f", {statement.rows} rows"
    failed = "" if statement.error is None else f", {type(statement.error).__name__}"
    _statements.info(
        "%s %s  [%.1f ms%s%s, %s]",
        statement.sql or "a wait for a connection",
        statement.parameters or "",
        statement.seconds * 1000,
        rows,
        failed,
        statement.place,
        extra={"statement": statement},
    )


class _Slow:
    """Tells of what took too long, and of what took it: the pool, a connect, the server, or a loop that was busy."""

    def __init__(self, query: float | None, acquire: float | None) -> None:
        self._query, self._acquire = query, acquire

    def __call__(self, statement: Statement) -> None:
        """Log it, if it was slow."""
        asked, waited = statement.query + statement.fetch, statement.wait + statement.connect
        is_slow = self._query is not None and asked >= self._query
        if not is_slow and (self._acquire is None or waited < self._acquire):
            return
        _log.warning(
            "slow: %.3f s, of these %.3f waiting for a connection, %.3f connecting, %.3f with the server, and %.3f "
            "the event loop was busy with something else; at %s, %s of %s: %s\non %s",
            statement.seconds,
            statement.wait,
            statement.connect,
            max(asked - statement.lag, 0.0),
            min(statement.lag, asked),
            statement.place,
            statement.task or "a callback",
            statement.loop,
            described(statement.sql) or "no statement",
            statement.database,
            extra={"statement": statement},
        )
