"""The life of one worker process: its name, its last words, and an end without ghosts.

conductor-python gives worker processes SIGTERM's default action (the job in flight is abandoned,
nothing is closed), the host's name as worker id, and a life of their own once the parent was
killed. An event listener is the only code of ours that runs in each of them, so it mends all three.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loopsafe_db import snapshot

if TYPE_CHECKING:
    from types import FrameType

    from conductor.client.event.task_runner_events import PollStarted

GRACE = 1.0
"""Seconds. A process whose threads are all busy does not poll; after this it stops without."""

ORPHAN_GRACE = 5.0
"""Seconds that a process without a parent has for its last job."""


@dataclass(frozen=True)
class ProcessReport:
    """What a worker process says when it ends.

    Attributes:
        loops: Event loops in which it used the database.
        opened: Connections that it opened.
        reused: How often a connection was lent that was open already.
    """

    pid: int
    worker_id: str
    loops: int
    opened: int
    reused: int


class WorkerLifecycle:
    """An event listener that makes a worker process end well. Pickled into each of them.

    Args:
        folder: Where each process writes its log and, at its end, its `ProcessReport`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logger_pid = 0  # the SDK's log process, which would outlive a killed parent
        self._worker_id = ""
        self._watching = False
        self._stopping = False

    def __setstate__(self, state: dict[str, object]) -> None:
        """Take over the worker process: unpickling is the first thing that happens in it."""
        self.__dict__.update(state)
        self._worker_id = f"{socket.gethostname()}/{os.getpid()}/{code_version()}"
        # the runner reads this variable after the listeners are unpickled
        os.environ["conductor.worker.all.worker_id"] = self._worker_id  # noqa: SIM112  (the SDK's)
        self._redirect_output()
        atexit.register(self._report)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGALRM, self._on_alarm)

    def on_poll_started(self, event: PollStarted) -> None:
        """End here if asked to: the main thread is between two jobs, in both kinds of runner."""
        if self._stopping:
            signal.setitimer(signal.ITIMER_REAL, 0)  # or it would cut short the jobs in flight
            raise SystemExit(0)
        if not self._watching:  # not sooner: while a child unpickles, it has no parent_process()
            self._watching = True
            threading.Thread(target=self._watch_parent, name="parent-watch", daemon=True).start()

    def _on_sigterm(self, _signal: int, _frame: FrameType | None) -> None:
        # Raising at once may hit any line of the SDK, and was seen to get lost: wait for the poll.
        if not self._stopping:
            self._stopping = True
            signal.setitimer(signal.ITIMER_REAL, GRACE)

    def _on_alarm(self, _signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    def _watch_parent(self) -> None:
        parent = multiprocessing.parent_process()
        if parent is None:
            return
        parent.join()
        if self.logger_pid:
            with suppress(ProcessLookupError):
                os.kill(self.logger_pid, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_GRACE)
        os._exit(1)  # nobody is left to kill a process that does not end

    def _redirect_output(self) -> None:
        log = os.open(self.folder / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)

    def _report(self) -> None:
        seen = snapshot()
        report = ProcessReport(
            pid=os.getpid(),
            worker_id=self._worker_id,
            loops=seen.loops_seen,
            opened=seen.opened,
            reused=seen.reused,
        )
        path = self.folder / f"{os.getpid()}.json"
        path.with_suffix(".part").write_text(json.dumps(vars(report)), encoding="utf-8")
        path.with_suffix(".part").rename(path)


def read_reports(folder: Path) -> list[ProcessReport]:
    """The reports of all processes that ended well."""
    return [
        ProcessReport(**json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(folder.glob("*.json"))
    ]


def read_logs(folder: Path) -> str:
    """What the worker processes wrote to their standard output and error."""
    logs = [path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.log")]
    return "\n".join(log for log in logs if log.strip())


def code_version() -> str:
    """Eight letters that change with this package's code: tells an old worker from a new one."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
