"""COPY by text, which is refused before it is sent: drivers wait for rows, drop them, or lose the connection."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from loopsafe_db.errors import CopyError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SHOWN = 200  # characters of a text in an error
_QUOTED = re.compile(r'"[^"]*"')
_INNERMOST = re.compile(r"\([^()]*\)")
_CLIENTS = re.compile(r"\b(?:FROM STDIN|TO STDOUT)\b")


def refuse_copy(statements: Iterable[str], text: str) -> None:
    """Refuse PostgreSQL's ``COPY … FROM STDIN`` and ``COPY … TO STDOUT``; a file or a program is the server's affair.

    Args:
        statements: What `lexer.statements` gives of the text.
        text: For the error.

    Raises:
        CopyError: One of them is such a statement.
    """
    if any(statement.startswith("COPY") and _is_clients(statement) for statement in statements):
        raise CopyError(text.strip()[:_SHOWN])


def _is_clients(statement: str) -> bool:
    """Tell whether a COPY wants rows of the client, or gives it some; what is in brackets is another query."""
    bare = _QUOTED.sub("", statement)
    while (rest := _INNERMOST.sub(" ", bare)) != bare:
        bare = rest
    return _CLIENTS.search(" ".join(bare.split())) is not None
