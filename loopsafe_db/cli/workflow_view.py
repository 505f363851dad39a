"""A run of a workflow: who did what, when, and whether that was somebody of ours."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from loopsafe_db.cli.workers import WorkerName

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OWN = {"FORK", "FORK_JOIN_DYNAMIC", "JOIN", "DECISION", "SWITCH", "DO_WHILE", "SUB_WORKFLOW"}
_ROW, _LEFT, _WIDTH = 22, 330, 1100
_COLOURS = {"COMPLETED": "#2a9d8f", "IN_PROGRESS": "#e9c46a", "SCHEDULED": "#bbbbbb"}
_GHOST, _FAILED = "#d00000", "#f4a261"


@dataclass(frozen=True)
class Attempt:
    """One attempt at a task.

    Attributes:
        waited: Milliseconds in the queue.
        took: Milliseconds of work; None while it goes on.
        is_ghost: Whether a stranger did it, or another version than all others.
    """

    reference: str
    task_type: str
    status: str
    attempt: int
    worker_id: str
    version: str
    scheduled: int
    started: int
    waited: int
    took: int | None
    reason: str
    is_ghost: bool


@dataclass(frozen=True)
class WorkflowView:
    """A run of a workflow, without what Conductor does in it itself."""

    id: str
    name: str
    status: str
    reason: str
    attempts: Sequence[Attempt]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def view(workflow: Mapping[str, Any], version: str | None = None) -> WorkflowView:
    """Read a workflow; without a version, the one that did most of it is the right one."""
    tasks = [task for task in workflow["tasks"] if task["taskType"] not in _OWN]
    versions = Counter(WorkerName.read(task.get("workerId") or "").version for task in tasks)
    del versions[None]
    wanted = version or (versions.most_common(1)[0][0] if versions else None)
    return WorkflowView(
        workflow["workflowId"],
        workflow.get("workflowName") or workflow.get("workflowType") or "?",
        workflow["status"],
        workflow.get("reasonForIncompletion") or "",
        [_attempt(task, wanted) for task in tasks],
    )


def _attempt(task: Mapping[str, Any], wanted: str | None) -> Attempt:
    name = WorkerName.read(task.get("workerId") or "")
    scheduled, started, ended = (
        task.get(f"{what}Time") or 0 for what in ("scheduled", "start", "end")
    )
    return Attempt(
        reference=task["referenceTaskName"],
        task_type=task["taskDefName"],
        status=task["status"],
        attempt=task.get("retryCount", 0) + 1,
        worker_id=name.text,
        version=name.version or "",
        scheduled=scheduled,
        started=started,
        waited=max(started - scheduled, 0) if started else 0,
        took=ended - started if ended and started else None,
        reason=task.get("reasonForIncompletion") or "",
        is_ghost=bool(name.text) and name.is_ghost(wanted),
    )


def draw(seen: WorkflowView) -> str:
    """A picture, as SVG: a bar for each attempt, ghosts in red, with everything about it in its tooltip."""
    begun = [each for each in seen.attempts if each.started]
    first = min((each.scheduled for each in begun), default=0)
    last = max((each.started + (each.took or 0) for each in begun), default=first + 1)
    scale = (_WIDTH - _LEFT - 20) / max(last - first, 1)
    height = _ROW * (len(seen.attempts) + 2)
    title = f"{seen.name} {seen.id}: {seen.status}, {(last - first) / 1000:.1f} s"
    bars = [_bar(each, line, first, scale) for line, each in enumerate(seen.attempts, 1)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="10" y="16" font-weight="bold">{escape(title)}</text>{"".join(bars)}</svg>'
    )


def draw_page(seen: WorkflowView) -> str:
    """The picture in a page of its own."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(seen.name)} {escape(seen.id)}</title>'
        f"<body>{draw(seen)}</body></html>"
    )


def _bar(each: Attempt, line: int, first: int, scale: float) -> str:
    y = _ROW * line + 6
    who = f"{each.reference} · {each.worker_id or 'nobody yet'}"
    words = f"{who}: {each.status}, waited {each.waited} ms, took {each.took} ms {each.reason}"
    colour = _GHOST if each.is_ghost else _COLOURS.get(each.status, _FAILED)
    waiting = _rect(_LEFT + (each.scheduled - first) * scale, y, each.waited * scale, "#e5e5e5")
    working = _rect(
        _LEFT + (each.started - first) * scale, y, max((each.took or 0) * scale, 2), colour
    )
    bars = f"{waiting}{working}" if each.started else ""
    label = f'<text x="10" y="{y + 13}" fill="{_GHOST if each.is_ghost else "#333"}">{escape(who[:52])}</text>'
    return f"<g><title>{escape(words)}</title>{label}{bars}</g>"


def _rect(x: float, y: int, width: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 6}" fill="{colour}"/>'
