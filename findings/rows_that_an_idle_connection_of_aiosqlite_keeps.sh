#!/bin/sh
# aiosqlite gives each connection a thread, which keeps what it has done last, with the result, in its local variables
# until the next thing comes. So a connection that is kept open and idle, in a module or in a pool, keeps every row of
# its last fetchall() in memory, long after the caller has let go of them; the garbage collector cannot help, for a
# running thread has them. Any statement frees them.
# Guess before the run, of 100,000 rows that the caller has dropped: freed at once.
# No server is needed. Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import gc
import sys
from importlib.metadata import version

import aiosqlite

NUMBERS = "WITH RECURSIVE n(x) AS (SELECT 1000 UNION ALL SELECT x + 1 FROM n LIMIT 100000) SELECT x FROM n"


def blocks():
    gc.collect()
    return sys.getallocatedblocks()


async def kept():
    async with aiosqlite.connect(":memory:") as connection:
        cursor = await connection.execute("SELECT 1")
        before = blocks()
        cursor = await connection.execute(NUMBERS)
        rows = await cursor.fetchall()
        assert len(list(rows)) == 100_000
        del rows
        await asyncio.sleep(0.5)
        idle = blocks() - before
        await connection.execute("SELECT 1")
        return idle, blocks() - before


idle, after = asyncio.run(kept())
print(f"aiosqlite {version('aiosqlite')}: {idle} blocks are kept while it is idle, {after} after a statement")
sys.exit(not (idle > 100_000 and after < 1_000))
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check aiosqlite==0.22.1
"$folder/venv/bin/python" "$folder/run.py"
