#!/bin/sh
# ormar 0.26.0 keeps the connection of the open transaction in one ContextVar for all databases. Seen on CPython 3.11 with
# SQLAlchemy 2.1.9 and aiosqlite 0.22.1, two databases, each with a model of its own and a table of the same name:
#   Inside a transaction of the first, an object of the second's model is written to the first, without an error.
# Guess before the run: it is written to the second, and committed at once.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ormar==0.26.0 SQLAlchemy==2.1.9 aiosqlite==0.22.1
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import sqlite3
import sys
import tempfile

import ormar
import sqlalchemy
from ormar.databases.connection import DatabaseConnection

NAMES = ("orders", "audit")


def model_of(name, folder):
    database = DatabaseConnection(f"sqlite+aiosqlite:///{folder}/{name}.db")
    config = ormar.OrmarConfig(database=database, metadata=sqlalchemy.MetaData(), tablename="notes")
    fields = {
        "__annotations__": {"id": int, "text": str},
        "id": ormar.Integer(primary_key=True),
        "text": ormar.String(max_length=20),
    }
    return type(name, (ormar.Model,), {"ormar_config": config, "__module__": __name__, **fields})


async def write(models):
    for model in models:
        config = model.ormar_config
        await config.database.connect()
        async with config.database.engine.begin() as connection:
            await connection.run_sync(config.metadata.create_all)
    first, second = models
    async with first.ormar_config.database.transaction():
        await first.objects.create(text="an order")
        await second.objects.create(text="who ordered")
    for model in models:
        await model.ormar_config.database.disconnect()


def rows(path):
    connection = sqlite3.connect(path)
    found = [text for (text,) in connection.execute("SELECT text FROM notes ORDER BY id")]
    connection.close()
    return found


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(write([model_of(name, folder) for name in NAMES]))
    seen = {name: rows(f"{folder}/{name}.db") for name in NAMES}
print(seen)
sys.exit(seen != {"orders": ["an order", "who ordered"], "audit": []})
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
