"""`make soak`: round after round of the storm, each with a seed that plays it again.

``python -m tests.storm [--operations 200000] [--driver asyncpg] [--seed WORD]``
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from itertools import count, cycle
from pathlib import Path

from loopsafe_db.testing.postgres import EmbeddedPostgres
from tests.storm.storm import Weather, blow, set_up

DRIVERS = ("asyncpg", "psycopg", "aiosqlite")
KINDS = ("lost", "kept", "foreign", "innocent")


def main() -> int:
    """Run the rounds; 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--operations", type=int, default=200_000, help="at least so many in all")
    parser.add_argument("--driver", action="append", choices=DRIVERS, help="default: each in turn")
    parser.add_argument("--seed", default=f"{time.time():.0f}", help="of the whole run")
    parser.add_argument("--round", help="play this one round again, as it was named")
    arguments = parser.parse_args()
    logging.getLogger("loopsafe_db").setLevel(logging.ERROR)  # what it warns of is done on purpose
    wrong: Counter[str] = Counter()
    began, operations, interrupted = time.monotonic(), 0, 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = _urls(folder, stack)
        for number, driver in zip(count(1), cycle(arguments.driver or DRIVERS), strict=False):
            seed = arguments.round or f"{arguments.seed}-{number}-{driver}"
            weather = Weather.of(seed, seed.rpartition("-")[2])
            ledger = blow(urls[weather.driver], weather, folder)
            operations += ledger.operations
            interrupted += ledger.interrupted
            wrong.update(kind for kind, _ in ledger.wrong)
            for kind, what in ledger.wrong[:20]:
                print(f"{kind.upper()} in round {seed}: {what}")
            if ledger.wrong:
                print(f"  {weather}", flush=True)
            if number % 10 == 0:
                print(_sum(operations, interrupted, number, wrong, began), flush=True)
            if arguments.round or operations >= arguments.operations:
                break
    print(_sum(operations, interrupted, number, wrong, began))
    return int(wrong.total() > 0)


def _urls(folder: Path, stack: ExitStack) -> dict[str, str]:
    server = stack.enter_context(EmbeddedPostgres(max_connections=200))
    urls = {driver: server.url for driver in DRIVERS[:2]} | {
        "aiosqlite": f"sqlite:///{folder}/storm.db"
    }
    for url in set(urls.values()):
        set_up(url)
    return urls


def _sum(operations: int, interrupted: int, rounds: int, wrong: Counter[str], began: float) -> str:
    faults = ", ".join(f"{wrong[kind]} {kind}" for kind in KINDS)
    seconds = time.monotonic() - began
    return f"{operations} operations, {interrupted} cut off, {rounds} rounds, {seconds:.0f} s: {faults}"


if __name__ == "__main__":
    sys.exit(main())
