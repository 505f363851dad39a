"""The registry: which resources each loop of this process has, and the process as a whole, and how they end.

A resource is made once per loop, held here strongly and keyed by a `LoopKey`. Its loop is held weakly: the
resource pins the loop anyway (a socket knows its loop), so the registry has to let go when the loop ends.
What all loops of a process share is kept in the same way, under ``LoopKey(pid, 0)``, and ends with the process.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loopsafe_db._runtime import forks
from loopsafe_db._runtime.finalizers import watch_close, watch_shutdown
from loopsafe_db._runtime.keys import LoopKey, next_serial, running_loop
from loopsafe_db._runtime.pids import getpid
from loopsafe_db._runtime.transport import live_transports

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

_log = logging.getLogger("loopsafe_db")
CLOSE_TIMEOUT = 2.0  # seconds that the end of a loop or of the process may wait for one resource


def _nothing() -> None:
    """Be what need not be done before a fork."""


@dataclass(slots=True)
class Resource:
    """A value that belongs to one loop, with its endings.

    Attributes:
        value: What users get.
        close: Awaited on the loop that owns the value.
        terminate: Called when no loop can run it any more; must not await.
        sockets: Gives the open sockets, for a forked child to let go of.
        before_fork: Called in the thread that is about to fork.
    """

    value: Any
    close: Callable[[], Awaitable[None]]
    terminate: Callable[[], None]
    sockets: Callable[[], Iterable[forks.SocketId]]
    before_fork: Callable[[], None] = _nothing


class LoopState:
    """What one loop of this process owns. Only that loop's thread changes it while the loop lives."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.key = LoopKey(getpid(), next_serial())
        self.resources: dict[object, Resource] = {}
        self.locks: dict[object, asyncio.Lock] = {}
        self._closing: dict[object, Callable[[], None]] = {}
        self._loop = weakref.ref(loop)
        self._watched = self._polite = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop, if it is alive."""
        return self._loop()

    def add(self, owner: object, resource: Resource) -> None:
        """Keep a resource until the loop ends."""
        if not self._polite:
            # Once only: a loop whose shutdown has begun warns of new async generators; what is made
            # that late ends with the close of the loop.
            self._polite = True
            watch_shutdown(self.close)
        self.resources[owner] = resource
        self._watch_close()

    def at_close(self, owner: object, callback: Callable[[], None]) -> bool:
        """Have `callback` called when the loop is closed; tell whether it is the first of `owner`.

        Costs less than a resource: no async generator that the loop has to finalise.
        """
        if owner in self._closing:
            return False
        self._closing[owner] = callback
        self._watch_close()
        return True

    def forget(self, owner: object) -> None:
        """Call nothing for `owner` any more; unknown ones are fine."""
        self._closing.pop(owner, None)

    def _watch_close(self) -> None:
        loop = self._loop()
        if not self._watched and loop is not None:
            self._watched = True
            watch_close(loop, self.terminate)
        _live[self.key] = self

    async def evict(self, owner: object) -> None:
        """Close one resource before its loop ends; unknown ones are fine."""
        resource = self.resources.pop(owner, None)
        if resource is not None:
            await _close_or_terminate(resource)

    async def close(self) -> None:
        """End everything politely: the loop still runs. The last made ends first."""
        while self.resources:
            _, resource = self.resources.popitem()
            await _close_or_terminate(resource)
        if not self._closing:
            _live.pop(self.key, None)

    def terminate(self) -> None:
        """End everything at once: no loop runs it any more."""
        while self.resources:
            _, resource = self.resources.popitem()
            _terminate(resource)
        while self._closing:
            try:
                _, callback = self._closing.popitem()
            except KeyError:  # another thread has forgotten the last one just now
                break
            callback()
        loop = self._loop()
        if loop is None or loop.is_closed():
            _live.pop(self.key, None)


class ProcessState:
    """What all loops of this process share; any thread may ask for it."""

    def __init__(self) -> None:
        self.key = LoopKey(getpid(), 0)
        self.resources: dict[object, Resource] = {}
        self.lock = threading.RLock()

    def get(self, owner: object, make: Callable[[], Resource]) -> Any:
        """Give the value of `owner`, made at the first call; threads that race share one."""
        found = self.resources.get(owner)
        if found is None:
            with self.lock:
                found = self.resources.get(owner)
                if found is None:
                    found = self.resources[owner] = make()
        return found.value

    def terminate(self) -> None:
        """End everything: the process ends. The last made ends first."""
        while self.resources:
            _, resource = self.resources.popitem()
            _terminate(resource)


_states: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopState] = (
    weakref.WeakKeyDictionary()
)
_live: dict[LoopKey, LoopState] = {}  # the loops that own something now
_process: ProcessState | None = None
_seen = 0  # loops that this process has shown us


def forget(owner: object) -> None:
    """Have no loop keep what has nothing left to end: a loop may live as long as its process."""
    for state in list(_live.values()):
        state.forget(owner)


def current_state(what: str) -> LoopState:
    """Give the state of the running loop of this process.

    Args:
        what: What needs a loop, for the error's text.

    Raises:
        NoRunningLoopError: Called from sync code.
        UnsupportedLoopError: The loop is not asyncio's.
    """
    loop = running_loop(what)
    state = _states.get(loop)
    if state is not None and state.key.pid == getpid():
        return state
    return _enter(loop)


def current_key() -> LoopKey:
    """Give the key of the running loop, or ``LoopKey(pid, 0)`` where none runs."""
    try:
        return current_state("").key
    except RuntimeError:
        return LoopKey(getpid(), 0)


def process_state() -> ProcessState:
    """Give what this process shares among its loops."""
    global _process
    state = _process
    if state is None or state.key.pid != getpid():
        with _process_lock:
            _forget_other_process()
            state = _process = _process or ProcessState()
    return state


def live_states() -> list[LoopState]:
    """List the loops of this process that own something."""
    pid = getpid()
    return [state for state in list(_live.values()) if state.key.pid == pid]


def shared_values() -> list[Any]:
    """List what the loops of this process share."""
    if _process is None or _process.key.pid != getpid():
        return []
    return [resource.value for resource in list(_process.resources.values())]


def loops_seen() -> int:
    """Count the loops that have used this library in this process."""
    return _seen


def sweep() -> None:
    """Terminate what closed loops left behind."""
    for state in live_states():
        loop = state.loop
        if loop is None or loop.is_closed():
            state.terminate()


def _enter(loop: asyncio.AbstractEventLoop) -> LoopState:
    global _seen
    _forget_other_process()
    sweep()
    _seen += 1
    state = _states[loop] = LoopState(loop)
    return state


def _forget_other_process() -> None:
    pid = getpid()
    if (_process is not None and _process.key.pid != pid) or any(
        key.pid != pid for key in list(_live)
    ):
        _abandon()  # a fork that ran no Python hooks


async def _close_or_terminate(resource: Resource) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await resource.close()
    except BaseException as error:
        _terminate(resource)
        if not isinstance(error, Exception):
            raise
        _log.warning("could not close %r politely: %r", resource.value, error)


def _terminate(resource: Resource) -> None:
    try:
        resource.terminate()
    except Exception as error:  # noqa: BLE001 (the other resources have to end, too)
        _log.warning("could not terminate %r: %r", resource.value, error)


def _abandon() -> None:
    """Forget, in a forked child, what the parent owns (see `forks`)."""
    global _process, _process_lock, _seen
    states: list[LoopState | ProcessState] = list(_live.values())
    if _process is not None:
        states.append(_process)
    _live.clear()
    _process, _process_lock, _seen = None, threading.RLock(), 0
    forks.abandon(
        states,
        live_transports(),
        [loop for ref in _states.keyrefs() if (loop := ref()) is not None],
    )


def _before_fork() -> None:
    if _process is not None and _process.key.pid == getpid():
        for resource in list(_process.resources.values()):
            resource.before_fork()


def _at_exit() -> None:
    for state in live_states():
        state.terminate()
    if _process is not None and _process.key.pid == getpid():
        _process.terminate()


_process_lock = threading.RLock()  # a finalizer may come by in the middle
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_abandon)
atexit.register(_at_exit)
