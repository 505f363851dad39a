"""What a forked child does with what it inherited: it lets go, and nobody notices.

An inherited socket is the parent's: not one byte may be sent on it, and it must not stay open here, or the
server would keep the session after the parent's death. An inherited loop shares its epoll with the parent:
an ``unregister`` here would take the parent's registration away. So the child points the sockets' descriptors at
``/dev/null``, gives the loops a selector of their own, and keeps every inherited object alive for ever, so that
no ``__del__`` ever runs.

All of it runs in the fork hook, which uvloop also runs in each subprocess between fork and exec: no locks, no
threads, a few system calls per open connection and none where there is no connection.
"""

from __future__ import annotations

import ctypes
import os
import select
import selectors
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator

    from loopsafe_db._runtime.registry import LoopState, ProcessState
    from loopsafe_db._runtime.transport import MovableTransport

_inherited: list[Any] = []


class SocketId(NamedTuple):
    """A descriptor, and the inode that tells whether it is still the same socket."""

    fd: int
    inode: int

    @classmethod
    def of(cls, fd: int) -> SocketId:
        """Note which socket a descriptor is now."""
        return cls(fd, os.fstat(fd).st_ino)


def is_readable(fd: int) -> bool:
    """Tell whether something has arrived on a socket, or its end, without waiting."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([fd], [], [], 0)[0])


def has_failed(fd: int) -> bool:
    """Tell whether a socket was reset, though there may be something left to read; without waiting."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def abandon(
    states: Iterable[LoopState | ProcessState],
    transports: list[MovableTransport],
    loops: list[asyncio.AbstractEventLoop],
) -> None:
    """Let go of the parent's resources, sockets and loops without a trace."""
    states = list(states)
    if not (states or transports):
        return
    _keep_for_ever(transports)
    _keep_for_ever((states, loops, [dict(state.resources) for state in states]))
    for sock in _sockets(states, transports):
        _let_go(sock)
    for state in states:
        state.resources.clear()
    for loop in loops:
        # One that another thread was closing, or for which there is no memory, is skipped: nobody runs it here.
        with suppress(OSError, ValueError):
            if not loop.is_closed():
                _give_own_selector(loop)


def _sockets(
    states: list[LoopState | ProcessState], transports: list[MovableTransport]
) -> Iterator[SocketId]:
    for transport in transports:
        yield transport.socket_id
    for state in states:
        for resource in list(state.resources.values()):
            yield from resource.sockets()


def _keep_for_ever(value: Any) -> None:
    """Keep an object beyond the interpreter's own clean-up, which clears every module's globals."""
    _inherited.append(value)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _let_go(sock: SocketId) -> None:
    """Point a socket's descriptor at ``/dev/null``."""
    try:
        status = os.fstat(sock.fd)
    except OSError:
        return  # closed by the parent before the fork
    # The number may belong to another file by now.
    if stat.S_ISSOCK(status.st_mode) and status.st_ino == sock.inode:
        with suppress(OSError):  # it is closed, at least
            _put_at([sock.fd], _null)


def _put_at(numbers: list[int], open_files: Callable[[], list[int]]) -> None:
    """Have new files at the numbers of old ones, also where the process may open no more: the old ones make room."""
    for number in numbers:
        os.close(number)
    opened = open_files()
    free = [number for number in numbers if number not in opened]
    for fd in opened:
        if fd not in numbers:
            os.dup2(fd, free.pop(), inheritable=False)
            os.close(fd)


def _null() -> list[int]:
    return [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)]


def _epoll() -> list[int]:
    epoll = select.epoll()
    _keep_for_ever(epoll)  # it would close its number, which is the loop's now
    return [epoll.fileno()]


def _socketpair() -> list[int]:
    pair = socket.socketpair()
    for end in pair:
        end.settimeout(0)
    return [end.detach() for end in pair]


def _give_own_selector(loop: asyncio.AbstractEventLoop) -> None:
    """Part an inherited selector loop from the parent's epoll and self-pipe.

    The child may run it down (``sys.exit`` inside a coroutine makes ``asyncio.run`` do so), which unregisters
    descriptors and reads the self-pipe: on the shared ones, the parent would miss its wake-ups.
    """
    inner: Any = loop
    if _EPOLL and hasattr(inner, "_get_backend_id"):  # uvloop
        _put_at([inner._get_backend_id()], _epoll)  # noqa: SLF001
        return
    selector: Any = getattr(inner, "_selector", None)
    ours, theirs = getattr(inner, "_ssock", None), getattr(inner, "_csock", None)
    if ours is None or theirs is None or type(selector) not in _EPOLL:
        return
    _put_at([selector.fileno()], _epoll)
    _put_at([ours.fileno(), theirs.fileno()], _socketpair)
    selector._selector.register(ours.fileno(), select.EPOLLIN)  # noqa: SLF001


_EPOLL: tuple[type, ...] = (selectors.EpollSelector,) if hasattr(selectors, "EpollSelector") else ()
