"""RolledBack: a handle whose work is undone, test after test, on a connection that stays."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from loopsafe_db.database import _forget_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from types import TracebackType
    from typing import Self

    from loopsafe_db.database import Database


class RolledBack:
    """Has a `Database` undo what is done with it in a block, by anybody; entered again and again.

    The connection stays open from one block to the next, so that a test costs a ``BEGIN`` and a ``ROLLBACK``. Sync,
    for it is left where no loop runs, or another one than the test's. Call `close` in the end.

    Attributes:
        database: The handle.
    """

    def __init__(self, database: Database) -> None:
        self.database: Database = database
        self._place = object()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._blocks = ExitStack()

    def __enter__(self) -> Self:
        self._blocks.enter_context(self.database._rolling_back(self._place))  # noqa: SLF001
        self._pool.pinned.outlives_disconnect = True  # an application under test may disconnect
        self._pool.record()
        self._pool.statements.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run(self._pool.pinned.undo)
        self._blocks.close()

    @property
    def statements(self) -> Sequence[str]:
        """The statements of this block until now."""
        return tuple(self._pool.statements)

    @property
    def left_open(self) -> list[str]:
        """Who has begun a transaction or a session that has not ended, and where."""
        return self._pool.pinned.left_open()  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the connection."""
        _forget_pool(self._place)
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    @property
    def _pool(self) -> Any:
        return self.database._pool()  # noqa: SLF001

    def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine in a loop of our own; in a thread of its own, where a loop runs in this one."""
        if asyncio._get_running_loop() is not None:  # noqa: SLF001
            thread = threading.Thread(target=lambda: asyncio.run(work()))
            thread.start()
            thread.join()
            return
        if self._loop is None:
            self._loop = asyncio.new_event_loop()  # never made the thread's current one
        self._loop.run_until_complete(work())
