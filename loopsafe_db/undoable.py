"""Texts that cannot be undone: where everything is, they are refused before they are sent."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from loopsafe_db.control import end_in
from loopsafe_db.errors import NotUndoableError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SHOWN = 200  # characters of a text in an error
_SAVEPOINT = re.compile(r"(SAVEPOINT|RELEASE|ROLLBACK (WORK |TRANSACTION )?TO)\b")
_CONTROL = re.compile(
    r"(BEGIN|START TRANSACTION|COMMIT|END|ROLLBACK|ABORT|PREPARE TRANSACTION|SET SESSION CHARACTERISTICS)\b"
)
_CHANGES_SCHEMA = re.compile(r"(CREATE|ALTER|DROP|DO|CALL|PRAGMA|ATTACH)\b")


def refuse_not_undoable(
    statements: Iterable[str], text: str, dialect: str, *, in_transaction: bool
) -> None:
    """Refuse what would end the transaction around everything.

    Args:
        statements: What `lexer.statements` gives of the text.
        text: For the error.
        dialect: Its name.
        in_transaction: Whether the program has a transaction open, in which it may set savepoints.

    Raises:
        NotUndoableError: One of them would.
    """
    for statement in statements:
        if _SAVEPOINT.match(statement):
            refused = not in_transaction
        else:
            refused = bool(_CONTROL.match(statement) or end_in((statement,), dialect))
        if refused:
            raise NotUndoableError(text.strip()[:_SHOWN])


def may_change_schema(statements: Iterable[str]) -> bool:
    """Tell whether there may be other constraints, or settings of theirs, after these."""
    return any(map(_CHANGES_SCHEMA.match, statements))
