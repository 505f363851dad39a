"""Write ``scores.json``: what pyannote.metrics and spy-der say of pairs of turns.

They bring numpy, scipy and pandas, so they are in no dependency group. To record anew, from the root:

    python -m venv /tmp/peers && /tmp/peers/bin/pip install pyannote.metrics==4.2.0 spy-der==0.4.1
    /tmp/peers/bin/python tests/workers/record_scores.py
"""

from __future__ import annotations

import json
import random
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("scores.json")
PEERS = ("pyannote.metrics", "spy-der")
COLLARS = (0.0, 0.25)

Times = list[tuple[str, float, float]]

PAIRS = [
    ("a 0-10", "a 0-10"),
    ("a 0-10", "b 0-10"),
    ("a 0-10", "a 2-10"),
    ("a 2-10", "a 0-11"),
    ("a 0-10", "a 0-6, b 6-10"),
    ("a 0-4, b 2-6", "x 0-4, y 2-6"),
    ("a 0-4, b 2-6", "a 0-4"),
    ("a 0-4, b 0-4", "a 0-4, c 0-4"),
    ("a 0-4", "b 0-4, c 0-4"),
    ("a 0-2, b 0-2", "c 0-2"),
    ("a 0-5, b 5-10", "b 0-5, a 5-10"),
    ("a 0-1, b 3-4", "a 0-4"),
    ("a 0-0.3, b 1-3", "a 0-3"),
    ("Ann_Lee 0-3, bob 4-6", "ann 0.1-3.2, Bob 4-6.1, carol 8-9"),
    # one speaker twice at once: pyannote counts the second time as a second speaker
    ("a 0-3, a 1-4", "a 0-4"),
    ("a 0-4", "a 0-3, a 1-4"),
    # turns that touch: pyannote has a collar between them
    ("a 0-2, a 2-4", "a 0-4"),
]


def read(text: str) -> Times:
    """``"a 0-2, b 1-3"`` as names and times."""
    times = []
    for part in text.split(", "):
        name, span = part.split()
        start, end = span.split("-")
        times.append((name, float(start), float(end)))
    return times


def meeting(seed: int) -> tuple[str, str]:
    """A meeting of some speakers at random, and what somebody might have found in it."""
    chance = random.Random(seed)
    true, found = [], []
    for number in range(chance.randint(2, 5)):
        now = 0.0
        for _ in range(chance.randint(2, 6)):
            start = now + chance.randint(400, 4000) / 1000
            now = start + chance.randint(300, 3000) / 1000
            true.append(f"s{number} {start:.3f}-{now:.3f}")
            name = chance.choice([f"v{number}", f"v{number}", f"w{number}"])
            early, late = (chance.randint(-90, 250) / 1000 for _ in range(2))
            if chance.random() < 0.85:
                found.append(f"{name} {start + early:.3f}-{now + late:.3f}")
    return ", ".join(true), ", ".join(found)


def score(reference: Times, found: Times, collar: float) -> dict[str, list[float]]:
    """Missed, false alarm, confused and scored speech in seconds, by each."""
    import spyder
    from pyannote.core import Annotation, Segment
    from pyannote.metrics.diarization import DiarizationErrorRate

    def annotation(times: Times) -> Any:
        made = Annotation()
        for number, (name, start, end) in enumerate(times):
            made[Segment(start, end), number] = name
        return made

    # its collar is that of both sides together
    parts = DiarizationErrorRate(collar=2 * collar)(
        annotation(reference), annotation(found), detailed=True
    )
    theirs = spyder.DER(reference, found, collar=collar)
    names = ("missed detection", "false alarm", "confusion", "total")
    by_spyder = [theirs.duration * part for part in (theirs.miss, theirs.falarm, theirs.conf, 1)]
    values = ([float(parts[name]) for name in names], by_spyder)
    return {
        peer: [round(value, 4) for value in four] for peer, four in zip(PEERS, values, strict=True)
    }


def main() -> None:
    """Record them all."""
    warnings.simplefilter("ignore")  # that the extent of what is scored was not given
    pairs = [*PAIRS, *(meeting(seed) for seed in range(20))]
    rows = [
        {
            "reference": reference,
            "found": found,
            "collar": collar,
            **score(read(reference), read(found), collar),
        }
        for reference, found in pairs
        for collar in COLLARS
    ]
    table = {"versions": {peer: version(peer) for peer in PEERS}, "rows": rows}
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
