"""A job that a queue delivers at least once is done again in its place when the database fails."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from loopsafe_db.errors import CommitUnknown, ConnectionLost
from loopsafe_db.retry import Attempts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ATTEMPTS = Attempts(5, within=20.0)
"""How often a job is done in its place, before the queue is told that it failed."""


@asynccontextmanager
async def repeatable() -> AsyncIterator[None]:
    """A job may be done twice: so it may be done again where nobody knows what has been stored."""
    try:
        yield
    except (ConnectionLost, CommitUnknown) as error:
        error.retryable = True
        raise
