"""A picture of who spoke when, as SVG: one row per speaker, one bar per turn."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reflector_workers.domain import Turn

_LEFT, _WIDTH, _ROW, _BAR, _TOP = 140, 960, 34, 22, 44
_TICKS = 8
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933", "#882255")


def draw_timeline(
    title: str, speakers: Sequence[str], turns: Iterable[Turn], duration: float
) -> str:
    """The meeting as one SVG document; names are escaped, colours suit colour-blind readers.

    Args:
        title: Shown above the picture.
        speakers: The rows, from top to bottom; also those who said nothing.
        turns: The bars; each speaker must be in `speakers`.
        duration: Seconds that the picture covers, more than 0.
    """
    scale = _WIDTH / duration
    bottom = _TOP + _ROW * len(speakers)
    rows = {speaker: _TOP + _ROW * index for index, speaker in enumerate(speakers)}
    colours = {speaker: _COLOURS[i % len(_COLOURS)] for i, speaker in enumerate(speakers)}
    return "\n".join(
        [
            _head(title, _LEFT + _WIDTH + 20, bottom + 34),
            *(_ruler(duration, scale, bottom)),
            *(_label(speaker, y) for speaker, y in rows.items()),
            *(_bar(turn, rows[turn.speaker], colours[turn.speaker], scale) for turn in turns),
            "</svg>\n",
        ]
    )


def _head(title: str, width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        f'<text x="10" y="24" font-size="16" fill="#222222">{escape(title)}</text>'
    )


def _ruler(duration: float, scale: float, bottom: int) -> list[str]:
    step = duration / _TICKS
    return [
        f'<line x1="{_LEFT + i * step * scale:.1f}" x2="{_LEFT + i * step * scale:.1f}" '
        f'y1="{_TOP - 8}" y2="{bottom}" stroke="#dddddd"/>'
        f'<text x="{_LEFT + i * step * scale:.1f}" y="{bottom + 18}" text-anchor="middle" '
        f'fill="#555555">{_clock(i * step)}</text>'
        for i in range(_TICKS + 1)
    ]


def _label(speaker: str, y: int) -> str:
    shown = speaker if len(speaker) <= 16 else f"{speaker[:15]}…"
    return f'<text x="10" y="{y + 16}" fill="#222222">{escape(shown)}</text>'


def _bar(turn: Turn, y: int, colour: str, scale: float) -> str:
    hover = f"{turn.speaker} {_clock(turn.start)} to {_clock(turn.end)}"
    return (
        f'<rect x="{_LEFT + turn.start * scale:.2f}" y="{y}" rx="3" '
        f'width="{max(1.0, turn.duration * scale):.2f}" height="{_BAR}" fill="{colour}">'
        f"<title>{escape(hover)}</title></rect>"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"
