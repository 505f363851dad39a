"""The pictures are well-formed, whatever speakers and meetings are called, and show what is wrong."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

from reflector_workers.domain import Turn
from reflector_workers.timeline import Timeline, draw_page, draw_svg, make_timeline

SVG = "{http://www.w3.org/2000/svg}"
NAME = "<script>alert('&\"')</script> ${duration}"


def turn(speaker: str, start: float, end: float) -> Turn:
    return Turn(speaker=speaker, start=start, end=end)


def bars(picture: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(picture)
    return [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]


def lanes(timeline: Timeline, label: str) -> dict[str, list[tuple[float, float, str]]]:
    """The bars of a row, by lane."""
    (row,) = (row for row in timeline.rows if row.label == label)
    return {
        lane: [(bar.start, bar.end, bar.text) for bar in getattr(row, lane)]
        for lane, _, _ in timeline.lanes
    }


class Page(HTMLParser):
    """What a browser makes of a page, as far as the tests ask."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rects: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "rect":
            self.rects.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_each_turn_is_a_bar_in_its_speakers_row() -> None:
    turns = [turn("alice", 0, 5), turn("bob", 5, 10), turn("alice", 8, 10)]

    first, third, second = bars(draw_svg(make_timeline("standup", ["alice", "bob"], turns, 10)))

    assert first.get("y") == third.get("y") != second.get("y")
    assert float(first.get("width", 0)) == float(second.get("width", 0))
    assert float(second.get("x", 0)) == float(first.get("x", 0)) + float(first.get("width", 0))


def test_names_are_escaped() -> None:
    timeline = make_timeline(NAME, [NAME], [turn(NAME, 0, 1)], 1, [turn(f"{NAME}!", 0, 1)])

    picture, page = draw_svg(timeline), Page(draw_page(timeline))

    assert "<script" not in picture
    assert NAME in (ElementTree.fromstring(picture).findtext(f"{SVG}title") or "")
    assert NAME in (bars(picture)[0].findtext(f"{SVG}title") or "")
    assert page.tags.count("script") == 1
    assert page.text.count(NAME) >= 4


def test_a_very_short_turn_can_still_be_seen() -> None:
    timeline = make_timeline("m", ["a"], [turn("a", 0, 0.01)], 7200)

    (bar,) = bars(draw_svg(timeline))
    (rect,) = Page(draw_page(timeline)).rects

    assert float(bar.get("width", 0)) >= 1
    assert rect["stroke"]  # a page's strokes do not scale


def test_who_said_nothing_has_a_row_too() -> None:
    picture = draw_svg(make_timeline("standup", ["alice", "bob"], [], 10))

    assert bars(picture) == []
    assert "bob" in picture


def test_the_reference_is_beside_what_was_found_and_errors_are_marked() -> None:
    reference = [turn("Ann", 0, 10), turn("Bob", 10, 20)]
    found = [turn("ann", 1, 12), turn("bob", 12, 21), turn("carol", 30, 31)]

    timeline = make_timeline("standup", ["ann", "bob", "carol"], found, 40, reference)

    assert [row.label for row in timeline.rows] == ["Ann (ann)", "Bob (bob)", "carol"]
    assert lanes(timeline, "Ann (ann)") == {
        "true": [(0, 10, "Ann (reference)")],
        "found": [(1, 12, "ann")],
        "wrong": [(0, 1, "missed"), (10, 12, "confused")],
    }
    assert lanes(timeline, "Bob (bob)")["wrong"] == [(10, 12, "confused"), (20, 21, "false alarm")]
    assert lanes(timeline, "carol")["wrong"] == [(30, 31, "false alarm")]


def test_an_error_during_which_others_begin_and_end_is_one_bar() -> None:
    reference = [turn("a", 0, 10), turn("b", 2, 3)]

    timeline = make_timeline("m", ["b"], [turn("b", 2, 3)], 10, reference)

    assert lanes(timeline, "a")["wrong"] == [(0, 10, "missed")]


def test_who_is_only_in_the_reference_has_a_row() -> None:
    timeline = make_timeline("m", ["a"], [turn("a", 0, 1)], 5, [turn("a", 0, 1), turn("b", 3, 4)])

    assert [row.label for row in timeline.rows] == ["a", "b"]


def test_the_picture_covers_a_reference_that_is_longer_than_the_recordings() -> None:
    timeline = make_timeline("m", ["a"], [turn("a", 0, 1)], 2, [turn("a", 0, 9)])

    assert timeline.duration == 9


def test_both_pictures_have_the_same_bars() -> None:
    found, reference = [turn("a", 1, 3), turn("b", 4, 5)], [turn("a", 0, 3)]
    timeline = make_timeline("m", ["a", "b"], found, 5, reference)

    assert len(bars(draw_svg(timeline))) == len(Page(draw_page(timeline)).rects) == 2 + 1 + 2


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = draw_page(make_timeline("m", ["a"], [turn("a", 0, 1)], 1))

    assert re.findall(r"(?:src|href|@import|url\()", page) == []


def test_times_of_a_long_meeting_have_hours() -> None:
    picture = draw_svg(make_timeline("m", ["a"], [turn("a", 3599.96, 7300)], 10800))

    assert "a 1:00:00.0 to 2:01:40.0" in picture
