"""COPY: what is refused of it before it is sent.

By text there is no way for its rows: drivers wait for them, drop them, or lose the connection. And rows that do not fit
are stored in part by some.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from loopsafe_db.errors import CopyError, CopyRowsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

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


def rows_to_copy(rows: object, columns: object) -> Iterable[Any] | AsyncIterable[Any]:
    """Give rows as drivers take them: each a sequence of values, and no mapping, whose keys would be copied.

    Raises:
        CopyRowsError: These are no rows or no names; or, as they are read, one of them has no order.
    """
    if isinstance(columns, str) or not isinstance(columns, Iterable | None):
        raise CopyRowsError(f"the columns of a COPY are a list of names, not {columns!r}")
    if isinstance(rows, AsyncIterable):
        return _each(rows)
    if isinstance(rows, Iterable) and not isinstance(rows, str | bytes | Mapping):
        return (_row(row, number) for number, row in enumerate(rows, 1))
    raise CopyRowsError(
        f"the rows of a COPY are an iterable or an async one, not {type(rows).__name__}"
    )


async def _each(rows: AsyncIterable[object]) -> AsyncIterator[Sequence[Any]]:
    number = 0
    async for row in rows:
        number += 1
        yield _row(row, number)


def _row(row: object, number: int) -> Sequence[Any]:
    if isinstance(row, tuple | list):
        return row
    if isinstance(row, Iterable) and not isinstance(row, str | bytes | Mapping):
        return tuple(row)
    raise CopyRowsError(
        f"row {number} of a COPY is {type(row).__name__}, and not a sequence of values in the order of the columns"
    )
