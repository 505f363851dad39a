"""What a worker id says: ``host/pid/version``, if one of our fleets has given it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerName:
    """A worker id, read.

    Attributes:
        text: The id itself.
        host: Where it runs.
        pid: Its process there; None if no fleet of ours has named it.
        version: Of its code, likewise.
    """

    text: str
    host: str
    pid: int | None = None
    version: str | None = None

    @classmethod
    def read(cls, text: str) -> WorkerName:
        """Take an id apart."""
        host, _, rest = text.partition("/")
        pid, _, version = rest.partition("/")
        if pid.isdigit() and version:
            return cls(text, host, int(pid), version)
        return cls(text, text)

    @property
    def is_gone(self) -> bool:
        """Whether it was a process of this host, which has ended."""
        return self.pid is not None and self.host == socket.gethostname() and not _lives(self.pid)

    def is_ghost(self, version: str | None) -> bool:
        """Whether nobody of ours has named it, or it runs another version than is wanted."""
        return self.version is None or version not in (None, self.version)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
