"""The timeline's page in a browser: what its wheel, its keys, its buttons and a drag show of the meeting."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db.errors import ServerUnavailableError
from reflector_workers.domain import Turn
from reflector_workers.timeline import draw_page, make_timeline
from tests.conftest import skip_without

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DURATION = 600
QUARTER, MIDDLE = 0.25, 0.5  # of the window, where the pointer or nothing points
# Each action is done in the page, which then tells what is in sight: seconds from the left edge to the right one.
SCRIPT = """
<script>
{
  const wheel = (deltaY, deltaX = 0) => view.dispatchEvent(
    new WheelEvent("wheel", {deltaY, deltaX, clientX: edge + %(quarter)s * view.clientWidth, cancelable: true}));
  const key = (key, more = {}) => window.dispatchEvent(new KeyboardEvent("keydown", {key, ...more}));
  const click = (id) => document.getElementById(id).click();
  const point = (type, target, x) => target.dispatchEvent(
    new PointerEvent(type, {clientX: edge + x * view.clientWidth, bubbles: true}));
  const edge = view.getBoundingClientRect().left;
  const told = [];
  for (const act of [() => {}, %(actions)s]) {
    act();
    view.dispatchEvent(new Event("scroll"));  // the browser's own comes with the next frame
    const marks = [...document.querySelectorAll("#ruler span")].map((mark) => mark.textContent);
    told.push({left: timeAt(edge), right: timeAt(edge + view.clientWidth), marks, at: at.textContent});
  }
  document.title = JSON.stringify(told);
}
</script>
</body>
"""


@pytest.fixture
def chromium() -> str:
    with skip_without("Chromium"):
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            raise ServerUnavailableError("there is no chromium on PATH")
    return program


@pytest.fixture
def shown(chromium: str, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """What is in sight of a meeting of ten minutes, at first and after each action."""

    def shown(*actions: str) -> list[dict[str, Any]]:
        turns = [Turn(speaker="ann", start=0, end=5), Turn(speaker="bob", start=100, end=200)]
        page = draw_page(make_timeline("m", ["ann", "bob"], turns, DURATION))
        calls = ", ".join(f"() => {action}" for action in actions)
        script = SCRIPT % {"quarter": QUARTER, "actions": calls}
        (tmp_path / "page.html").write_text(page.replace("</body>", script), encoding="utf-8")
        done = subprocess.run(
            [
                *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
                *(f"--user-data-dir={tmp_path}/profile", f"file://{tmp_path}/page.html"),
            ],
            capture_output=True,
            text=True,
            timeout=100,
        )
        title = re.search(r"<title>(\[.*?)</title>", done.stdout)
        assert title, done.stderr
        told: list[dict[str, Any]] = json.loads(unescape(title[1]))
        return told

    return shown


def seconds(of: dict[str, Any]) -> float:
    """How much of the meeting is in sight."""
    return float(of["right"] - of["left"])


def test_the_wheel_zooms_where_it_points_and_back(shown: Callable[..., Any]) -> None:
    whole, near, nearer, back = shown("wheel(-300)", "wheel(-300)", "wheel(900)")

    assert (whole["left"], whole["right"]) == (0, DURATION)
    for before, after in ((whole, near), (near, nearer)):
        assert seconds(after) == pytest.approx(seconds(before) / 2.71828, rel=0.01)
        pointed = after["left"] + QUARTER * seconds(after)
        assert pointed == pytest.approx(QUARTER * DURATION, abs=1)  # pixels are whole
    assert (back["left"], back["right"]) == (0, DURATION)


@pytest.mark.parametrize(
    ("closer", "farther", "fit"),
    [
        ("key('+')", "key('-')", "key('0')"),
        ("key('=')", "key('-')", "key('0')"),
        ("click('in')", "click('out')", "click('fit')"),
    ],
)
def test_keys_and_buttons_zoom_into_the_middle(
    closer: str, farther: str, fit: str, shown: Callable[..., Any]
) -> None:
    _, near, nearer, farther_again, whole = shown(closer, closer, farther, fit)

    assert [DURATION / seconds(each) for each in (near, nearer, farther_again)] == [
        pytest.approx(factor, rel=0.01) for factor in (1.5, 2.25, 1.5)
    ]
    for each in (near, nearer, farther_again):
        assert each["left"] + MIDDLE * seconds(each) == pytest.approx(MIDDLE * DURATION, abs=1)
    assert (whole["left"], whole["right"]) == (0, DURATION)


def test_the_browsers_own_keys_and_a_sideways_wheel_do_not_zoom(shown: Callable[..., Any]) -> None:
    told = shown("key('+', {ctrlKey: true})", "key('-', {metaKey: true})", "wheel(-3, 100)")

    assert [seconds(each) for each in told] == [DURATION] * 4


def test_a_drag_moves_the_meeting_until_the_button_is_let_go(shown: Callable[..., Any]) -> None:
    _, near, held, dragged, _, after = shown(
        "wheel(-300)",
        "point('pointerdown', view, 0.5)",
        "point('pointermove', view, 0.25)",
        "point('pointerup', window, 0.25)",
        "point('pointermove', view, 0.5)",
    )

    assert held["left"] == near["left"]
    assert dragged["left"] - near["left"] == pytest.approx(0.25 * seconds(near), abs=1)
    assert after["left"] == dragged["left"]
    for each, part in ((dragged, 0.25), (after, 0.5)):
        pointed = each["left"] + part * seconds(each)
        assert each["at"] == "{:.0f}:{:04.1f}".format(*divmod(round(pointed, 1), 60))


def test_at_the_closest_the_ruler_still_has_marks_and_few(shown: Callable[..., Any]) -> None:
    whole, closest = shown("wheel(-30000)")

    assert seconds(closest) == pytest.approx(2, rel=0.01)
    assert whole["marks"][0] == "0:00"
    assert "2:30.0" in closest["marks"]  # where the wheel pointed
    assert max(len(whole["marks"]), len(closest["marks"])) < 20
