"""What shadow mode calls a difference: two roads have stored other turns or documents for one meeting."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from loopsafe_db import get_database
from reflector_workers.cli import app
from reflector_workers.shadow import differences
from tests.workers.support import diarize

if TYPE_CHECKING:
    from pathlib import Path

WRONG_SPEAKER = "UPDATE reflector.turns SET speaker = 'nobody' WHERE meeting_id = :id"
WRONG_PICTURE = "UPDATE reflector.outputs SET content = '' WHERE meeting_id = :id AND kind = 'svg'"


@pytest.mark.parametrize(
    ("wrong", "kind"), [(WRONG_SPEAKER, "turns"), (WRONG_PICTURE, "svg")], ids=["turns", "svg"]
)
def test_what_one_road_has_stored_otherwise_is_named(
    wrong: str, kind: str, storage: None, short_meeting: Path
) -> None:
    ours, shadow = (int(diarize(short_meeting, run)["meeting_id"]) for run in ("w-1", "w-2"))
    assert asyncio.run(differences([ours], [shadow])) == []

    asyncio.run(get_database().execute(wrong, {"id": shadow}))

    named = [f"Celery, meeting {shadow}: other {kind}"]
    assert asyncio.run(differences([ours], [shadow])) == named


@pytest.mark.parametrize("found", [[], ["Celery, meeting 7: other turns"]])
def test_the_command_fails_where_there_is_a_difference(
    found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reflector_workers.shadow.run_shadow", lambda *_: found)

    result = CliRunner().invoke(app, ["shadow"])

    assert result.exit_code == len(found), result.output
    assert all(line in result.output for line in found)
