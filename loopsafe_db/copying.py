"""The rows of a COPY, as drivers take them."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loopsafe_db.errors import CopyRowsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


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
