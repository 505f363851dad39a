"""A meeting's folder is refused before any job starts, with what is wrong, where, and the cure."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from reflector_workers.audio import Recording
from reflector_workers.domain import MeetingError
from reflector_workers.recordings import read_meeting, read_reference, read_track

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workers.support import WriteWav


def test_the_sample_has_one_track_per_participant_in_order_of_their_names(sample: Path) -> None:
    meeting = read_meeting(sample)

    assert [track.speaker for track in meeting.tracks] == ["alice", "bob", "carol"]
    assert meeting.duration == pytest.approx(28.977)
    assert len(read_reference(meeting.path, meeting.name)) == 7
    assert meeting.name == "sample_meeting"


def test_a_folder_without_a_reference_is_fine(write_wav: WriteWav, tmp_path: Path) -> None:
    write_wav("alice.wav")

    assert read_reference(read_meeting(tmp_path).path, "meeting") == ()


def test_suffixes_in_capitals_are_wav_files_too(write_wav: WriteWav, tmp_path: Path) -> None:
    write_wav("alice.WAV")

    assert len(read_meeting(tmp_path).tracks) == 1


def test_hidden_files_are_left_alone(write_wav: WriteWav, tmp_path: Path) -> None:
    write_wav("alice.wav")
    (tmp_path / "._alice.wav").write_bytes(b"what macOS puts beside a file")

    assert len(read_meeting(tmp_path).tracks) == 1


def test_blanks_in_a_name_become_underscores_because_rttm_has_columns(write_wav: WriteWav) -> None:
    assert read_track(write_wav("Ann  Lee.wav")).speaker == "Ann_Lee"


def test_a_recording_without_a_sample_is_refused(write_wav: WriteWav) -> None:
    with pytest.raises(MeetingError, match=r"alice\.wav has no audio in it\. Remove it"):
        read_track(write_wav("alice.wav", seconds=0))


def test_a_file_of_no_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "alice.wav").touch()

    with pytest.raises(MeetingError, match=r"alice\.wav is empty\. Remove it"):
        read_meeting(tmp_path)


def test_another_format_under_the_name_of_wav_is_refused(tmp_path: Path) -> None:
    (tmp_path / "alice.wav").write_bytes(b"ID3" + bytes(500))

    with pytest.raises(MeetingError, match=r"alice\.wav cannot be read as audio"):
        read_meeting(tmp_path)


def test_a_recorder_that_was_killed_leaves_a_wrong_length_and_a_usable_file(
    write_wav: WriteWav,
) -> None:
    path = write_wav("alice.wav", seconds=2)
    os.truncate(path, 44 + 16_000 * 2 + 1)  # the header, one second, and half a sample

    assert read_track(path).duration == 1.0
    assert sum(len(chunk) for chunk in Recording(path).read_chunks(16_000)) == 16_000 * 2


def test_the_last_chunk_is_filled_up_with_silence(write_wav: WriteWav) -> None:
    chunks = list(Recording(write_wav("alice.wav", seconds=0.1)).read_chunks(1_000))

    assert [len(chunk) for chunk in chunks] == [2_000, 2_000]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeetingError, match=r"nowhere: there is no such folder"):
        read_meeting(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder_is_refused(write_wav: WriteWav) -> None:
    with pytest.raises(MeetingError, match=r"alice\.wav is a file\. Give the folder"):
        read_meeting(write_wav("alice.wav"))


def test_an_empty_folder_is_refused_with_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(MeetingError, match=r"no recording in it\. Put one per participant"):
        read_meeting(tmp_path)


@pytest.mark.parametrize("twin", ["ALICE.wav", "alice.WAV", " alice.wav"])
def test_two_files_of_one_speaker_are_refused(
    write_wav: WriteWav, tmp_path: Path, twin: str
) -> None:
    shutil.copy(write_wav("alice.wav"), tmp_path / twin)

    with pytest.raises(MeetingError, match=r"name the same speaker, alice\. Rename"):
        read_meeting(tmp_path)


def test_a_name_of_blanks_names_no_speaker(write_wav: WriteWav) -> None:
    with pytest.raises(MeetingError, match="names no speaker"):
        read_track(write_wav(" .wav"))


def test_control_characters_of_a_name_cannot_reach_the_documents(write_wav: WriteWav) -> None:
    assert read_track(write_wav("al\x07ice\x1b[1m.wav")).speaker == "al_ice_[1m"


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are always UTF-8 there")
def test_a_name_that_is_not_utf8_is_refused_in_letters_that_can_be_printed(
    write_wav: WriteWav, tmp_path: Path
) -> None:
    write_wav("alice.wav").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav"))

    with pytest.raises(MeetingError, match=r"udcff\.wav': the name is not UTF-8") as caught:
        read_meeting(tmp_path)

    assert str(caught.value).isascii()


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "alice.wav").symlink_to(tmp_path / "gone.wav")

    with pytest.raises(MeetingError, match=r"alice\.wav cannot be read: No such file"):
        read_meeting(tmp_path)
