"""Async generators that two may end: ``asyncio.run`` ends all that its loop knows, at once, and a block ends its own.

Python's own refuses that (RuntimeError), and so what the one begins fails in the other.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from typing import Self

P = ParamSpec("P")
T = TypeVar("T")


def _leave(_generator: object) -> None:
    """Do nothing with one that is dropped: the outer one, dropped with it, ends it if there is a loop to do it in."""


class _Unbegun:
    """A generator before its first step, in which Python tells the loop of it."""

    def __init__(self, generator: AsyncGenerator[Any, None], outer: Inner[Any]) -> None:
        self._generator, self._outer = generator, outer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def __anext__(self) -> Any:
        return self.asend(None)

    def asend(self, value: Any) -> Any:
        self._outer.generator = self._generator
        hooks = sys.get_asyncgen_hooks()  # this thread's; they are asked for once, right here
        sys.set_asyncgen_hooks(*self._outer.hooks(*hooks))
        try:
            return self._generator.asend(value)
        finally:
            sys.set_asyncgen_hooks(*hooks)


class Inner(AsyncGenerator[T, None]):
    """A generator inside of another one, or of a block, which ends it: the event loop does not get to know of it.

    As a block it ends with that, as with ``aclosing``.
    """

    __slots__ = ("__weakref__", "generator")
    generator: Any

    def __init__(self, generator: AsyncGenerator[T, None]) -> None:
        self.generator = _Unbegun(generator, self)

    def hooks(self, _firstiter: Any, _finalizer: Any) -> tuple[Any, Any]:
        """Give what Python is to call when it begins, and when it is dropped, in place of what the loop has set."""
        return None, _leave

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.aclose()

    def __anext__(self) -> Any:
        return self.generator.__anext__()

    def asend(self, value: None) -> Any:
        """Go on, as an async generator does."""
        return self.generator.asend(value)

    def athrow(self, *error: Any) -> Any:
        """Raise something where it is, as an async generator does."""
        return self.generator.athrow(*error)

    def aclose(self) -> Any:
        """End it now, whether all of it was read or not."""
        return self.generator.aclose()


class Outer(Inner[T]):
    """A generator of a user's, who may end it in a generator of his: the loop knows this in place of it."""

    __slots__ = ("_ending",)
    _ending: asyncio.Lock

    def hooks(self, firstiter: Any, finalizer: Any) -> tuple[Any, Any]:
        """Have the loop told of this."""
        return firstiter and (lambda _: firstiter(self)), finalizer

    async def aclose(self) -> None:
        """End it now, whether all of it was read or not; or wait until another has."""
        if not hasattr(self, "_ending"):
            self._ending = asyncio.Lock()
        async with self._ending:
            await self.generator.aclose()


def inner_block(
    function: Callable[P, AsyncIterator[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]:
    """Make a block of a generator, as ``asynccontextmanager`` does, which a user's generator may be left in."""

    @wraps(function)
    def make(*args: P.args, **options: P.kwargs) -> AsyncIterator[T]:
        generator: Any = function(*args, **options)
        return Inner(generator)

    return asynccontextmanager(make)
