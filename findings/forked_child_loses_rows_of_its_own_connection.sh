#!/bin/sh
# SQLite in WAL mode. A parent has a connection open, idle and in no transaction, and forks. The child never touches that one: it opens a
# connection of its own, and commits a row. The parent closes its connection. The child commits another row on its own, is told that all
# is well, and reads both rows. When the child has ended, the file has the first row alone: the parent's close took the -wal file away, as
# if nobody else had it, for the child's connection holds no lock: it relies on the inherited record of the parent's locks, and a fork
# passes on no locks of POSIX. In the rollback journal's modes an idle connection has no lock, and nothing is lost.
# Seen with SQLite 3.54.1 in apsw 3.54.1.0, and with that of Python's sqlite3, 3.40.1 (Linux).
# SQLite's page on corruption warns of using the parent's connection in the child. This child does not.
# Guess before the run: both rows are there, as the child's connection is its own.
# Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import os
import sqlite3
import sys
import tempfile

import apsw


def rows_left(connect, mode):
    with tempfile.TemporaryDirectory() as data:
        path = os.path.join(data, "app.db")
        parents = connect(path)
        parents.execute(f"PRAGMA journal_mode = {mode}")
        parents.execute("CREATE TABLE jobs (name TEXT)")
        (written, write), (closed, close) = os.pipe(), os.pipe()
        if (child := os.fork()) == 0:
            own = connect(path)
            own.execute("INSERT INTO jobs VALUES ('before')")
            os.write(write, b"x")
            os.read(closed, 1)
            own.execute("INSERT INTO jobs VALUES ('after')")
            seen = own.execute("SELECT count(*) FROM jobs").fetchall()
            os._exit(seen[0][0])
        os.read(written, 1)
        parents.close()
        os.write(close, b"x")
        seen = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return seen, [name for (name,) in connect(path).execute("SELECT name FROM jobs")]


def by_sqlite3(path):
    return sqlite3.connect(path, isolation_level=None)


changed = False
for name, version, connect in (
    ("sqlite3", sqlite3.sqlite_version, by_sqlite3),
    ("apsw", apsw.sqlite_lib_version(), apsw.Connection),
):
    for mode, expected in (("wal", ["before"]), ("delete", ["before", "after"])):
        seen, left = rows_left(connect, mode)
        print(f"{name}, SQLite {version}, {mode}: the child saw {seen} rows, left are {left}")
        changed |= (seen, left) != (2, expected)
sys.exit(changed)
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check apsw==3.54.1.0
"$folder/venv/bin/python" "$folder/run.py"
