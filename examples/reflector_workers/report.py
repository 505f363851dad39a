"""What the user sees: progress while it works, tables afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from reflector_workers.progress import WorkflowState, done_by_type, failure_reasons

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from rich.console import Console

    from reflector_workers.domain import Turn
    from reflector_workers.error_rate import Comparison
    from reflector_workers.outcome import Outcome, Result

_TURNS_SHOWN = 40
_REASON_LETTERS = 160


class JobProgress:
    """Bars on a terminal; elsewhere a line whenever another job is done.

    Args:
        console: Where to show.
        workflows: How many workflows run.
        tracks: How many tracks each has.
    """

    def __init__(self, console: Console, workflows: int, tracks: int) -> None:
        self._console = console
        self._shown = -1
        self._bars = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        per_workflow = {"prepare_meeting": 1, "detect_speech": tracks, "merge_turns": 1}
        per_workflow["finalize"] = 1
        self._total = workflows * sum(per_workflow.values())
        self._tasks = {
            job_type: self._bars.add_task(job_type, total=workflows * jobs)
            for job_type, jobs in per_workflow.items()
        }

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def show(self, states: list[WorkflowState]) -> None:
        """Show what a look at the workflows found."""
        done, failed = done_by_type(states), failure_reasons(states).total()
        for job_type, task in self._tasks.items():
            self._bars.update(task, completed=done[job_type])
        if done.total() + failed != self._shown and not self._console.is_terminal:
            self._console.print(f"{done.total()} of {self._total} jobs done, {failed} failed")
        self._shown = done.total() + failed


def show_notes(notes: Iterable[str], console: Console) -> None:
    """Print what the user should know of the recordings."""
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def show_outcome(outcome: Outcome, console: Console) -> None:
    """Print what a run of the working fleet found out."""
    if outcome.result is None:
        _show_failure(outcome, console)
    else:
        show_notes(outcome.result.notes, console)
        console.print(_turn_table(outcome.meeting.name, outcome.result.turns[0]))
        console.print(_score_line(outcome.result.comparison, outcome.collar))
    console.print(_figures(outcome))
    if outcome.result is not None:
        _show_result(outcome.result, console)
    if outcome.strangers:
        names = escape(", ".join(sorted(outcome.strangers)))
        console.print(f"[yellow]Jobs were also done by workers that are not ours: {names}")


def show_broken_outcome(outcome: Outcome, console: Console) -> None:
    """Print how the ContextVar singleton failed."""
    reasons = failure_reasons(outcome.workflows)
    console.print(_reason_table("What the jobs failed with", outcome.workflows))
    completed = sum(workflow.completed for workflow in outcome.workflows)
    console.print(
        f"{reasons.total()} failed jobs, {completed} of {len(outcome.workflows)} workflows "
        f"completed, {outcome.sessions_when_done} server sessions open when the work stopped"
    )
    if reasons:
        console.print(
            "The workers are those of the demo, line by line. Here get_database() is a singleton "
            "in a ContextVar: each asyncio.run() meets the connections of an event loop that has "
            "ended. Run the demo without --broken to see them work."
        )


def _show_failure(outcome: Outcome, console: Console) -> None:
    for workflow in outcome.workflows:
        if not workflow.completed:
            console.print(f"[red]workflow {workflow.id}: {workflow.status}[/] {workflow.reason}")
    if outcome.failed_jobs:
        console.print(_reason_table("Failed jobs", outcome.workflows))
    if outcome.log:
        console.print("The last lines of the workers' logs:")
        console.print(escape("\n".join(outcome.log.splitlines()[-20:])))


def _reason_table(title: str, workflows: Sequence[WorkflowState]) -> Table:
    table = Table("times", "reason", title=title, title_justify="left")
    for reason, times in failure_reasons(workflows).most_common():
        table.add_row(str(times), escape(" ".join(reason.split())[:_REASON_LETTERS]))
    return table


def _turn_table(meeting: str, turns: Sequence[Turn]) -> Table:
    table = Table("start", "end", "speaker", title=f"Turns of {escape(meeting)}")
    for turn in turns[:_TURNS_SHOWN]:
        table.add_row(f"{turn.start:8.2f}", f"{turn.end:8.2f}", escape(turn.speaker))
    if len(turns) > _TURNS_SHOWN:
        table.add_row("…", "…", f"{len(turns) - _TURNS_SHOWN} more, all in the RTTM")
    return table


def _score_line(comparison: Comparison | None, collar: float) -> str:
    if comparison is None:
        return "Diarization error rate: the folder has no reference.rttm to compare with"
    rate = comparison.rate
    taken_for = ", ".join(
        f"{found} taken for {true}" for found, true in comparison.names.items() if found != true
    )
    return (
        f"Diarization error rate: {rate.rate:.1%} (missed {rate.miss:.2f} s, false alarm "
        f"{rate.false_alarm:.2f} s, confused {rate.confusion:.2f} s of {rate.total:.2f} s; "
        f"{f'collar of {collar:g} s on each side' if collar else 'no collar'}"
        f"{f'; {escape(taken_for)}' if taken_for else ''})"
    )


def _figures(outcome: Outcome) -> Table:
    table = Table(show_header=False, title="The fleet", title_justify="left")
    done = done_by_type(outcome.workflows).total()
    processes = outcome.processes
    rows: dict[str, object] = {
        "workflows": f"{len(outcome.workflows)} at once",
        "jobs": f"{done} done, {outcome.failed_jobs} failed",
        "worker processes": f"{outcome.process_count}, {len(processes)} ended in good order",
        "event loops seen": sum(process.loops for process in processes),
        "connections opened": sum(process.stats.opened for process in processes),
        "connections reused": sum(process.stats.reused for process in processes),
        "open when the last job was done": outcome.sessions_when_done,
        "left open after the stop": outcome.sessions_left_open,
    }
    if outcome.result is not None:
        counts = outcome.result.counts
        rows["executions in the job log"] = (
            f"{counts.executions} of {counts.jobs} jobs, by {counts.threads} threads in "
            f"{counts.processes} processes, over {counts.server_sessions} server sessions"
        )
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def _show_result(result: Result, console: Console) -> None:
    if not result.runs_agree:
        console.print("[red]The workflows found different turns in the same meeting")
    for path in result.written:
        console.print(f"Written: {path}", soft_wrap=True)
