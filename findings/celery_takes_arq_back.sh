#!/bin/sh
# `pip install arq 'celery[redis]==5.7.0'` (pip 26.3; 24.0 and 25.3 choose alike) installs arq 0.25.0, not 0.28.0, with
# redis 8.1.0, and says nothing: kombu 5.7.0 wants redis 6.4 or later, arq 0.26 to 0.28 one before 6, and arq 0.25.0 is
# the last that names no upper end. With it jobs are queued and run on CPython 3.12. On CPython 3.14 its worker does not
# start (RuntimeError, there is no current event loop), though jobs are queued; that of 0.28.0 starts there.
# With arq==0.28.0 named as well, pip refuses; with neither version named, it goes back to celery 5.6.3 and redis 5.3.1.
# Guess before the run: pip installs arq 0.28.0 and a redis 5 that suits both, and everything works.
# What was newer than these on the index is shut out below. Exits 0 while that is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pip==26.3
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    'arq<=0.28.0' 'celery[redis]==5.7.0' kombu==5.7.0 'redis<=8.1.0'
cat >"$folder/run.py" <<'PYTHON'
import sys
from importlib.metadata import version

from arq.worker import Worker


async def job(context):
    """A worker needs one."""


chosen = {name: version(name) for name in ("arq", "celery", "kombu", "redis")}
print(chosen)
changed = (chosen["arq"], chosen["redis"]) != ("0.25.0", "8.1.0")
try:
    Worker([job], handle_signals=False)  # as the command `arq` does, with no loop running
    said = "no error"
except RuntimeError as error:
    said = str(error)
print(f"a worker on CPython {sys.version_info[0]}.{sys.version_info[1]}: {said}")
sys.exit(changed or ("no current event loop" in said) != (sys.version_info >= (3, 14)))
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
