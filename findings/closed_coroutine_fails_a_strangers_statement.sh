#!/bin/sh
# SQLAlchemy 2.0.54: a coroutine that is closed inside the greenlet of another's statement ends that statement's call.
# Seen on CPython 3.11 with aiosqlite 0.22.1 and greenlet 3.5.3: one coroutine is in the middle of
# `AsyncEngine.connect()`; another runs a function by `AsyncConnection.run_sync`, and closes the first one there, as the
# garbage collector may. A greenlet that ends goes on in its parent, which is the one that has started it, not in who
# has thrown into it: the second coroutine gets GeneratorExit out of its own call, and never the function's value.
# SQLAlchemy 2.1.9 does so, too. Expected was that the first one ends, and nothing else.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check SQLAlchemy==2.0.54 greenlet==3.5.3 aiosqlite==0.22.1
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import sys

from sqlalchemy.ext.asyncio import create_async_engine


async def connect(engine):
    async with engine.connect():
        pass


async def main():
    engine = create_async_engine("sqlite+aiosqlite://" + "/" + sys.argv[1])
    async with engine.connect() as connection:
        dropped = connect(engine)
        dropped.send(None)

        def close(_):
            dropped.close()
            return 5

        try:
            seen = await connection.run_sync(close)
        except GeneratorExit as error:
            seen = error
    return seen


seen = asyncio.run(main())
print(repr(seen))
sys.exit(not isinstance(seen, GeneratorExit))
PYTHON
timeout 60 "$folder/venv/bin/python" -W ignore "$folder/run.py" "$folder/database.db"
