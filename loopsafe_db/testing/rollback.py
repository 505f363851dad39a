"""RolledBack: a handle whose work is undone, test after test, on a connection that stays."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from loopsafe_db.database import _configuration
from loopsafe_db.errors import TransactionError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from types import TracebackType
    from typing import Self

    from loopsafe_db.database import Database


# Seen anew each time, though a transaction keeps what it has once seen of this view.
_NEW_SESSIONS = """
SELECT format('pid %s, application %L, %s', pid, application_name, state)
FROM (SELECT pg_stat_clear_snapshot()) AS anew, LATERAL (SELECT * FROM pg_stat_activity) AS activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    AND backend_start > now() AND application_name <> current_setting('application_name')
"""
_LOOKS, _PAUSE = 10, 0.02  # a session that was closed takes the server a moment to end


class RolledBack:
    """Has a `Database` undo what is done with it in a block, by anybody; entered again and again.

    The connection stays open from one block to the next, so that a test costs a ``BEGIN`` and a ``ROLLBACK``. Sync,
    for it is left where no loop runs, or another one than the test's. Call `close` in the end.

    Attributes:
        database: The handle.
    """

    def __init__(self, database: Database) -> None:
        self.database: Database = database
        self._configuration = database._undone_configuration()  # noqa: SLF001
        self._loop: asyncio.AbstractEventLoop | None = None
        self._blocks = ExitStack()

    def __enter__(self) -> Self:
        self._blocks.enter_context(self.database._overrides.override(self._configuration))  # noqa: SLF001
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
        is_stuck = self._is_stuck()
        if self._pool.pinned.is_open and not is_stuck:
            self._run(self._pool.pinned.undo)
        self._blocks.close()
        if is_stuck:
            self._start_anew()

    @property
    def statements(self) -> Sequence[str]:
        """The statements of this block until now."""
        return tuple(self._pool.statements)

    @property
    def left_open(self) -> list[str]:
        """Who has begun a transaction or a session that has not ended, and where."""
        return self._pool.pinned.left_open()  # type: ignore[no-any-return]

    def undo(self) -> list[str]:
        """Undo this block's work before its end; tell who has connected to the PostgreSQL database and still is there.

        That is: since the first statement of the block. Handles of this process with the same application name do not
        count: their idle connections may stay.
        """
        found: list[str] = []
        pinned = self._pool.pinned

        async def look() -> None:
            for _ in range(_LOOKS):
                found[:] = [row[0] for row in await pinned.ask(_NEW_SESSIONS)]
                if not found:
                    return
                await asyncio.sleep(_PAUSE)

        async def look_and_undo() -> None:
            async with pinned.turn:
                if self._configuration.options.url.dialect == "postgresql":
                    await look()
                await pinned.undo()

        with suppress(TransactionError):  # the connection is lost
            if pinned.is_open and not self._is_stuck():
                self._run(look_and_undo)
        return found

    def close(self) -> None:
        """Close the connection."""
        self._configuration.retire()
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _is_stuck(self) -> bool:
        """Tell whether a task has the connection whose loop stands still, as where a time-out has stopped a test."""
        here = asyncio._get_running_loop()  # noqa: SLF001
        loops = [reference() for reference in list(self._pool.lending.held.values())]
        return any(loop is None or loop is here or not loop.is_running() for loop in loops)

    def _start_anew(self) -> None:
        """End the connection, and cancel who has it, for when its loop runs on; the next block gets another one."""
        for entry in list(self._pool.lending.held):
            entry.terminate()
            if entry.task is not None:
                entry.task.cancel()
        self._configuration.retire()
        self._configuration = _configuration(self._configuration.options)

    @property
    def _pool(self) -> Any:
        return self._configuration.find_pool()

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
