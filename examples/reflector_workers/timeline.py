"""Who spoke when, as pictures: an SVG to print, and a page to zoom in.

Each speaker has a row. With a reference there are three lanes in it: the true turns, the found ones,
and what is wrong with them. Found speakers are in the row of the true one that they were taken for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from reflector_workers.error_rate import compare, mistakes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from reflector_workers.domain import Turn

_PAGE = Template(Path(__file__).with_name("timeline.html").read_text(encoding="utf-8"))
_LEFT, _WIDTH, _TOP = 190, 930, 62
_MOST_TICKS = 10
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933", "#882255")
_TRUE = "#8a8f98"
_WRONG = {"missed": "#d11141", "false alarm": "#f5a300", "confused": "#7b2fbe"}
_LONGEST_LABEL = 24


@dataclass(frozen=True)
class Bar:
    """A stretch of time, in seconds, and what is said to who points at it."""

    start: float
    end: float
    colour: str
    text: str


@dataclass
class Row:
    """A speaker's lanes; without a reference only `found` has bars."""

    label: str
    colour: str
    true: list[Bar] = field(default_factory=list)
    found: list[Bar] = field(default_factory=list)
    wrong: list[Bar] = field(default_factory=list)


@dataclass(frozen=True)
class Timeline:
    """A meeting's rows, from top to bottom, over more than 0 seconds."""

    title: str
    duration: float
    rows: Sequence[Row]
    compared: bool

    @property
    def lanes(self) -> list[tuple[str, int, int]]:
        """The lanes of a row: a field of `Row`, where it begins below the row's top, its height."""
        if self.compared:
            return [("true", 0, 11), ("found", 12, 14), ("wrong", 27, 6)]
        return [("found", 0, 22)]

    @property
    def row_height(self) -> int:
        return 44 if self.compared else 34


def make_timeline(
    title: str,
    speakers: Iterable[str],
    turns: Sequence[Turn],
    duration: float,
    reference: Sequence[Turn] = (),
) -> Timeline:
    """Put a meeting's turns into rows.

    Args:
        title: Shown above the picture.
        speakers: Who has a row, also without a turn; others who speak have theirs below.
        turns: Who was found to speak.
        duration: Seconds of the meeting; the picture covers later turns, too.
        reference: Who does speak, where that is known.
    """
    comparison = compare(reference, turns) if reference else None
    rows = _Rows(comparison.names if comparison else {})
    for speaker in speakers:
        rows.of_found(speaker)
    for turn in reference:
        bar = Bar(turn.start, turn.end, _TRUE, f"{turn.speaker} (reference)")
        rows.of_true(turn.speaker).true.append(bar)
    for turn in turns:
        row = rows.of_found(turn.speaker)
        row.found.append(Bar(turn.start, turn.end, row.colour, turn.speaker))
    for wrong in mistakes(comparison) if comparison else ():
        row = rows.of_true(wrong.name) if wrong.is_true else rows.of_found(wrong.name)
        row.wrong.append(Bar(wrong.start, wrong.end, _WRONG[wrong.kind], wrong.kind))
    last = max((turn.end for turn in (*turns, *reference)), default=0.0)
    return Timeline(title, max(duration, last), rows.in_order, comparison is not None)


class _Rows:
    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._rows: dict[tuple[str, bool], Row] = {}

    @property
    def in_order(self) -> Sequence[Row]:
        return tuple(self._rows.values())

    def of_true(self, name: str) -> Row:
        return self._row((name, True), name)

    def of_found(self, name: str) -> Row:
        if name not in self._names:
            return self._row((name, False), name)
        true = self._names[name]
        return self._row((true, True), true if true == name else f"{true} ({name})")

    def _row(self, key: tuple[str, bool], label: str) -> Row:
        if key not in self._rows:
            self._rows[key] = Row(label, _COLOURS[len(self._rows) % len(_COLOURS)])
        return self._rows[key]


def draw_svg(timeline: Timeline) -> str:
    """The meeting as one SVG document; names are escaped, colours suit colour-blind readers."""
    scale = _WIDTH / timeline.duration
    bottom = _TOP + timeline.row_height * len(timeline.rows)
    parts = [_head(timeline.title, _LEFT + _WIDTH + 30, bottom + 34)]
    if timeline.compared:
        parts.extend(_legend())
    parts.extend(_ruler(timeline.duration, scale, bottom))
    for index, row in enumerate(timeline.rows):
        top = _TOP + index * timeline.row_height
        parts.append(_label(row.label, top))
        for lane, below, height in timeline.lanes:
            parts.extend(_bars(getattr(row, lane), top + below, height, scale))
    return "\n".join([*parts, "</svg>\n"])


def draw_page(timeline: Timeline) -> str:
    """The same as a page of HTML that needs nothing else: wheel, keys and buttons zoom it."""
    height = timeline.row_height
    rows = [
        f'<rect x="{bar.start:.3f}" y="{index * height + 5 + below}" fill="{bar.colour}" '
        f'width="{bar.end - bar.start:.3f}" height="{tall}" stroke="{bar.colour}">'
        f"<title>{escape(_hover(bar))}</title></rect>"
        for index, row in enumerate(timeline.rows)
        for lane, below, tall in timeline.lanes
        for bar in getattr(row, lane)
    ]
    return _PAGE.substitute(
        title=escape(timeline.title),
        duration=f"{timeline.duration:.3f}",
        height=height * len(timeline.rows),
        row_height=height,
        labels="\n".join(f"<li>{escape(row.label)}</li>" for row in timeline.rows),
        bars="\n".join(rows),
        legend="\n".join(_page_legend()) if timeline.compared else "",
    )


def _head(title: str, width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        f'<text x="10" y="24" font-size="16" fill="#222222">{escape(title)}</text>'
    )


def _kinds() -> Iterator[tuple[str, str]]:
    yield "reference", _TRUE
    yield "found", _COLOURS[0]
    yield from _WRONG.items()


def _legend() -> Iterator[str]:
    for index, (kind, colour) in enumerate(_kinds()):
        x = _LEFT + index * 110
        yield f'<rect x="{x}" y="32" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{x + 17}" y="43" fill="#555555">{kind}</text>'


def _page_legend() -> Iterator[str]:
    for kind, colour in _kinds():
        yield f'<li><i style="background: {colour}"></i>{kind}</li>'


def _ruler(duration: float, scale: float, bottom: int) -> Iterator[str]:
    step = next((each for each in _STEPS if duration / each <= _MOST_TICKS), _STEPS[-1])
    for tick in range(int(duration / step) + 1):
        x = _LEFT + tick * step * scale
        yield (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{bottom}" stroke="#dddddd"/>'
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" '
            f'fill="#555555">{_clock(tick * step)}</text>'
        )


def _label(label: str, y: int) -> str:
    shown = label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
    return f'<text x="10" y="{y + 20}" fill="#222222">{escape(shown)}</text>'


def _bars(bars: Iterable[Bar], y: int, height: int, scale: float) -> list[str]:
    return [
        f'<rect x="{_LEFT + bar.start * scale:.2f}" y="{y}" rx="2" '
        f'width="{max(1.0, (bar.end - bar.start) * scale):.2f}" height="{height}" '
        f'fill="{bar.colour}"><title>{escape(_hover(bar))}</title></rect>'
        for bar in bars
    ]


def _hover(bar: Bar) -> str:
    return f"{bar.text} {_clock(bar.start)} to {_clock(bar.end)}"


def _clock(seconds: float) -> str:
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    of_hours = f"{hours}:{minutes:02d}" if hours else str(minutes)
    return f"{of_hours}:{rest / 10:04.1f}"
