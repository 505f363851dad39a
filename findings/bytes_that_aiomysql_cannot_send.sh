#!/bin/sh
# aiomysql 0.3.2, the newest, asks for any PyMySQL, and imports the function that writes bytes into a statement from it.
# PyMySQL 1.2.1 has removed it: aiomysql cannot be imported. 1.2.2 has put a text in its place, which tells the reader
# not to import it: the import goes well, and so does every statement until the first one that has bytes. That is a
# TypeError, for a str is called. So an upgrade of what nobody asked for by name breaks BLOBs, password hashes and UUIDs
# in BINARY(16), and only when they are sent. asyncmy 0.2.18 writes bytes by a function of its own.
# Guess before the run, of a statement with bytes and PyMySQL 1.2.4: sent, and read back as they were.
# No server is needed: `Connection.escape` is what every parameter goes through.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import sys
from importlib.metadata import version

EXPECTED = {"1.2.0": "_binary'a'", "1.2.1": "ImportError", "1.2.4": "TypeError"}


async def escaped():
    import aiomysql

    connection = aiomysql.Connection(host="127.0.0.1", user="nobody")
    connection.server_status = 0  # as a server that was asked would have said
    assert connection.escape("a") == "'a'"
    return connection.escape(b"a")


try:
    told = asyncio.run(escaped())
except (ImportError, TypeError) as error:
    told = type(error).__name__
print(f"PyMySQL {version('PyMySQL')}: {told}")
sys.exit(told != EXPECTED[version("PyMySQL")])
PYTHON
for release in 1.2.0 1.2.1 1.2.4; do
    python3 -m venv "$folder/$release"
    "$folder/$release/bin/pip" install --quiet --disable-pip-version-check aiomysql==0.3.2 "PyMySQL==$release"
    "$folder/$release/bin/python" "$folder/run.py"
done
