"""A transaction that is run again where that may help: after a deadlock, for example."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from loopsafe_db.errors import InvalidSettingError, LoopsafeError
from loopsafe_db.options import POSITIVE, SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")
_SHORTEST, _LONGEST = (
    0.05,
    2.0,
)  # seconds: what a pause is at most after the first attempt, and ever
_log = logging.getLogger("loopsafe_db")


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often a transaction is run.

    Attributes:
        count: At most.
        within: Seconds after which none begins any more.
    """

    count: int
    within: float

    def __post_init__(self) -> None:
        """Refuse what is no number of attempts.

        Raises:
            InvalidSettingError: It is less than one, or no number at all; or `within` is none.
        """
        POSITIVE.read("attempts", self.count, InvalidSettingError)
        SECONDS.read("within", self.within, InvalidSettingError)

    async def run(
        self,
        begin: Callable[[], AbstractAsyncContextManager[object]],
        function: Callable[[], Awaitable[T]],
    ) -> T:
        """Run a function in a transaction, again and again while that fails and may succeed."""
        until, attempt = time.monotonic() + self.within, 1
        while True:
            try:
                async with begin():
                    return await function()
            except LoopsafeError as error:
                pause = random.uniform(0, min(_SHORTEST * 2 ** (attempt - 1), _LONGEST))
                if not error.retryable:
                    raise
                if attempt == self.count or time.monotonic() + pause > until:
                    error.add_note(f"attempt {attempt} of {self.count}, and the last one")
                    raise
                _log.warning(
                    "attempt %d of %d failed, the transaction is run again in %.2f s: %s",
                    *(attempt, self.count, pause, error),
                )
            await asyncio.sleep(pause)
            attempt += 1
