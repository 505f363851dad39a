#!/bin/sh
# FFmpeg 8.1.2 (by PyAV 18.1.0; FFmpeg 9.0.2 by PyAV 19.0.2 does the same) and a chained Ogg/Opus file: two whole files,
# one after the other, as RFC 3533 and RFC 7845 allow. Both are mono here, of 1 and 2 seconds.
#   Read from the start: all 3 seconds are decoded; the times of the frames begin again at 0 in the second part.
#   `seek(0)` first, with nothing read before it: 1 second is decoded, then comes the end of the file, with no error.
#   A seek to 0.5 or to 2.5 seconds ends the same way: the first part from its start, and no more.
# libsndfile 1.2.2 (by soundfile 0.14.0) reads 1 second in any case and says that the file is so long.
# (A second part in stereo is not decoded even without a seek; that one is an error, raised after the first second.)
# Of 30 and 60 seconds of sound it is the same: after a seek, nothing of the second part. Seconds of silence, which fill
# hardly a page, go otherwise.
# Guess before the run: a seek to the start changes nothing, and one to 0.5 seconds leaves 2.5 seconds to decode.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 soundfile==0.14.0
cat >"$folder/run.py" <<'PYTHON'
import io
import random
import sys
from itertools import pairwise

import av
import soundfile

RATE = 48000


def opus(seconds):
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=RATE, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=RATE * seconds)
        frame.planes[0].update(random.Random(seconds).randbytes(frame.planes[0].buffer_size))  # noise
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def decoded(data, seek_to=None):
    with av.open(io.BytesIO(data)) as container:
        if seek_to is not None:
            container.seek(int(seek_to * av.time_base))
        frames = list(container.decode(audio=0))
    back = [after.time for before, after in pairwise(frames) if after.time < before.time]
    return sum(frame.samples for frame in frames) / RATE, len(back)


chained = opus(1) + opus(2)
seen = {f"seek to {at}": decoded(chained, at) for at in (None, 0, 0.5, 2.5)}
for name, (seconds, back) in seen.items():
    print(f"FFmpeg, {name}: {seconds} s; the time goes back {back} times")
with soundfile.SoundFile(io.BytesIO(chained)) as file:
    told = len(file) / RATE
    read = len(file.buffer_read(dtype="int16")) / 2 / RATE
print(f"libsndfile: {told} s told, {read} s read")
expected = {"seek to None": (3, 1), "seek to 0": (1, 0), "seek to 0.5": (1, 0), "seek to 2.5": (1, 0)}
sys.exit(seen != expected or (told, read) != (1, 1))
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
