"""The command line: ``python -m reflector_workers demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from loopsafe_db import LoopsafeError
from loopsafe_db.integrations.conductor import run_workers
from reflector_workers.conductor import ConductorError
from reflector_workers.demo import SAMPLE, DemoOptions, run_demo
from reflector_workers.domain import MeetingError
from reflector_workers.fleet import MODULES, PROCESSES
from reflector_workers.offsets import read_starts
from reflector_workers.report import show_broken_outcome, show_outcome

if TYPE_CHECKING:
    from reflector_workers.outcome import Outcome

_BAD_INPUT = 2
_INTERRUPTED = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


def main() -> None:
    """Run the command line."""
    app()


@app.callback()
def _root() -> None:
    """Reflector's multitrack diarization as Conductor workers on loopsafe_db."""


@app.command()
def demo(
    meeting: Annotated[
        Path | None,
        typer.Option(help="A folder with one recording per participant; else the sample."),
    ] = None,
    conductor: Annotated[
        str | None,
        typer.Option(help="stand-in (default), real, or an API URL; else CONDUCTOR_SERVER_URL."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where RTTM and SVG go.")] = Path("demo_output"),
    repeat: Annotated[int, typer.Option(min=1, max=50, help="Workflows at once.")] = 4,
    collar: Annotated[
        float, typer.Option(min=0, help="Seconds not scored on each side of true boundaries.")
    ] = 0.0,
    starts: Annotated[
        list[str] | None,
        typer.Option(help="When a track begins, in seconds: alice=12.5 (repeatable)."),
    ] = None,
    broken: Annotated[  # noqa: FBT002  (typer makes a switch of it)
        bool, typer.Option("--broken", help="With the singleton that loopsafe_db replaces.")
    ] = False,
) -> None:
    """Run a meeting through real worker processes and say what happened."""
    console = Console()
    try:
        options = DemoOptions(
            meeting or SAMPLE, conductor, output, repeat, collar, read_starts(starts or [])
        )
        raise typer.Exit(_broken(options, console) if broken else _working(options, console))
    except (MeetingError, LoopsafeError, ConductorError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(_BAD_INPUT) from None
    except KeyboardInterrupt:
        console.print("Stopped, and nothing left running")
        raise typer.Exit(_INTERRUPTED) from None


@app.command()
def shadow(
    meeting: Annotated[Path | None, typer.Option(help="As for demo.")] = None,
    conductor: Annotated[str | None, typer.Option(help="As for demo.")] = None,
    repeat: Annotated[int, typer.Option(min=1, max=50, help="Meetings by each road.")] = 3,
    broker: Annotated[str | None, typer.Option(help="A Redis for Celery; else a folder.")] = None,
) -> None:
    """Run meetings through Conductor and Celery and compare what they store."""
    from reflector_workers.shadow import run_shadow

    console = Console()
    options = DemoOptions(meeting or SAMPLE, conductor, Path(), repeat)
    try:
        differences = run_shadow(options, broker, console)
    except (MeetingError, LoopsafeError, ConductorError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(_BAD_INPUT) from None
    for line in differences:
        console.print(f"[red]{escape(line)}")
    console.print(
        f"{repeat} meetings by Conductor, {repeat} by Celery: {len(differences)} differences"
    )
    raise typer.Exit(1 if differences else 0)


@app.command()
def worker(
    conductor: Annotated[
        str, typer.Option(envvar="CONDUCTOR_SERVER_URL", help="Its API, http://host:port/api.")
    ],
    version: Annotated[str | None, typer.Option(help="Of the code; else a hash of it.")] = None,
    health_port: Annotated[int | None, typer.Option(help="For a health check.")] = None,
) -> None:
    """Run the fleet alone, until SIGTERM."""
    raise typer.Exit(
        run_workers(
            conductor, MODULES, processes=PROCESSES, version=version, health_port=health_port
        )
    )


def _working(options: DemoOptions, console: Console) -> int:
    outcome = run_demo(options, console)
    show_outcome(outcome, console)
    return 0 if _succeeded(outcome) else 1


def _succeeded(outcome: Outcome) -> bool:
    return (
        outcome.result is not None
        and outcome.result.runs_agree
        and outcome.failed_jobs == 0
        and outcome.sessions_left_open == 0
        and not outcome.strangers
    )


def _broken(options: DemoOptions, console: Console) -> int:
    from reflector_workers.demo_broken import BrokenWorker

    outcome = run_demo(options, console, BrokenWorker)
    show_broken_outcome(outcome, console)
    if outcome.failed_jobs:
        return 0
    console.print("[red]Nothing failed this time: --repeat 10 gives the bug more chances")
    return 1
