"""Bad input ends the command with one clear error, before anything is started."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from loopsafe_db.integrations.conductor import ProcessReport
from reflector_workers.cli import app
from reflector_workers.domain import Turn
from reflector_workers.outcome import Outcome, Result
from reflector_workers.progress import JobState, WorkflowState
from reflector_workers.recordings import read_meeting
from reflector_workers.storage.job_log import JobCounts
from tests.workers.running_demo import environment

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workers.support import WriteWav


def refused(*arguments: str) -> str:
    """The one error that the command prints."""
    result = CliRunner().invoke(app, ["demo", *arguments])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.stderr.split())


def test_a_missing_folder(tmp_path: Path) -> None:
    error = refused("--meeting", str(tmp_path / "nowhere"))

    assert error.startswith("error: ")
    assert "there is no such folder" in error


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "has no recording in it" in refused("--meeting", str(tmp_path))


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "alice.wav").touch()

    assert "alice.wav is empty" in refused("--meeting", str(tmp_path))


def test_two_tracks_of_one_speaker(write_wav: WriteWav, tmp_path: Path) -> None:
    shutil.copy(write_wav("alice.wav"), tmp_path / "Alice.wav")

    assert "name the same speaker" in refused("--meeting", str(tmp_path))


def test_a_reference_that_is_no_rttm(write_wav: WriteWav, tmp_path: Path) -> None:
    write_wav("alice.wav")
    (tmp_path / "reference.rttm").write_text("SPEAKER\n")

    assert "reference.rttm, line 1 has 1 columns" in refused("--meeting", str(tmp_path))


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "output").touch()

    assert "cannot be made: File exists" in refused("--output", str(tmp_path / "output"))


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("sqlite:///meeting.db", "needs PostgreSQL, not sqlite"),
        ("s3cret at the database", "LOOPSAFE_DB_URL is not a database URL"),
    ],
)
def test_a_database_of_the_wrong_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, complaint: str
) -> None:
    monkeypatch.setenv("LOOPSAFE_DB_URL", url)

    error = refused("--output", str(tmp_path))

    assert complaint in error
    assert "s3cret" not in error


def test_square_brackets_in_a_name_are_printed_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "standup [red]"
    folder.mkdir()

    assert "standup [red] has no recording" in refused("--meeting", str(folder))


def test_the_module_prints_the_error_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reflector_workers", "demo", "--meeting", str(tmp_path)]

    result = subprocess.run(
        command, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("worker", "status"), [("host/4711/new", 0), ("595f5ddc9711", 1)])
def test_the_demo_fails_where_a_stranger_did_a_job(
    worker: str, status: int, write_wav: WriteWav, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_wav("alice.wav").parent
    job = JobState(job_type="finalize", status="COMPLETED", reason="", worker_id=worker)
    ours = ProcessReport.of_this_process("host/4711/new", "finalize", 0, ended=True)
    outcome = Outcome(
        meeting=read_meeting(folder, {}),
        collar=0.0,
        workflows=[WorkflowState(id="1", status="COMPLETED", reason="", jobs=(job,))],
        result=Result(
            [(Turn(speaker="alice", start=0, end=1),)], [], [], None, JobCounts(1, 1, 1, 1, 1)
        ),
        processes=[ours],
        process_count=1,
        sessions_when_done=1,
        sessions_left_open=0,
        log="",
    )
    monkeypatch.setattr("reflector_workers.cli.run_demo", lambda *_: outcome)

    result = CliRunner().invoke(app, ["demo", "--meeting", str(folder)])

    assert result.exit_code == status, result.output
    assert ("workers that are not ours: 595f5ddc9711" in result.output) is bool(status)
