#!/bin/sh
# pyannote.metrics 4.2.0 and spy-der 0.4.1 give different diarization error rates for the same turns, the same scored
# stretch and the same collar (pyannote's is the whole width, spy-der's the half of it). Small examples:
#   One turn of a speaker lies within another turn of his (0-10 s and 4-6 s), the system says 0-10 s: pyannote.metrics
#   counts the 2 s twice and finds them missed, 2 of 12 s; spy-der counts them once, no error.
#   A speaker's turns touch (0-5 s and 5-10 s), the system leaves out 4.75-5.25 s: pyannote.metrics cuts a collar where
#   they touch, no error; spy-der cuts none there and finds 0.5 of 9.5 s missed.
#   Two turns of 1 s are wholly within the collars (half a second a side), a third of 1.5 s is not; the system has
#   another speaker in it: pyannote.metrics matches speakers by what is scored, no error; spy-der by all of it,
#   100 % confused.
# Guess before the run, for the turns that touch: spy-der cuts there, too. (The others had been met in use.)
# Without a collar, and with no speaker beside himself, they agree: a fourth pair shows it.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    pyannote.metrics==4.2.0 pyannote.core==6.1.0 spy-der==0.4.1
cat >"$folder/run.py" <<'PYTHON'
import sys

import spyder
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate

SHORT = [("ann", 0.0, 1.0), ("ann", 2.0, 3.0), ("ann", 4.0, 5.5)]
SPLIT = [("x", 0.0, 1.0), ("x", 2.0, 3.0), ("y", 4.0, 5.5)]
# what differs: reference, system, seconds of collar on each side, error rates by pyannote.metrics and by spy-der
PAIRS = {
    "beside himself": ([("ann", 0.0, 10.0), ("ann", 4.0, 6.0)], [("x", 0.0, 10.0)], 0.0, 2 / 12, 0.0),
    "turns that touch": (
        [("ann", 0.0, 5.0), ("ann", 5.0, 10.0)],
        [("x", 0.0, 4.75), ("x", 5.25, 10.0)],
        0.25,
        0.0,
        0.5 / 9.5,
    ),
    "within the collars": (SHORT, SPLIT, 0.5, 0.0, 1.0),
    "the same without collars": (SHORT, SPLIT, 0.0, 1.5 / 3.5, 1.5 / 3.5),
}


def by_pyannote(reference, system, end, side):
    reference, system = (annotation(turns) for turns in (reference, system))
    scored = Timeline([Segment(0, end)])
    return DiarizationErrorRate(collar=2 * side)(reference, system, uem=scored)


def annotation(turns):
    filled = Annotation()
    for track, (speaker, start, end) in enumerate(turns):
        filled[Segment(start, end), track] = speaker
    return filled


changed = False
for name, (reference, system, side, *expected) in PAIRS.items():
    end = max(turn[2] for turn in reference)
    rates = (
        by_pyannote(reference, system, end, side),
        spyder.DER(reference, system, uem=[(0.0, end)], collar=side).der,
    )
    print(f"{name}: pyannote.metrics {rates[0]:.2%}, spy-der {rates[1]:.2%}")
    changed |= any(abs(rate - known) > 1e-6 for rate, known in zip(rates, expected, strict=True))
sys.exit(changed)
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
