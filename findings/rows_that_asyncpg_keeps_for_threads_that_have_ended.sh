#!/bin/sh
# asyncpg keeps freed rows for its next ones: up to 2,000 of each number of columns. Up to 0.30 there was one such store
# for the process. 0.31, and 0.32 too, has one for each thread, in which nothing is freed when the thread ends. So a
# program that runs each job in a thread of its own, with `asyncio.run`, grows by what the widest results of each job
# had in rows, though every connection is closed and every row is gone; no object that the garbage collector knows is
# left, so that tools which count objects show nothing. A subclass of Record, which `record_class=` takes, is freed.
# Guess before the run, of 20 threads that make and drop 500 rows each: nothing is left in any release.
# No server is needed: rows are made by the function that asyncpg makes them with outside of results.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import gc
import sys
import threading
from importlib.metadata import version

from asyncpg.protocol.protocol import _create_record

ROWS, THREADS = 500, 20


def job():
    rows = [_create_record({"a": 0}, (number,)) for number in range(ROWS)]
    del rows


def blocks_after(threads):
    for _ in range(threads):
        thread = threading.Thread(target=job)
        thread.start()
        thread.join()
    gc.collect()
    return sys.getallocatedblocks()


before = blocks_after(2)
kept = blocks_after(THREADS) - before
print(f"asyncpg {version('asyncpg')}: {kept} blocks are kept of {THREADS * ROWS} rows that are gone")
is_kept = kept > THREADS * ROWS * 0.9
sys.exit(is_kept == (version("asyncpg") == "0.30.0"))
PYTHON
for release in asyncpg==0.30.0 asyncpg==0.31.0 asyncpg==0.32.0; do
    python3 -m venv "$folder/$release"
    "$folder/$release/bin/pip" install --quiet --disable-pip-version-check "$release"
    "$folder/$release/bin/python" "$folder/run.py"
done
