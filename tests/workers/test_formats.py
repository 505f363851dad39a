"""Recordings as users have them: any format, cut off, damaged, with gaps; and what is said of it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import av
import pytest

from reflector_workers.audio import SAMPLE_BYTES, SAMPLE_RATE, Recording
from reflector_workers.domain import MeetingError
from reflector_workers.recordings import read_meeting, read_track
from reflector_workers.speech import detect_speech
from tests.workers.encoding import encode, frames_of, later

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workers.support import WriteWav

BEGINS, LASTS = 0.904, 3.224  # where bob speaks in the stretch that is encoded here
SECONDS = 5.0

FORMATS = {
    "wav of 8-bit integers": ("bob.wav", "pcm_u8", 16_000, "mono", None, {}),
    "wav of 24-bit integers, EXTENSIBLE": ("bob.wav", "pcm_s24le", 48_000, "stereo", None, {}),
    "wav of 32-bit integers": ("bob.wav", "pcm_s32le", 44_100, "stereo", None, {}),
    "wav of floats": ("bob.wav", "pcm_f32le", 44_100, "mono", None, {}),
    "wav of doubles": ("bob.wav", "pcm_f64le", 8_000, "stereo", None, {}),
    "wav of a telephone": ("bob.wav", "pcm_alaw", 8_000, "mono", None, {}),
    "RF64": ("bob.wav", "pcm_s16le", 44_100, "stereo", None, {"rf64": "always"}),
    "Wave64": ("bob.w64", "pcm_s16le", 44_100, "stereo", None, {}),
    "six channels": ("bob.wav", "pcm_s16le", 48_000, "5.1", None, {}),
    "FLAC": ("bob.flac", "flac", 44_100, "stereo", None, {}),
    "Ogg with Opus": ("bob.opus", "libopus", 48_000, "mono", "ogg", {}),
    "WebM": ("bob.webm", "libopus", 48_000, "stereo", None, {}),
    "WebM as a browser records": ("bob.webm", "libopus", 48_000, "mono", None, {"live": "1"}),
    "M4A": ("bob.m4a", "aac", 44_100, "stereo", None, {}),
    "MP3": ("bob.mp3", "libmp3lame", 44_100, "stereo", None, {}),
    "AIFF": ("bob.aiff", "pcm_s16be", 44_100, "mono", None, {}),
}


@pytest.fixture(params=FORMATS)
def recording(request: pytest.FixtureRequest, sample: Path, tmp_path: Path) -> Path:
    """Five seconds in which bob speaks, in each format."""
    name, codec, rate, layout, container, options = FORMATS[request.param]
    frames = frames_of(sample / "bob.wav", 4.5, 4.5 + SECONDS)
    return encode(
        tmp_path / name,
        codec,
        frames,
        rate=rate,
        layout=layout,
        container=container,
        options=options,
    )


@pytest.fixture
def bob(sample: Path, tmp_path: Path) -> Path:
    """The same as FLAC."""
    return encode(tmp_path / "bob.flac", "flac", frames_of(sample / "bob.wav", 4.5, 4.5 + SECONDS))


@pytest.fixture
def opus(sample: Path, tmp_path: Path) -> Path:
    """The same as Ogg with Opus, a page for each 0.1 s."""
    frames = frames_of(sample / "bob.wav", 4.5, 4.5 + SECONDS)
    options = {"page_duration": "100000"}
    return encode(tmp_path / "bob.opus", "libopus", frames, container="ogg", options=options)


def samples_of(path: Path) -> int:
    return sum(len(chunk) for chunk in Recording(path).read_chunks(160)) // SAMPLE_BYTES


def notes_of(path: Path) -> str:
    return "\n".join(read_track(path).notes)


def test_a_recording_of_any_format_is_heard_at_the_right_time(recording: Path) -> None:
    track = read_track(recording)
    segments = detect_speech(Recording(recording))

    assert track.speaker == "bob"
    assert track.notes == ()
    assert track.duration == pytest.approx(SECONDS, abs=0.15)
    assert samples_of(recording) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.15)
    assert segments[0].start == pytest.approx(BEGINS, abs=0.1)
    assert segments[-1].end == pytest.approx(BEGINS + LASTS, abs=0.15)


def test_recordings_of_many_formats_are_one_meeting(
    write_wav: WriteWav, bob: Path, sample: Path, tmp_path: Path
) -> None:
    write_wav("alice.wav")
    frames = frames_of(sample / "carol.wav", 9, 11)
    encode(tmp_path / "carol.opus", "libopus", frames, container="ogg")

    meeting = read_meeting(tmp_path)

    assert [track.speaker for track in meeting.tracks] == ["alice", "bob", "carol"]
    assert meeting.notes == []


def test_what_a_recorder_left_out_while_nobody_spoke_is_silence(
    sample: Path, tmp_path: Path
) -> None:
    muted = 600
    twice = [
        *frames_of(sample / "bob.wav", 4.5, 9.5),
        *later(frames_of(sample / "bob.wav", 4.5, 9.5), muted),
    ]
    path = encode(tmp_path / "bob.webm", "pcm_f32le", twice, rate=16_000, container="matroska")

    first, second = detect_speech(Recording(path))

    track = read_track(path)
    assert track.duration == pytest.approx(muted + SECONDS, abs=0.1)
    assert "has no audio for 595.0" in "".join(track.notes)
    assert samples_of(path) / SAMPLE_RATE == pytest.approx(muted + SECONDS, abs=0.1)
    assert second.start - first.start == pytest.approx(muted, abs=0.05)


@pytest.mark.parametrize("unfinished", [0, 0xFFFF_FFFF])
def test_a_header_that_says_nothing_of_the_length_still_has_its_audio(
    write_wav: WriteWav, unfinished: int
) -> None:
    path = write_wav("alice.wav", seconds=2)
    size = struct.pack("<I", unfinished)
    written = path.read_bytes()
    path.write_bytes(written[:4] + size + written[8:40] + size + written[44:])

    track = read_track(path)

    assert (track.duration, track.notes) == (2.0, ())
    assert samples_of(path) == 2 * SAMPLE_RATE


def test_a_wav_that_was_cut_off_says_so(write_wav: WriteWav) -> None:
    path = write_wav("alice.wav", seconds=4)
    os.truncate(path, 44 + SAMPLE_RATE * SAMPLE_BYTES)

    assert "ends after 1.00 s, and its header says 4.00 s" in notes_of(path)


@pytest.mark.parametrize(
    "name", [name for name in FORMATS if name in {"RF64", "FLAC", "Ogg with Opus", "WebM"}]
)
def test_other_recordings_that_were_cut_off_say_so(name: str, sample: Path, tmp_path: Path) -> None:
    file, codec, rate, layout, container, options = FORMATS[name]
    path = encode(
        tmp_path / file,
        codec,
        frames_of(sample / "bob.wav"),
        rate=rate,
        layout=layout,
        container=container,
        options=options,
    )
    whole = read_track(path)
    os.truncate(path, path.stat().st_size // 2)

    track = read_track(path)

    assert whole.notes == ()
    assert 5 < track.duration < whole.duration - 5
    assert "is cut off: it ends after" in "".join(track.notes)
    assert samples_of(path) / SAMPLE_RATE == pytest.approx(track.duration, abs=0.2)


def test_an_m4a_whose_index_is_in_front_says_that_it_was_cut_off(
    sample: Path, tmp_path: Path
) -> None:
    options = {"movflags": "faststart"}
    path = encode(tmp_path / "bob.m4a", "aac", frames_of(sample / "bob.wav"), options=options)
    os.truncate(path, path.stat().st_size // 2)

    assert "and its header says 28.98 s" in notes_of(path)


def test_an_m4a_that_lost_its_index_is_named(sample: Path, tmp_path: Path) -> None:
    path = encode(tmp_path / "bob.m4a", "aac", frames_of(sample / "bob.wav"))
    os.truncate(path, path.stat().st_size // 2)

    with pytest.raises(MeetingError, match=r"bob\.m4a cannot be read as audio: Invalid data"):
        read_meeting(tmp_path)


def test_what_is_damaged_is_silence_and_what_follows_keeps_its_time(opus: Path) -> None:
    written = bytearray(opus.read_bytes())
    written[len(written) // 5 : len(written) // 4] = bytes(len(written) // 4 - len(written) // 5)
    opus.write_bytes(written)
    recording = Recording(opus)

    segments = detect_speech(recording)

    assert "has no audio for" in notes_of(opus)
    assert segments[-1].end == pytest.approx(BEGINS + LASTS, abs=0.15)
    assert samples_of(opus) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)


def test_packets_that_cannot_be_decoded_are_counted(sample: Path, tmp_path: Path) -> None:
    frames = frames_of(sample / "bob.wav", 4.5, 4.5 + SECONDS)
    bob = encode(tmp_path / "bob.mka", "flac", frames)
    with av.open(str(bob)) as container:
        packet = list(container.demux(audio=0))[25]
    written = bytearray(bob.read_bytes())
    assert packet.pos
    written[packet.pos + 100 : packet.pos + 300] = bytes(200)
    bob.write_bytes(written)
    recording = Recording(bob)

    segments = detect_speech(recording)

    assert recording.damaged == 1
    assert segments[-1].end == pytest.approx(BEGINS + LASTS, abs=0.15)


def test_a_recording_that_ffmpeg_cannot_follow_to_its_end_says_so(
    sample: Path, tmp_path: Path
) -> None:
    parts = [
        encode(
            tmp_path / f".{layout}", "libopus", frames_of(sample / "bob.wav", 4.5, 9.5),
            layout=layout, container="ogg",
        )
        for layout in ("mono", "stereo")
    ]  # fmt: skip
    path = tmp_path / "bob.opus"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))

    assert "cannot be read beyond 5.00 s: " in notes_of(path)


def test_every_recording_that_cannot_be_read_is_named(write_wav: WriteWav, tmp_path: Path) -> None:
    write_wav("alice.wav")
    (tmp_path / "bob.flac").write_bytes(b"no audio" * 100)
    (tmp_path / "carol.opus").touch()

    with pytest.raises(MeetingError) as caught:
        read_meeting(tmp_path)

    first, second = str(caught.value).splitlines()
    assert "bob.flac has no audio in it" in first
    assert "carol.opus is empty" in second


def test_what_is_no_recording_by_its_name_is_named_as_left_out(
    write_wav: WriteWav, tmp_path: Path
) -> None:
    write_wav("alice.wav")
    (tmp_path / "info.txt").write_text("Recording 7")
    (tmp_path / "raw.dat").write_bytes(os.urandom(5000))
    (tmp_path / "old.wav").mkdir()

    (note,) = read_meeting(tmp_path).notes

    assert note == "left out, as no recordings by their names: info.txt, old.wav, raw.dat"


def test_a_second_audio_stream_is_named(sample: Path, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "bob.mka"), "w") as out:
        streams = [out.add_stream("pcm_s16le", rate=16_000) for _ in range(2)]
        for stream in streams:
            stream.layout = "mono"
        for frame in frames_of(sample / "bob.wav", 4.5, 5.5):
            for stream in streams:
                out.mux(stream.encode(frame))

    assert "has 2 audio streams: only the first is heard" in notes_of(tmp_path / "bob.mka")


def test_a_playlist_is_refused_without_opening_what_it_names(
    playlist: Path, tmp_path: Path
) -> None:
    with pytest.raises(MeetingError, match=r"m3u8 cannot be read as audio"):
        read_meeting(tmp_path)


def test_the_printed_cure_works_as_printed(playlist: Path, tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="no ffmpeg to run").get_ffmpeg_exe()
    with pytest.raises(MeetingError) as caught:
        read_meeting(tmp_path)
    _, command = str(caught.value).split("What FFmpeg can read: ")
    commands = tmp_path / ".bin"
    commands.mkdir()
    (commands / "ffmpeg").symlink_to(ffmpeg)
    path = os.pathsep.join([str(commands), os.environ["PATH"]])

    subprocess.run(
        command, shell=True, check=True, cwd="/", env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip

    (track,) = read_meeting(tmp_path).tracks
    assert track.speaker == "Zoë_d'Arc"
    assert track.duration == pytest.approx(SECONDS, abs=0.15)


@pytest.fixture
def playlist(sample: Path, tmp_path: Path) -> Path:
    """An HLS playlist, with a name that a shell takes apart if it is not quoted."""
    segment = encode(
        tmp_path / "segment.ts", "aac", frames_of(sample / "bob.wav", 4.5, 9.5), container="mpegts"
    )
    (tmp_path / ".parts").mkdir()
    shutil.move(segment, tmp_path / ".parts" / "segment.ts")
    path = tmp_path / "Zoë d'Arc.m3u8"
    path.write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:{SECONDS},\n.parts/segment.ts\n#EXT-X-ENDLIST\n"
    )
    return path
