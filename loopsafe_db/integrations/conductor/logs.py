"""Where a worker process writes: a file of its own, or the fleet's standard output, a whole line at a time."""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def redirect_output(folder: Path | None, name: str) -> None:
    """Send this process's output to a file in a folder, or mark each of its lines."""
    if folder is None:
        sys.stdout = sys.stderr = MarkedLines(sys.stdout.fileno(), f"[{name} {os.getpid()}] ")
        return
    log = os.open(folder / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


class MarkedLines(io.TextIOBase):
    """A text stream without a buffer: each line is written whole, with a mark, when it is complete."""

    encoding = "utf-8"

    def __init__(self, fd: int, mark: str) -> None:
        self._fd, self._mark = fd, mark
        self._rest = ""
        self._lock = threading.RLock()  # a signal handler may print, too

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """What the lines go to."""
        return self._fd

    def write(self, text: str) -> int:
        """Write the lines that are complete by now."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            self._send("".join(f"{self._mark}{line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        """Nothing to do: half a line is written when it is whole, so that lines of processes do not mix."""

    def _send(self, text: str) -> None:
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(self._fd, data) :]
