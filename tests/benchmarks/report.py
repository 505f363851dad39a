"""The report: a page for the docs with its plot, and the same figures for the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from tests.benchmarks import timeline
from tests.benchmarks.cases import OURS, TIMELINE
from tests.benchmarks.figures import Figure, Goal, Spread, Track
from tests.benchmarks.plot import Bar, Panel, draw, duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.benchmarks.rounds import Result

_PAGE = Path(__file__).with_name("page.md")
_REST = Path(__file__).with_name("rest.md")
_PLOT = "benchmarks.svg"
_PLOTTED = ("run", "loop")


@dataclass(frozen=True)
class Report:
    """All that a run found out.

    Attributes:
        versions: By what they are versions of.
        fixtures: The section on what a database costs a test.
    """

    results: Sequence[Result]
    command: str
    date: str
    rounds: int
    versions: dict[str, str]
    fixtures: str = ""

    def write(self, folder: Path) -> Path:
        """Write page and plot; the page's path."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _PLOT).write_text(self.plot(), encoding="utf-8")
        page = folder / "benchmarks.md"
        page.write_text(self.page(), encoding="utf-8")
        return page

    def page(self) -> str:
        page = Template(_PAGE.read_text(encoding="utf-8")).substitute(
            command=self.command,
            date=self.date,
            plot=_PLOT,
            rounds=self.rounds,
            versions="\n".join(
                f"| {name} | {version} |" for name, version in self.versions.items()
            ),
            results="\n\n".join(_section(r) for r in self.results if r.case != TIMELINE),
            fixtures=self.fixtures,
            rest="\n\n".join(_rest(r) for r in self.results if r.case == TIMELINE and r.is_right()),
        )
        return page.strip() + "\n"

    def plot(self) -> str:
        return draw([_panel(r) for r in self.results if r.case.name in _PLOTTED and _bars(r)])

    def text(self) -> str:
        """The figures alone, in columns."""
        lines = [line for result in self.results for line in _lines(result)]
        return "\n".join([*lines, self.fixtures])


def _section(result: Result) -> str:
    parts = [f"### {result.case.title}"]
    if result.case.text:
        parts.append(result.case.text)
    parts.append(_table(_FIGURE_HEAD, [_figure_cells(figure) for figure in result.figures]))
    parts += [f"Note: {complaint}." for complaint in result.complaints()]
    if result.case.ratios:
        parts.append(_table(_TIME_HEAD, _time_cells(result)))
    return "\n\n".join(parts)


def _rest(result: Result) -> str:
    text = Template(_REST.read_text(encoding="utf-8"))
    return text.substitute(steps=_table(_STEP_HEAD, timeline.rows(result))).strip()


_FIGURE_HEAD = ("", "median", "quartiles", "reach", "aim", "")
_TIME_HEAD = ("time of one operation", "median", "quartiles")
_STEP_HEAD = ("µs, medians", "in a run of its own", "in one long loop", "bare")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ruler, *rows])


def _figure_cells(figure: Figure) -> list[str]:
    space = " " if figure.unit == "MiB" else ""
    value = f"{_number(figure.spread.median)}{space}{figure.unit}"
    goal = figure.goal
    return [
        figure.what,
        f"**{value}**",
        _quartiles(figure.spread),
        "" if goal is None else _limit(goal, goal.reach),
        "" if goal is None or goal.aim is None else _limit(goal, goal.aim),
        figure.verdict,
    ]


def _time_cells(result: Result) -> list[list[str]]:
    return [
        [name, duration(micros.median), f"{duration(micros.low)} to {duration(micros.high)}"]
        for name, micros in _times(result)
    ]


def _times(result: Result) -> Iterator[tuple[str, Spread]]:
    for name, track in result.tracks.items():
        if track.took_part:
            yield name, _microseconds(track)


def _microseconds(track: Track) -> Spread:
    return Spread.of([seconds * 1e6 for seconds in track.seconds.values()])


def _quartiles(spread: Spread) -> str:
    if spread.low == spread.high:
        return ""
    return f"{_number(spread.low)} to {_number(spread.high)}"


def _limit(goal: Goal, value: float) -> str:
    return f"{'≤' if goal.side == 'at most' else '≥'} {_number(value)}"


def _number(value: float) -> str:
    if value == int(value):
        return str(int(value))
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _panel(result: Result) -> Panel:
    return Panel(result.case.title.replace("`", ""), _bars(result))


def _bars(result: Result) -> list[Bar]:
    bars = [Bar(name, spread, is_ours=name == OURS) for name, spread in _times(result)]
    return sorted(bars, key=lambda bar: bar.spread.median)


def _lines(result: Result) -> Iterator[str]:
    yield f"\n{result.case.name}: {result.case.title.replace('`', '')}"
    if result.case == TIMELINE and result.is_right():
        for title, *cells in timeline.rows(result):
            yield f"  {title:<62} " + " ".join(f"{cell.strip('*'):>10}" for cell in cells)
    for figure in result.figures:
        what, value, quartiles, reach, aim, verdict = _figure_cells(figure)
        value = value.strip("*")
        yield f"  {what:<62} {value:>10}  {quartiles:<16} {reach:<8} {aim:<8} {verdict}".rstrip()
    for name, median, quartiles in _time_cells(result) if result.case.ratios else ():
        yield f"  {name:<62} {median:>10}  {quartiles}"
    for complaint in result.complaints():
        yield f"  note: {complaint}"
