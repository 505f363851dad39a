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
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

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
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for transport in transports:
        _point_at(null, transport.socket_id)
    for state in states:
        for resource in list(state.resources.values()):
            for sock in resource.sockets():
                _point_at(null, sock)
        state.resources.clear()
    os.close(null)
    for loop in loops:
        if not loop.is_closed():
            _give_own_selector(loop)


def _keep_for_ever(value: Any) -> None:
    """Keep an object beyond the interpreter's own clean-up, which clears every module's globals."""
    _inherited.append(value)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _point_at(null: int, sock: SocketId) -> None:
    try:
        status = os.fstat(sock.fd)
    except OSError:
        return  # closed by the parent before the fork
    # The number may belong to another file by now.
    if stat.S_ISSOCK(status.st_mode) and status.st_ino == sock.inode:
        os.dup2(null, sock.fd, inheritable=False)


def _give_own_selector(loop: asyncio.AbstractEventLoop) -> None:
    """Part an inherited selector loop from the parent's epoll and self-pipe.

    The child may run it down (``sys.exit`` inside a coroutine makes ``asyncio.run`` do so), which unregisters
    descriptors and reads the self-pipe: on the shared ones, the parent would miss its wake-ups.
    """
    inner: Any = loop
    if _EPOLL and hasattr(inner, "_get_backend_id"):  # uvloop
        fresh = select.epoll()
        os.dup2(fresh.fileno(), inner._get_backend_id(), inheritable=False)  # noqa: SLF001
        fresh.close()
        return
    selector: Any = getattr(inner, "_selector", None)
    ours, theirs = getattr(inner, "_ssock", None), getattr(inner, "_csock", None)
    if ours is None or theirs is None or type(selector) not in _EPOLL:
        return
    fresh = select.epoll()
    os.dup2(fresh.fileno(), selector.fileno(), inheritable=False)
    fresh.close()
    reader, writer = socket.socketpair()
    os.dup2(reader.fileno(), ours.fileno(), inheritable=False)
    os.dup2(writer.fileno(), theirs.fileno(), inheritable=False)
    reader.close()
    writer.close()
    ours.settimeout(0)
    theirs.settimeout(0)
    selector._selector.register(ours.fileno(), select.EPOLLIN)  # noqa: SLF001


_EPOLL: tuple[type, ...] = (selectors.EpollSelector,) if hasattr(selectors, "EpollSelector") else ()
