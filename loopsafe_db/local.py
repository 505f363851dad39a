"""LoopLocal[T]: one value per event loop, made on first use, ended with its loop, left alone in forked children."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from loopsafe_db._runtime.registry import LoopState, Resource, current_state
from loopsafe_db.errors import AsyncFactoryError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from loopsafe_db._runtime.forks import SocketId

T = TypeVar("T")


class LoopLocal(Generic[T]):
    """A value that each event loop of each process has for itself.

    Should live as long as your program does: make it at import, as a module global. It holds no value; the
    values live as long as their loops. For any client that belongs to a loop (HTTP, S3, Redis).

    ::

        http = LoopLocal(httpx.AsyncClient, close=httpx.AsyncClient.aclose)

        async def fetch(url):
            return await http.get().get(url)
    """

    def __init__(
        self,
        factory: Callable[[], T] | Callable[[], Awaitable[T]],
        *,
        close: Callable[[T], Awaitable[None] | None] | None = None,
        terminate: Callable[[T], None] | None = None,
        sockets: Callable[[T], Iterable[SocketId]] | None = None,
        name: str | None = None,
    ) -> None:
        """Say how a value is made and ended.

        Args:
            factory: Makes the value; called in the loop that will own it, once per loop, sync or async.
            close: Ends a value while its loop still runs, at most 2 s; sync or async.
            terminate: Ends a value whose loop is closed already; must not await. Without it such a value is
                just dropped.
            sockets: Gives the sockets that a value holds, which a forked child then lets go of.
            name: For error messages.
        """
        self._factory, self._close, self._terminate, self._sockets = (
            factory,
            close,
            terminate,
            sockets,
        )
        self._name = name or f"LoopLocal({getattr(factory, '__name__', factory)})"

    def __repr__(self) -> str:
        return f"<{self._name}>"

    def get(self) -> T:
        """Give this loop's value, making it if the factory is sync.

        Raises:
            NoRunningLoopError: No loop runs in this thread.
            AsyncFactoryError: There is no value yet, and only `aget` can make one.
        """
        state = current_state(self._name)
        found = state.resources.get(self)
        if found is not None:
            return cast("T", found.value)
        made = self._factory()
        if inspect.isawaitable(made):
            if inspect.iscoroutine(made):
                made.close()
            raise AsyncFactoryError(self._name)
        return self._keep(state, made)

    async def aget(self) -> T:
        """Give this loop's value, making it if need be; tasks that race share one."""
        state = current_state(self._name)
        found = state.resources.get(self)
        if found is not None:
            return cast("T", found.value)
        async with state.locks.setdefault(self, asyncio.Lock()):
            found = state.resources.get(self)
            if found is not None:
                return cast("T", found.value)
            made = self._factory()
            return self._keep(state, await made if inspect.isawaitable(made) else made)

    async def aclose(self) -> None:
        """End this loop's value now; the next `get` makes another. Other loops keep theirs."""
        await current_state(self._name).evict(self)

    def _keep(self, state: LoopState, value: T) -> T:
        async def close() -> None:
            ended = self._close(value) if self._close is not None else None
            if inspect.isawaitable(ended):
                await ended

        def terminate() -> None:
            if self._terminate is not None:
                self._terminate(value)

        def sockets() -> Iterable[SocketId]:
            return self._sockets(value) if self._sockets is not None else ()

        state.add(self, Resource(value, close, terminate, sockets))
        return value
