"""The worker processes of this example."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopsafe_db.integrations.conductor import Fleet, FleetWorker

if TYPE_CHECKING:
    from pathlib import Path

STEPS = ("prepare_meeting", "detect_speech", "merge_turns", "finalize")
MODULES = [f"reflector_workers.workers.{step}" for step in STEPS]
PROCESSES = {"detect_speech": 2}  # the model keeps the interpreter lock: threads do not help


def meeting_fleet(
    conductor_url: str, folder: Path | None = None, worker_class: type[FleetWorker] = FleetWorker
) -> Fleet:
    """The fleet, not started yet.

    Args:
        conductor_url: The server's API, ``http://host:port/api``.
        folder: Where the processes leave logs and reports.
        worker_class: Makes the SDK's worker of a worker function.
    """
    return Fleet(
        conductor_url,
        MODULES,
        processes=PROCESSES,
        folder=folder,
        restarts=3,
        worker_class=worker_class,
    )
