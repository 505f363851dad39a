"""What a run of the demo found out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loopsafe_db.integrations.conductor import ProcessReport
    from reflector_workers.domain import Turn
    from reflector_workers.error_rate import Comparison
    from reflector_workers.progress import WorkflowState
    from reflector_workers.recordings import MeetingFolder
    from reflector_workers.storage.job_log import JobCounts


@dataclass(frozen=True)
class Result:
    """What the workflows left in the database.

    Attributes:
        turns: The turns of each workflow; all should be equal.
        notes: What was wrong with recordings, found while they were heard.
        written: The files that the documents were written to.
        comparison: With the folder's ``reference.rttm``, if there is one.
        counts: From the job log.
    """

    turns: Sequence[tuple[Turn, ...]]
    notes: Sequence[str]
    written: Sequence[Path]
    comparison: Comparison | None
    counts: JobCounts

    @property
    def runs_agree(self) -> bool:
        return len(set(self.turns)) == 1


@dataclass(frozen=True)
class Outcome:
    """Everything about one run of the fleet.

    Attributes:
        meeting: What it worked on.
        collar: With which it was scored.
        workflows: How each workflow ended, or how it was when the time was over.
        result: None if a workflow did not complete.
        processes: The reports of the worker processes that ended well.
        process_count: How many worker processes there were.
        sessions_when_done: Server sessions of the workers when the last job was done.
        sessions_left_open: The same after the workers had stopped.
        log: What the worker processes wrote to standard output and error.
    """

    meeting: MeetingFolder
    collar: float
    workflows: Sequence[WorkflowState]
    result: Result | None
    processes: Sequence[ProcessReport]
    process_count: int
    sessions_when_done: int
    sessions_left_open: int
    log: str

    @property
    def completed(self) -> bool:
        return all(workflow.completed for workflow in self.workflows)

    @property
    def failed_jobs(self) -> int:
        return sum(len(workflow.failures) for workflow in self.workflows)

    @property
    def strangers(self) -> set[str]:
        """Workers that did jobs and are not ours: somebody else polls this Conductor."""
        ours = {process.worker_id for process in self.processes}
        return {
            job.worker_id
            for workflow in self.workflows
            for job in workflow.jobs
            if job.worker_id and job.worker_id not in ours
        }
