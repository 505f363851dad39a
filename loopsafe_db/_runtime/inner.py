"""An async generator inside of another one, which ends it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

T = TypeVar("T")


def _leave(_generator: object) -> None:
    """Do nothing with one that is dropped: the outer one, dropped with it, ends it if there is a loop to do it in."""


class Inner(Generic[T]):
    """Iterates over a generator inside of another one, and ends it with its block, as ``aclosing`` does.

    But the event loop does not get to know of it: ``asyncio.run`` ends all generators that its loop knows, at once, and
    one that the loop and the outer one end together fails. So a block that is left open goes with the outer one.
    """

    def __init__(self, generator: AsyncGenerator[T, None]) -> None:
        self._generator = generator

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._generator.aclose()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[T]:
        hooks = sys.get_asyncgen_hooks()  # this thread's; they are asked for once, right here
        sys.set_asyncgen_hooks(None, _leave)
        try:
            return self._generator.__anext__()
        finally:
            sys.set_asyncgen_hooks(*hooks)
