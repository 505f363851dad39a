"""What worker processes leave in a folder: how they are, once a second and at their end, and what they print."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING

from loopsafe_db.engines.stats import Holder, PoolStats
from loopsafe_db.snapshot import snapshot

if TYPE_CHECKING:
    from pathlib import Path

REPORT_SECONDS = 1.0
"""From one report of a process to the next."""
_LATE = 10 * REPORT_SECONDS


@dataclass(frozen=True)
class ProcessReport:
    """What a worker process says of itself.

    Attributes:
        pid: The process.
        worker_id: Its name at Conductor: host, pid and version of the code.
        loops: Event loops in which it has used the database.
        stats: Its pools together, those that have ended too.
        job_type: The kind of jobs that it does.
        jobs: How many it does now.
        loops_alive: Event loops that hold a database now.
        ended: Whether this is the last one: the process has ended in good order.
        told_at: When it said so, in seconds since 1970.
    """

    pid: int
    worker_id: str
    loops: int
    stats: PoolStats
    job_type: str = ""
    jobs: int = 0
    loops_alive: int = 0
    ended: bool = False
    told_at: float = 0.0

    @property
    def silent_for(self) -> float:
        """Seconds for which a process that has not ended has said nothing, beyond a report's time: it may be killed."""
        late = 0.0 if self.ended or not self.told_at else time.time() - self.told_at
        return late if late > _LATE else 0.0

    @classmethod
    def of_this_process(
        cls, worker_id: str, job_type: str, jobs: int, *, ended: bool
    ) -> ProcessReport:
        """Look at what is open here."""
        seen = snapshot()
        return cls(
            pid=seen.pid,
            worker_id=worker_id,
            loops=seen.loops_seen,
            stats=seen.total,
            job_type=job_type,
            jobs=jobs,
            loops_alive=seen.loops_alive,
            ended=ended,
            told_at=time.time(),
        )

    @classmethod
    def read(cls, path: Path) -> ProcessReport:
        """Take what `write` has left."""
        told = json.loads(path.read_text(encoding="utf-8"))
        holders = tuple(Holder(**each) for each in told["stats"].pop("holders"))
        return cls(**{**told, "stats": PoolStats(**told["stats"], holders=holders)})

    def write(self, folder: Path) -> None:
        """Put it where the one before is; whoever reads finds one of the two, whole."""
        path = folder / f"{self.pid}.json"
        path.with_suffix(".part").write_text(json.dumps(asdict(self)), encoding="utf-8")
        path.with_suffix(".part").rename(path)


def report_to(folder: Path, worker_id: str | None = None, job_type: str = "") -> None:
    """Have ``loopsafe-db top FOLDER`` show this process: it reports at once, each second, and when it ends well.

    Workers of `run_workers` do so by themselves. Call it once in each other process, after the fork that has made it:
    it starts a thread.

    Args:
        folder: Of all these processes; is made.
        worker_id: How it is called there; host and pid if None.
        job_type: The kind of jobs that it does.

    Raises:
        OSError: The folder cannot be made, or written to.
    """
    name = worker_id or f"{socket.gethostname()}/{os.getpid()}"
    ended = threading.Event()

    def report() -> None:
        write_if_there(
            ProcessReport.of_this_process(name, job_type, 0, ended=ended.is_set()), folder
        )

    def go_on() -> None:
        while not ended.wait(REPORT_SECONDS):
            report()

    def end() -> None:
        ended.set()
        thread.join()
        report()

    folder.mkdir(parents=True, exist_ok=True)
    report()
    thread = threading.Thread(target=go_on, name="loopsafe_db reports", daemon=True)
    thread.start()
    Finalize(
        None, end, exitpriority=0
    )  # in processes of multiprocessing, too, and in no forked child


def read_reports(folder: Path) -> list[ProcessReport]:
    """The newest report of each process."""
    return [ProcessReport.read(path) for path in sorted(folder.glob("*.json"))]


def read_logs(folder: Path) -> str:
    """What the worker processes wrote to their standard output and error."""
    logs = [path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.log")]
    return "\n".join(log for log in logs if log.strip())


def write_if_there(report: ProcessReport, folder: Path | None) -> None:
    """Write a report, unless nobody wants it, or the folder has gone with the fleet that did."""
    if folder is not None:
        with suppress(FileNotFoundError):
            report.write(folder)
