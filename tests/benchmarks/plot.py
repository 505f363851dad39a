"""A bar chart as SVG: time per operation, with the quartiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.benchmarks.figures import Spread

WIDTH, LEFT, RIGHT = 760, 210, 120
ROW, HEAD, FOOT = 26, 44, 34
STYLE = """<style>
  .paper { fill: #ffffff } .ink { fill: #24292f } .spread { stroke: #24292f; stroke-width: 2 } .rule { stroke: #d0d7de }
  .ours { fill: #0f8a6d } .others { fill: #8c959f }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #131416 } .ink { fill: #d7dbe0 } .spread { stroke: #d7dbe0 } .rule { stroke: #33373d }
    .ours { fill: #2ea98c } .others { fill: #6e7681 }
  }
</style>"""


@dataclass(frozen=True)
class Bar:
    """One contender: microseconds for one operation."""

    name: str
    spread: Spread
    is_ours: bool


@dataclass(frozen=True)
class Panel:
    """Bars on a scale of their own."""

    title: str
    bars: Sequence[Bar]

    @property
    def height(self) -> int:
        return HEAD + ROW * len(self.bars) + FOOT


class Scale:
    """Microseconds to pixels, from zero on, so that a bar of twice the length is twice the time."""

    def __init__(self, longest: float) -> None:
        self._step = _round_step(longest / 4)
        self._last = math.ceil(longest / self._step)

    def x(self, value: float) -> float:
        return LEFT + value / (self._step * self._last) * (WIDTH - LEFT - RIGHT)

    def ticks(self) -> list[float]:
        return [self._step * number for number in range(self._last + 1)]


def _round_step(value: float) -> float:
    """Give the least of 1, 2, 5, 10, 20, … that is not below `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= value)


def draw(panels: Sequence[Panel]) -> str:
    """Give the SVG document: panels below each other."""
    height = sum(panel.height for panel in panels)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13" role="img">',
        f"<title>{escape('; '.join(panel.title for panel in panels))}</title>",
        STYLE,
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>',
    ]
    top = 0
    for panel in panels:
        lines += [f'<g transform="translate(0 {top})">', *_panel(panel), "</g>"]
        top += panel.height
    return "\n".join([*lines, "</svg>", ""])


def duration(microseconds: float) -> str:
    """Write a duration with the unit that suits it, in three digits."""
    for unit, size in (("s", 1e6), ("ms", 1e3), ("µs", 1.0)):
        if microseconds >= size:
            return f"{_three_digits(microseconds / size)} {unit}"
    return f"{_three_digits(microseconds * 1000)} ns"


def _tick(microseconds: float) -> str:
    return f"{microseconds / 1000:g} ms" if microseconds >= 1000 else f"{microseconds:g} µs"


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def _panel(panel: Panel) -> Iterator[str]:
    scale = Scale(max(bar.spread.high for bar in panel.bars))
    bottom = HEAD + ROW * len(panel.bars)
    yield _text(12, 24, panel.title, 'font-weight="bold"')
    for tick in scale.ticks():
        x = scale.x(tick)
        yield f'<path d="M{x:.1f} {HEAD - 6}V{bottom}" class="rule"/>'
        yield _text(x, bottom + 16, _tick(tick), 'text-anchor="middle"')
    for number, bar in enumerate(panel.bars):
        yield from _bar(bar, HEAD + ROW * number, scale)


def _bar(bar: Bar, y: int, scale: Scale) -> Iterator[str]:
    low, middle, high = (scale.x(v) for v in (bar.spread.low, bar.spread.median, bar.spread.high))
    kind = "ours" if bar.is_ours else "others"
    weight = 'font-weight="bold"' if bar.is_ours else ""
    yield _text(LEFT - 8, y + 14, bar.name, f'text-anchor="end" {weight}')
    yield f'<rect x="{LEFT}" y="{y}" width="{middle - LEFT:.1f}" height="18" class="{kind}"/>'
    yield f'<path d="M{low:.1f} {y + 9}H{high:.1f}" class="spread"/>'
    yield _text(max(middle, high) + 8, y + 14, duration(bar.spread.median), weight)


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y}" class="ink" {attributes}>{escape(text)}</text>'
