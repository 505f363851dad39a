"""The picture is well-formed XML, whatever speakers and meetings are called."""

from __future__ import annotations

from xml.etree import ElementTree

from reflector_workers.domain import Turn
from reflector_workers.timeline import draw_timeline

SVG = "{http://www.w3.org/2000/svg}"


def bars(picture: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(picture)
    return [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]


def test_each_turn_is_a_bar_in_its_speakers_row() -> None:
    turns = [
        Turn(speaker="alice", start=0, end=5),
        Turn(speaker="bob", start=5, end=10),
        Turn(speaker="alice", start=8, end=10),
    ]

    first, second, third = bars(draw_timeline("standup", ["alice", "bob"], turns, 10))

    assert first.get("y") == third.get("y") != second.get("y")
    assert float(first.get("width", 0)) == float(second.get("width", 0))
    assert float(second.get("x", 0)) == float(first.get("x", 0)) + float(first.get("width", 0))


def test_names_are_escaped() -> None:
    name = "<script>alert('&\"')</script>"
    turns = [Turn(speaker=name, start=0, end=1)]

    picture = draw_timeline(name, [name], turns, 1)

    assert "<script" not in picture
    assert name in (ElementTree.fromstring(picture).findtext(f"{SVG}title") or "")
    assert name in (bars(picture)[0].findtext(f"{SVG}title") or "")


def test_a_very_short_turn_can_still_be_seen() -> None:
    (bar,) = bars(draw_timeline("m", ["a"], [Turn(speaker="a", start=0, end=0.01)], 7200))

    assert float(bar.get("width", 0)) >= 1


def test_who_said_nothing_has_a_row_too() -> None:
    picture = draw_timeline("standup", ["alice", "bob"], [], 10)

    assert bars(picture) == []
    assert "bob" in picture
