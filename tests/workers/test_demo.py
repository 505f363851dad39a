"""The whole demo as a user runs it: a PostgreSQL, a Conductor, worker processes, and their end."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from reflector_workers.rttm import read_rttm_file
from tests.workers.conductor.conftest import skip_without_real_server
from tests.workers.running_demo import PATIENCE, Demo, Finished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STARTED = re.compile(r"^Conductor: ")
WORKING = re.compile(r"^[1-9]\d* of \d+ jobs done")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """Start demos; whatever is left of them is killed after the test."""
    started: list[Demo] = []

    def start(*arguments: str) -> Demo:
        folder = tmp_path / f"demo-{len(started)}"
        folder.mkdir()
        started.append(Demo(folder, *arguments))
        return started[-1]

    yield start
    for demo in started:
        demo.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The demo on the sample, once for all the tests that look at what it says."""
    return Demo(tmp_path_factory.mktemp("demo")).finish()


def test_no_job_fails(finished: Finished) -> None:
    assert finished.status == 0, finished.output
    assert finished.figure("jobs") == "24 done, 0 failed"
    assert finished.figure("workflows") == "4 at once"


def test_the_error_rate_on_the_sample_is_under_ten_percent(finished: Finished) -> None:
    (rate,) = re.findall(r"error rate: ([\d.]+)%", finished.output)

    assert float(rate) < 10


def test_no_connection_is_left_open(finished: Finished) -> None:
    assert finished.figure("left open after the stop") == "0"
    assert int(finished.figure("connections opened")) > 0


def test_every_process_ends_in_good_order(finished: Finished) -> None:
    assert finished.figure("worker processes") == "5, 5 ended in good order"


def test_each_sync_job_has_an_event_loop_of_its_own(finished: Finished) -> None:
    # 20 jobs of sync workers have a loop each; the async worker's process has one for all its jobs
    assert int(finished.figure("event loops seen")) == 21


def test_progress_is_shown_while_it_works(finished: Finished) -> None:
    assert len(re.findall(r"^\d+ of 24 jobs done, 0 failed$", finished.output, re.MULTILINE)) >= 2


def test_the_documents_are_written(finished: Finished) -> None:
    turns = read_rttm_file(finished.folder / "sample_meeting.rttm")

    assert [turn.speaker[0] for turn in turns] == list("abcacac")
    assert (finished.folder / "sample_meeting.svg").read_text().startswith("<svg")
    assert ">false alarm 0:04" in (finished.folder / "sample_meeting.html").read_text()


@pytest.mark.real_conductor
@pytest.mark.timeout(1800)  # fetching the server may come first
def test_the_real_conductor_does_the_same(start: Callable[..., Demo]) -> None:
    skip_without_real_server()

    finished = start("--conductor", "real").finish(1800)

    assert finished.status == 0, finished.output
    assert finished.figure("jobs") == "24 done, 0 failed"
    assert finished.figure("left open after the stop") == "0"


def test_a_meeting_of_ones_own_without_a_reference(
    start: Callable[..., Demo], short_meeting: Path
) -> None:
    finished = start("--meeting", str(short_meeting), "--repeat", "1").finish()

    assert finished.status == 0, finished.output
    assert finished.figure("jobs") == "5 done, 0 failed"
    assert "no reference.rttm to compare with" in finished.output


def test_the_turns_begin_when_the_command_line_says(
    start: Callable[..., Demo], short_meeting: Path
) -> None:
    starts = ("--starts", "alice=50", "--starts", "bob=100.5")

    finished = start("--meeting", str(short_meeting), "--repeat", "1", *starts).finish()

    assert finished.status == 0, finished.output
    turns = read_rttm_file(finished.folder / "short.rttm")
    first = {turn.speaker: turn.start for turn in reversed(turns)}
    assert first == {"alice": pytest.approx(51, abs=0.1), "bob": pytest.approx(105.9, abs=0.1)}


def test_a_database_of_ones_own_can_be_used_again_and_again(
    start: Callable[..., Demo],
    short_meeting: Path,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOPSAFE_DB_URL", postgres_url)

    for _ in range(2):
        finished = start("--meeting", str(short_meeting), "--repeat", "1").finish()

        assert finished.status == 0, finished.output
        assert "PostgreSQL: the one of LOOPSAFE_DB_URL" in finished.output


@pytest.mark.parametrize("moment", [STARTED, WORKING], ids=["at the start", "at work"])
def test_ctrl_c_stops_everything(start: Callable[..., Demo], moment: re.Pattern[str]) -> None:
    demo = start("--repeat", "2")
    demo.wait_for(moment)

    demo.send_to_all(signal.SIGINT)
    finished = demo.finish()

    assert finished.status == 130
    assert finished.output.endswith("Stopped, and nothing left running\n")
    assert demo.processes() == []


def test_sigterm_stops_everything(start: Callable[..., Demo]) -> None:
    demo = start("--repeat", "2")
    demo.wait_for(WORKING)

    demo.send(signal.SIGTERM)

    assert demo.finish().status == 143
    assert demo.processes() == []


def test_a_killed_demo_leaves_no_worker_behind(start: Callable[..., Demo]) -> None:
    demo = start("--repeat", "2")
    demo.wait_for(WORKING)
    left = demo.processes()

    demo.send(signal.SIGKILL)
    demo.finish()
    _, alive = psutil.wait_procs(left, timeout=PATIENCE)

    assert len(left) > 5
    assert alive == []


def test_the_singleton_fails_with_its_real_errors_and_the_demo_ends(
    start: Callable[..., Demo],
) -> None:
    finished = start("--broken").finish()

    assert finished.status == 0, finished.output
    assert re.search(
        "attached to a different loop|another operation is in progress|Event loop is closed",
        finished.output,
    )
    (failed,) = re.findall(r"^(\d+) failed jobs", finished.output, re.MULTILINE)
    assert int(failed) > 0
