"""Scripts, several statements in one text, as SQLAlchemy sends them where the driver takes them: all of it is heard.

SQLAlchemy reads the answer to the first statement, and swallows the errors of the others when it closes its cursor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only

from loopsafe_db.drivers.generic import refuse_begin
from loopsafe_db.engines.statement_timeout import TIMED
from loopsafe_db.lexer import statements_of

if TYPE_CHECKING:
    from collections.abc import Callable


def hear_scripts(dialect: Any) -> None:
    """Have the answers to all statements of a text read before SQLAlchemy goes on."""
    for name in ("do_execute", "do_execute_no_params"):
        setattr(dialect, name, _hearing(getattr(dialect, name), dialect))


def _hearing(execute: Callable[..., None], dialect: Any) -> Callable[..., None]:
    def call(cursor: Any, statement: str, *rest: Any) -> None:
        context = rest[-1]
        if context is not None and TIMED.keys() <= context.execution_options.keys():
            refuse_begin(statement, dialect)  # a clause, which is committed at once
        execute(cursor, statement, *rest)
        if ";" in statement and len(statements_of(statement, dialect.name)) > 1:
            _hear_the_rest(cursor)

    return call


def _hear_the_rest(cursor: Any) -> None:
    """Read what else the server has answered, and keep the rows."""
    close = getattr(cursor, "_async_soft_close", None)
    if close is None:  # SQLAlchemy before 2.0.44
        if cursor.description is not None:
            return
        close = cursor._cursor.close  # noqa: SLF001
    await_only(close())
