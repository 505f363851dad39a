"""Tracks that begin late: who may say so, in which order, and what becomes of the turns."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from reflector_workers.domain import MeetingError
from reflector_workers.offsets import read_starts
from reflector_workers.recordings import read_meeting
from reflector_workers.storage.speech import turns_controller
from tests.workers.encoding import encode, frames_of, later
from tests.workers.support import WriteWav, diarize

if TYPE_CHECKING:
    from pathlib import Path

RECORDING = 1763152299562
ANN, BOB = "12f0b87c-97d4-4dd3-a65c-cee1f854a79c", "52f7f48b-fbab-431f-9a50-87b9abfc8255"


def daily(participant: str, seconds: float, media: str = "cam-audio") -> str:
    """The name of a raw track of Daily's that begins so late."""
    return f"{RECORDING}-{participant}-{media}-{RECORDING + round(seconds * 1000)}"


def starts(folder: Path) -> dict[str, float]:
    return {track.speaker: track.starts_at for track in read_meeting(folder).tracks}


def say(folder: Path, entries: object) -> None:
    (folder / "tracks.json").write_text(json.dumps(entries))


def test_a_track_begins_with_the_meeting_if_nothing_says_otherwise(
    write_wav: WriteWav, tmp_path: Path
) -> None:
    write_wav("alice.wav")

    assert starts(tmp_path) == {"alice": 0}


@pytest.mark.parametrize("suffix", ["", ".webm"])
def test_daily_says_it_in_the_names_of_its_raw_tracks(
    sample: Path, tmp_path: Path, suffix: str
) -> None:
    for participant, seconds in ((ANN, 0.353), (BOB, 15.02)):
        target = tmp_path / f"{daily(participant, seconds)}{suffix}"
        encode(target, "libopus", frames_of(sample / "bob.wav", 4, 6), container="webm")

    assert starts(tmp_path) == {ANN: 0.353, BOB: 15.02}


def test_a_raw_track_of_daily_is_not_moved_twice_by_its_own_clock(
    sample: Path, tmp_path: Path
) -> None:
    frames = later(frames_of(sample / "bob.wav", 4, 6), 15.02)
    encode(tmp_path / daily(BOB, 15.02), "libopus", frames, container="webm")

    (track,) = read_meeting(tmp_path).tracks

    assert track.starts_at == 15.02
    assert track.duration == pytest.approx(2, abs=0.1)


def test_a_microphone_that_was_switched_off_and_on_is_two_tracks_of_one_speaker(
    sample: Path, tmp_path: Path
) -> None:
    for seconds in (1, 60):
        target = tmp_path / daily(BOB, seconds)
        encode(target, "libopus", frames_of(sample / "bob.wav", 4, 6), container="webm")

    assert [track.starts_at for track in read_meeting(tmp_path).tracks] == [1, 60]


def test_tracks_of_two_recordings_of_daily_are_refused(write_wav: WriteWav, tmp_path: Path) -> None:
    write_wav(f"{daily(ANN, 1)}.wav")
    write_wav(f"9{daily(BOB, 1)[1:]}.wav")

    with pytest.raises(MeetingError, match="tracks are of 2 recordings"):
        read_meeting(tmp_path)


def test_what_daily_recorded_of_a_camera_is_left_out_and_named(
    write_wav: WriteWav, tmp_path: Path
) -> None:
    write_wav(f"{daily(ANN, 1)}.wav")
    video = daily(ANN, 1, "cam-video")
    (tmp_path / video).write_bytes(b"VP8")

    assert read_meeting(tmp_path).left_out == (video,)


def test_a_webm_says_it_by_its_own_clock(sample: Path, tmp_path: Path) -> None:
    frames = later(frames_of(sample / "bob.wav", 4, 6), 7.5)
    encode(tmp_path / "bob.webm", "libopus", frames, container="webm")

    meeting = read_meeting(tmp_path)

    assert starts(tmp_path) == {"bob": pytest.approx(7.5, abs=0.03)}
    assert "bob.webm starts at 7.5" in "".join(meeting.notes)
    assert "its own clock says so" in "".join(meeting.notes)


def test_a_sidecar_overrides_the_name_and_the_clock_and_names_the_speaker(
    write_wav: WriteWav, tmp_path: Path
) -> None:
    write_wav(f"{daily(ANN, 3)}.wav")
    write_wav(f"{daily(BOB, 3)}.wav")
    say(
        tmp_path,
        {f"{daily(ANN, 3)}.wav": {"starts_at": 12.5, "speaker": "Ann Lee"}},
    )

    assert starts(tmp_path) == {"Ann_Lee": 12.5, BOB: 3}


def test_the_command_line_overrides_the_sidecar(write_wav: WriteWav, tmp_path: Path) -> None:
    write_wav("alice.wav")
    say(tmp_path, {"alice.wav": {"starts_at": 12.5}})

    (track,) = read_meeting(tmp_path, read_starts(["alice=3.25"])).tracks

    assert track.starts_at == 3.25


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"carol.wav": {}}, r"names carol\.wav, and the folder has no such recording"),
        ({"alice.wav": {"starts_at": -1}}, r"alice\.wav\.starts_at .*greater than or equal to 0"),
        ({"alice.wav": {"offset": 1}}, r"alice\.wav\.offset .*not permitted"),
        (["alice.wav"], r"tracks\.json cannot be used: .*an object"),
    ],
)
def test_a_sidecar_that_cannot_be_used_is_named(
    write_wav: WriteWav, tmp_path: Path, entries: object, complaint: str
) -> None:
    write_wav("alice.wav")
    say(tmp_path, entries)

    with pytest.raises(MeetingError, match=complaint):
        read_meeting(tmp_path)


@pytest.mark.parametrize("argument", ["alice", "alice=", "=3", "alice=soon", "alice=-1"])
def test_an_argument_that_is_no_speaker_and_seconds_is_refused(argument: str) -> None:
    with pytest.raises(MeetingError, match="give a speaker and seconds"):
        read_starts([argument])


def test_a_speaker_who_has_no_track_is_refused(write_wav: WriteWav, tmp_path: Path) -> None:
    write_wav("alice.wav")

    with pytest.raises(MeetingError, match="--starts names bob, and the tracks are of alice"):
        read_meeting(tmp_path, {"bob": 1})


def test_the_turns_are_in_the_meetings_time(storage: None, short_meeting: Path) -> None:
    say(short_meeting, {"bob.wav": {"starts_at": 100}})

    final = diarize(short_meeting, starts={"alice": 50})

    turns = asyncio.run(turns_controller.get_by_meeting(final["meeting_id"]))
    first = {turn.speaker: turn.start for turn in reversed(turns)}
    assert first == {"alice": pytest.approx(51, abs=0.1), "bob": pytest.approx(105.4, abs=0.1)}
