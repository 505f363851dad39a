"""The commands: what they take, print, and end with."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from pathlib import Path  # noqa: TC003  (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from loopsafe_db.cli.conductor_api import Conductor, ConductorUnavailable
from loopsafe_db.cli.conductor_checks import check_conductor
from loopsafe_db.cli.database_checks import check_database, find_database, what_fails
from loopsafe_db.cli.scan import scan
from loopsafe_db.cli.workflow_view import WorkflowView, draw, draw_page, view
from loopsafe_db.errors import ConfigurationError, MissingURLError
from loopsafe_db.integrations.reports import read_reports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loopsafe_db.cli.findings import Finding
    from loopsafe_db.integrations.reports import ProcessReport

    _Columns = Mapping[str, Callable[[ProcessReport], object]]

FOUND, WRONG_USE = 1, 2
_SECONDS = 0.5
_LEAST = 1.0  # seconds for one look, though the time is over
_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}

_NOW: _Columns = {
    "jobs of": lambda each: each.job_type,
    "jobs": lambda each: each.jobs,
    "loops": lambda each: each.loops_alive,
    "in use": lambda each: each.stats.in_use,
    "idle": lambda each: each.stats.idle,
    "max": lambda each: each.stats.max_connections,
    "waiting": lambda each: each.stats.waiting,
}
_DONE: _Columns = {
    "requests": lambda each: each.stats.requests_num,
    "waits": lambda each: each.stats.requests_queued,
    "wait ms": lambda each: round(each.stats.requests_wait_ms),
    "queue peak": lambda each: each.stats.queue_peak,
    "request errors": lambda each: each.stats.requests_errors,
    "reused": lambda each: each.stats.reused,
    "connects": lambda each: each.stats.connections_num,
    "connect ms": lambda each: round(each.stats.connections_ms),
    "connect errors": lambda each: each.stats.connections_errors,
    "lost": lambda each: each.stats.connections_lost,
}

app: typer.Typer = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True
)
doctor: typer.Typer = typer.Typer(help="Say what is wrong, where it was seen, and the cure.")
app.add_typer(doctor, name="doctor")

DatabaseURL = Annotated[
    str | None,
    typer.Option("--database", help="Its URL; else LOOPSAFE_DB_URL.", show_default=False),
]
ConductorURL = Annotated[
    str | None,
    typer.Option(
        "--conductor", envvar="CONDUCTOR_SERVER_URL", help="Its API, http://host:port/api."
    ),
]
AsJSON = Annotated[bool, typer.Option("--json", help="For programs.")]
Version = Annotated[
    str | None, typer.Option(help="Of the code that should run: others are ghosts.")
]


@app.callback()
def _root() -> None:
    """Look after databases and workers."""


@doctor.callback(invoke_without_command=True)
def examine(
    context: typer.Context,
    database: DatabaseURL = None,
    conductor: ConductorURL = None,
    version: Version = None,
    watch: Annotated[float, typer.Option(help="Seconds in which to see who polls.")] = 5.0,
    as_json: AsJSON = False,  # noqa: FBT002  (typer makes switches of these)
) -> None:
    """Look at the database and at Conductor. Ends with 1 if something is wrong."""
    if context.invoked_subcommand is not None:
        return
    if conductor is None and not _is_there(database):
        _refuse("nothing to look at: give --database or --conductor, or set LOOPSAFE_DB_URL")
    found = asyncio.run(check_database(database)) if _is_there(database) else []
    found += check_conductor(conductor, watch, version) if conductor else []
    _tell(found, as_json=as_json)


@doctor.command("scan")
def scan_(
    path: Annotated[Path, typer.Argument(exists=True, help="A folder of Python code, or a file.")],
    as_json: AsJSON = False,  # noqa: FBT002
) -> None:
    """Find clients of a loop that are shared between loops, without running the code."""
    _tell(scan(path), as_json=as_json)


@app.command()
def wait(
    database: DatabaseURL = None,
    conductor: ConductorURL = None,
    seconds: Annotated[float, typer.Option("--for", help="Seconds, at most.")] = 60.0,
) -> None:
    """Wait until the database and Conductor can work, not only until they listen."""
    missing: dict[str, Callable[[float], str | None]] = {}
    if _is_there(database):
        missing["database"] = lambda left: asyncio.run(what_fails(database, left))
    if conductor:
        missing["Conductor"] = lambda _: _what_fails(Conductor(conductor))
    if not missing:
        _refuse("nothing to wait for: give --database or --conductor, or set LOOPSAFE_DB_URL")
    until = time.monotonic() + seconds
    columns = (SpinnerColumn(), TextColumn("waiting for {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=None)
        while missing:
            progress.update(bar, description=" and ".join(missing))
            left = max(until - time.monotonic(), _LEAST)
            reasons = {name: why for name, ask in missing.items() if (why := ask(left)) is not None}
            missing = {name: missing[name] for name in reasons}
            if missing and time.monotonic() > until:
                for name, why in reasons.items():
                    _complain(f"{name} did not answer within {seconds:g} s: {why}")
                raise typer.Exit(FOUND)
            time.sleep(_SECONDS if missing else 0)


@app.command()
def workflow(
    workflow_id: str,
    conductor: ConductorURL = None,
    version: Version = None,
    svg: Annotated[Path | None, typer.Option(help="Draw it into this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Draw it into this page.")] = None,
    as_json: AsJSON = False,  # noqa: FBT002
) -> None:
    """Show who did what in a workflow, when, and ghosts in red. Ends with 1 if there are some."""
    seen = _view(conductor, workflow_id, version)
    for path, picture in ((svg, draw), (html, draw_page)):
        if path is not None:
            path.write_text(picture(seen), encoding="utf-8")
    if as_json:
        print(json.dumps(seen.as_json(), indent=2))
    else:
        Console().print(_table(seen))
    raise typer.Exit(FOUND if any(each.is_ghost for each in seen.attempts) else 0)


@app.command()
def retry(workflow_id: str, conductor: ConductorURL = None) -> None:
    """Execute again what ended badly in a workflow, and only that."""
    try:
        _conductor(conductor).retry(workflow_id)
    except ConductorUnavailable as error:
        _complain(str(error))
        raise typer.Exit(FOUND) from None
    Console().print(f"workflow {workflow_id}: {_view(conductor, workflow_id, None).status}")


@app.command()
def top(
    folder: Annotated[
        Path, typer.Argument(exists=True, help="A fleet's folder=, or of report_to.")
    ],
    once: Annotated[bool, typer.Option("--once", help="Not again and again.")] = False,  # noqa: FBT002
    as_json: AsJSON = False,  # noqa: FBT002
) -> None:
    """Show processes as they are: jobs, loops, connections, waits, connects, who has a connection."""
    if as_json:
        print(json.dumps([asdict(each) for each in read_reports(folder)], indent=2))
    elif once:
        Console().print(_processes(folder))
    else:
        with Live(_processes(folder)) as live:
            while True:  # until Ctrl-C
                time.sleep(_SECONDS)
                live.update(_processes(folder))


def _is_there(database: str | None) -> bool:
    """Tell whether there is a database to look at; what cannot be a handle's is refused."""
    try:
        find_database(database)
    except MissingURLError:
        return False
    except ConfigurationError as error:
        _refuse(str(error))
    return True


def _conductor(url: str | None) -> Conductor:
    if url is None:
        _refuse("which Conductor? Give --conductor, or set CONDUCTOR_SERVER_URL")
    return Conductor(url)


def _view(url: str | None, workflow_id: str, version: str | None) -> WorkflowView:
    try:
        return view(_conductor(url).workflow(workflow_id), version)
    except ConductorUnavailable as error:
        _refuse(str(error))


def _what_fails(conductor: Conductor) -> str | None:
    try:
        conductor.task_definitions()
    except ConductorUnavailable as error:
        return str(error)
    return None


def _tell(found: Sequence[Finding], *, as_json: bool) -> None:
    bad = [each for each in found if each.level != "ok"]
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2))
    else:
        console = Console(highlight=False)
        for each in found:
            console.print(f"[{_COLOURS[each.level]}]{escape(str(each))}[/]", soft_wrap=True)
        console.print(f"{len(bad)} of {len(found)} findings want something done")
    raise typer.Exit(FOUND if bad else 0)


def _table(seen: WorkflowView) -> Table:
    table = Table(title=f"{seen.name} {seen.id}: {seen.status} {seen.reason}", title_justify="left")
    for column in ("task", "status", "attempt", "worker", "waited", "took", "reason"):
        table.add_column(column, overflow="fold")
    for each in seen.attempts:
        took = "" if each.took is None else f"{each.took} ms"
        worker = f"{each.worker_id} (ghost)" if each.is_ghost else each.worker_id
        table.add_row(
            *map(escape, (each.reference, each.status, str(each.attempt), worker)),
            *(f"{each.waited} ms", took, escape(each.reason[:200])),
            style="red" if each.is_ghost else None,
        )
    return table


def _processes(folder: Path) -> Group | str:
    """Tell of a fleet: what is so now, what its processes have done, and who has a connection, the longest first."""
    reports = read_reports(folder)
    if not reports:
        return (
            f"no process has reported to {escape(str(folder))}: run_workers(..., folder=) or, in others, "
            "loopsafe_db.integrations.reports.report_to(folder) names it"
        )
    now = _figures(f"processes of {folder}, now", _NOW, reports)
    done = _figures("since each process began", _DONE, reports)
    holders = Table(title="who has a connection", title_justify="left")
    for column in ("worker", "task", "for", "taken at"):
        holders.add_column(column, overflow="fold")
    held = [(holder, each) for each in reports for holder in each.stats.holders]
    for holder, each in sorted(held, key=lambda pair: -pair[0].seconds):
        cells = (_name(each), holder.task, f"{holder.seconds:.1f} s", holder.place)
        holders.add_row(*map(escape, cells), style=_style(each))
    return Group(now, done, holders)


def _figures(title: str, columns: _Columns, reports: Sequence[ProcessReport]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("worker", *columns):
        table.add_column(column, overflow="fold")
    for each in reports:
        cells = (_name(each), *(str(figure(each)) for figure in columns.values()))
        table.add_row(*map(escape, cells), style=_style(each))
    return table


def _name(report: ProcessReport) -> str:
    silent = f" (silent for {report.silent_for:.0f} s)" if report.silent_for else ""
    return report.worker_id + silent


def _style(report: ProcessReport) -> str | None:
    return "dim" if report.ended else "red" if report.silent_for else None


def _complain(text: str) -> None:
    Console(stderr=True).print(f"[red]error:[/] {escape(text)}", soft_wrap=True)


def _refuse(text: str) -> NoReturn:
    _complain(text)
    raise typer.Exit(WRONG_USE)
