"""How far a run is: a bar where rich is installed and somebody looks, else a line for each case."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress as RichProgress

    from tests.benchmarks.rounds import Progress


class Lines:
    """Names each case as it begins."""

    def begin(self, title: str, steps: int) -> None:
        print(f"{title}: {steps} rounds", file=sys.stderr, flush=True)

    def step(self) -> None:
        """Say nothing: a line per round would be too much."""


class Bars:
    """A bar for each case."""

    def __init__(self, progress: RichProgress) -> None:
        self._progress = progress
        self._current = progress.add_task("start", total=None, visible=False)

    def begin(self, title: str, steps: int) -> None:
        self._current = self._progress.add_task(title, total=steps)

    def step(self) -> None:
        self._progress.advance(self._current)


@contextmanager
def shown() -> Iterator[Progress]:
    """Give what suits this terminal."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
    except ImportError:
        yield Lines()
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), Elapsed())
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)
