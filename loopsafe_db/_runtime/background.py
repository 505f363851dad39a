"""A loop in a thread of its own, and objects that live there and are awaited from any other loop."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator, Iterable

T = TypeVar("T")


class BackgroundLoop:
    """A loop in a thread of its own. What is run there goes on to its end, whatever becomes of who waits for it.

    Attributes:
        loop: That loop.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        self._lock: asyncio.Lock = asyncio.Lock()
        self._left: Future[Any] | None = None
        self._is_stopping = False
        self._awaited: set[Future[Any]] = set()
        threading.Thread(target=self._run, name="loopsafe_db connection", daemon=True).start()

    @property
    def is_busy(self) -> bool:
        """Whether something goes on that nobody waits for any more."""
        return self._left is not None and not self._left.done()

    async def run(self, awaitable: Awaitable[T]) -> T:
        """Await something in this loop, after all that was run before.

        Raises:
            ConnectionError: The loop was stopped meanwhile.
        """
        future = self._submit(self._in_turn(awaitable), awaitable)
        try:
            return await _outcome(future)
        finally:
            if not future.done():
                self._left = future

    async def run_beside(self, awaitable: Awaitable[T]) -> T:
        """Await something in this loop, beside what else is run.

        Raises:
            ConnectionError: The loop was stopped meanwhile.
        """
        return await _outcome(self._submit(_awaited(awaitable), awaitable))

    async def rest(self) -> None:
        """Wait until what goes on has ended."""
        if self._left is not None:
            await _ended(self._left)

    def stop(self) -> None:
        """Cancel all and close the loop, soon; from any thread."""
        with suppress(RuntimeError):  # closed already
            self.loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if not self._is_stopping:  # a second stop would end what the first has ended
            self._is_stopping = True
            self.loop.stop()

    def _submit(self, work: Coroutine[Any, Any, T], *parts: Awaitable[T]) -> Future[T]:
        try:
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError:  # it is closed
            future = Future()
            future.cancel()
        future.add_done_callback(partial(_close_unless_begun, (work, *parts)))
        self._awaited.add(future)
        future.add_done_callback(self._awaited.discard)
        if self.loop.is_closed():  # it may not have begun that any more
            future.cancel()
        return future

    async def _in_turn(self, awaitable: Awaitable[T]) -> T:
        async with self._lock:
            return await awaitable

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        while True:  # other threads may bring more
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(asyncio.sleep(0))  # transports tell that they are closed
            if not asyncio.all_tasks(self.loop):
                break
        self.loop.close()
        for future in list(self._awaited):  # what it has not begun
            future.cancel()


class LoopProxy:
    """An object of a background loop: what is awaited of it is awaited there.

    Attributes:
        background: That loop.
        target: The object.
    """

    def __init__(self, background: BackgroundLoop, target: Any) -> None:
        self.background, self.target = background, target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.target, name)
        if not callable(found) or isinstance(found, type):
            return self._proxied(found)
        return lambda *args, **options: self._proxied(found(*args, **options))

    def __await__(self) -> Generator[Any, None, Any]:
        return self._run(self.target).__await__()

    async def __aenter__(self) -> Any:
        return await self._run(self.target.__aenter__())

    async def __aexit__(self, *error: object) -> Any:
        return await self._run(self.target.__aexit__(*error))

    def __aiter__(self) -> Any:
        return self._proxied(self.target.__aiter__())

    async def __anext__(self) -> Any:
        return await self._run(self.target.__anext__())

    async def _run(self, awaitable: Awaitable[Any]) -> Any:
        return self._proxied(await self.background.run(awaitable))

    def _proxied(self, found: Any) -> Any:
        is_async = inspect.isawaitable(found) or hasattr(found, "__aenter__")
        return LoopProxy(self.background, found) if is_async else found


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _close_unless_begun(parts: Iterable[Awaitable[Any]], future: Future[Any]) -> None:
    for part in parts:
        if future.cancelled() and isinstance(part, Coroutine):
            part.close()


async def _outcome(future: Future[T]) -> T:
    await _ended(future)
    if future.cancelled():
        raise ConnectionError("the connection has been closed")
    return future.result()


async def _ended(future: Future[Any]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def wake(_: object) -> None:
        with suppress(RuntimeError):  # the loop that waited is closed
            loop.call_soon_threadsafe(ended.set)

    future.add_done_callback(wake)
    await ended.wait()
