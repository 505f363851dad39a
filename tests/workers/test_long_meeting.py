"""A long meeting is diarized in little memory: minutes of it always, three hours where asked for."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.workers.long_meeting import MIB, run, summary, synthesise

if TYPE_CHECKING:
    from pathlib import Path

ASKED_FOR = "LOOPSAFE_TEST_LONG_MEETING"


@pytest.mark.parametrize(
    "hours",
    [
        0.1,
        pytest.param(
            3,
            marks=[
                pytest.mark.slow,
                pytest.mark.timeout(3 * 3600),
                pytest.mark.skipif(
                    ASKED_FOR not in os.environ,
                    reason=f"takes many minutes: set {ASKED_FOR}, or python -m tests.workers.long_meeting",
                ),
            ],
        ),
    ],
)
def test_eight_tracks_take_less_than_200_mib_per_process(hours: float, tmp_path: Path) -> None:
    synthesise(tmp_path / "meeting", 8, hours * 3600)

    measured = run(tmp_path / "meeting", tmp_path)

    print(summary(measured, hours, 8))
    output = measured.finished.output
    assert measured.finished.status == 0, output
    assert measured.finished.figure("jobs") == "11 done, 0 failed"
    assert measured.peaks[0] < 200 * MIB
    assert len(re.findall(r"^\d+ of 11 jobs done, 0 failed$", output, re.MULTILINE)) >= 3
    (rate,) = re.findall(r"error rate: ([\d.]+)%", output)
    assert float(rate) < 15
