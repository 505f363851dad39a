"""`make soak`: round after round of the storm, each with a seed that plays it again.

``python -m tests.storm [--operations 200000] [--driver asyncpg] [--seed WORD]``
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import linecache
import logging
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from itertools import count, cycle
from pathlib import Path

from loopsafe_db import queries
from loopsafe_db.testing.postgres import EmbeddedPostgres
from tests.storm.ledger import Ledger
from tests.storm.storm import Weather, blow, set_up

DRIVERS = ("asyncpg", "psycopg", "aiosqlite")
KINDS = ("lost", "kept", "foreign", "innocent")
WARM = 150  # rounds after which nothing more is to grow: until then caches fill
# glibc's name of what each thread has of its own, and keeps in pieces: growth that is nobody's
ARENA_MAX = -8
SLOW = 15  # seconds of one round, most of which take less than one
LIMITS = {"descriptors": 0.0, "threads": 0.0, "MiB": 4.0}


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
    before: dict[str, float] = {}
    ctypes.CDLL(None).mallopt(ARENA_MAX, 1)
    began, total = time.monotonic(), Ledger()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = _urls(folder, stack)
        for number, driver in zip(count(1), cycle(arguments.driver or DRIVERS), strict=False):
            seed = arguments.round or f"{arguments.seed}-{number}-{driver}"
            weather = Weather.of(seed, seed.rpartition("-")[2])
            slow = threading.Timer(SLOW, faulthandler.dump_traceback)  # where it is
            slow.start()
            ledger = blow(urls[weather.driver], weather, folder)
            slow.cancel()
            total.operations += ledger.operations
            total.interrupted += ledger.interrupted
            total.struck += ledger.struck
            wrong.update(kind for kind, _ in ledger.wrong)
            for kind, what in ledger.wrong[:20]:
                print(f"{kind.upper()} in round {seed}: {what}")
            if ledger.wrong:
                print(f"  {weather}", flush=True)
            if number % 10 == 0:
                print(_sum(total, number, wrong, began), flush=True)
            gc.collect()  # cycles of CPython's own pile up to a quarter of all that lives, at times
            if number == WARM:
                before = _held()
            elif number % 500 == 0:
                _has_not_grown(before)  # what leaks grows on and on; caches fill
            if arguments.round or total.operations >= arguments.operations:
                break
    print(_sum(total, number, wrong, began))
    return int(not _has_not_grown(before) or wrong.total() > 0)


def _held() -> dict[str, float]:
    """Tell what this process holds: descriptors, threads, and memory without caches that fill for long.

    Those are texts, 4 MiB at most, and the source lines of each file that a printed traceback has named, 60 KiB or so.
    """
    queries._texts = queries._Texts()  # noqa: SLF001
    linecache.clearcache()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free is given back
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    descriptors = len(os.listdir("/proc/self/fd"))
    return {"descriptors": descriptors, "threads": threading.active_count(), "MiB": megabytes}


def _has_not_grown(before: dict[str, float]) -> bool:
    """Print by how much it has grown since the first rounds; tell whether that is little enough."""
    if not before:
        print(f"growth: not measured in less than {WARM} rounds")
        return True
    after = _held()
    growth = {name: after[name] - before[name] for name in LIMITS}
    print("growth:", ", ".join(f"{value:+.3g} {name}" for name, value in growth.items()))
    return all(growth[name] <= limit for name, limit in LIMITS.items())


def _urls(folder: Path, stack: ExitStack) -> dict[str, str]:
    server = stack.enter_context(EmbeddedPostgres(max_connections=200))
    urls = {driver: server.url for driver in DRIVERS[:2]} | {
        "aiosqlite": f"sqlite:///{folder}/storm.db"
    }
    for url in set(urls.values()):
        set_up(url)
    return urls


def _sum(total: Ledger, rounds: int, wrong: Counter[str], began: float) -> str:
    faults = ", ".join(f"{wrong[kind]} {kind}" for kind in KINDS)
    seconds = time.monotonic() - began
    return (
        f"{total.operations} operations, {total.interrupted} cut off, {total.struck} struck, "
        f"{rounds} rounds, {seconds:.0f} s: {faults}"
    )


if __name__ == "__main__":
    sys.exit(main())
