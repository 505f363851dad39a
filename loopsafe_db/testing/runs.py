"""Which run of tests a database belongs to, and whether that run still lives."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loopsafe_db.testing._locks import hold, is_alone

if TYPE_CHECKING:
    from typing import Self

PREFIX = "loopsafe"  # of the names of databases


class Run:
    """A run of tests on a server of yours: its processes hold a lock until they end, however they do.

    Another run on this machine can tell from that lock whether this one lives. What a run on another machine has
    made is left to that machine.

    Args:
        key: The same for all processes of the run: hexadecimal digits. None makes one up.
    """

    def __init__(self, key: str | None = None) -> None:
        self.key: str = (key or secrets.token_hex(8))[:16]
        self._held: int | None = None
        self._owner = 0

    def __enter__(self) -> Self:
        self._owner = os.getpid()
        self._held = os.open(_lock_file(self.key), os.O_RDWR | os.O_CREAT, 0o600)
        hold(self._held)
        return self

    def __exit__(self, *_exception: object) -> None:
        """Leave; the last one removes the lock. A forked child leaves its parent's alone."""
        held, self._held = self._held, None
        if held is None:
            return
        if self._owner == os.getpid() and is_alone(held):
            _lock_file(self.key).unlink(missing_ok=True)
        os.close(held)


def is_of_a_dead_run(database: str) -> bool:
    """Tell whether the run that has made a database has ended, on this machine."""
    key = database.removeprefix(f"{PREFIX}_").partition("_")[0]
    with suppress(OSError):  # it is not there, or another user's
        held = os.open(_lock_file(key), os.O_RDWR)
        try:
            return is_alone(held)
        finally:
            os.close(held)
    return False


def _lock_file(key: str) -> Path:
    return Path(tempfile.gettempdir()) / f"loopsafe_db-{key}.lock"
