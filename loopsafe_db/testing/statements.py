"""assert_queries: how many statements a block of code may send."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from loopsafe_db.default import get_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopsafe_db.database import Database


@contextmanager
def assert_queries(
    exactly: int | None = None, /, *, max: int | None = None, database: Database | None = None
) -> Iterator[list[str]]:
    """Check how many statements are sent in the block, by any task, loop and thread of this process.

    Texts, clauses, sessions and engines count; what begins and ends transactions does not.

    Args:
        exactly: How many it must be.
        max: How many it may be.
        database: The handle that is watched; the default one if None.

    Returns:
        A list that holds the statements, in their order, when the block has ended.

    Raises:
        AssertionError: It was another number; the message shows the statements.
    """
    pool = (database or get_database())._pool()  # noqa: SLF001
    pool.record()
    assert pool.statements is not None
    sent: list[str] = []
    before = len(pool.statements)
    yield sent
    sent += islice(pool.statements, before, None)
    wanted = f"exactly {exactly}" if exactly is not None else f"at most {max}"
    if (exactly is not None and len(sent) != exactly) or (max is not None and len(sent) > max):
        shown = "\n".join(f"  {number}. {statement}" for number, statement in enumerate(sent, 1))
        raise AssertionError(f"{len(sent)} statements were sent, not {wanted}:\n{shown}")
