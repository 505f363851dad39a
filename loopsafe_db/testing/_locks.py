"""Locks on files, which a process cannot keep beyond its death."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

if (
    sys.platform == "win32"
):  # pragma: no cover (it starts no server here, but copies files and talks to given ones)
    import msvcrt
else:
    import fcntl


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only process in this block; a killed one is out of it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)


if sys.platform == "win32":  # pragma: no cover

    def lock(descriptor: int) -> None:
        while True:
            with suppress(OSError):  # after ten seconds
                return msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)

    def hold(descriptor: int) -> None:
        """Its locks cannot be shared, so each takes a byte of its own."""
        for place in range(1, 10_000):
            os.lseek(descriptor, place, os.SEEK_SET)
            with suppress(OSError):
                return msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def is_alone(descriptor: int) -> bool:
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        os.lseek(descriptor, 1, os.SEEK_SET)
        with suppress(OSError):
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 9_999)
            return True
        return False

else:

    def lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    def hold(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_SH)

    def is_alone(descriptor: int) -> bool:
        """Let go, for the children as well that were forked meanwhile; is anybody else there?"""
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False
