"""Scripts that forget everything still end: exit 0, nothing on stderr, nothing left on the server."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from loopsafe_db import Database

START = "import asyncio, os, sys\nfrom loopsafe_db import get_database\ndb = get_database()\n"
ASK = "db.fetch_val('SELECT 1')"
SCRIPTS = {
    "asyncio.run": f"asyncio.run({ASK})",
    "twice": f"asyncio.run({ASK}); asyncio.run({ASK})",
    "runner": f"with asyncio.Runner() as r: r.run({ASK})",
    "uvloop": f"import uvloop; uvloop.run({ASK})",
    "anyio": "import anyio; anyio.run(db.fetch_val, 'SELECT 1')",
    "bare loop": f"loop = asyncio.new_event_loop(); loop.run_until_complete({ASK}); loop.close()",
    "thread": f"import threading; t = threading.Thread(target=lambda: asyncio.run({ASK})); t.start(); t.join()",
    "half-read stream": (
        "async def main():\n    async for _ in db.iterate('SELECT 1 UNION SELECT 2'): break\nasyncio.run(main())"
    ),
    "open transaction": (
        "async def main():\n    global t\n    t = db.transaction()\n    await t.__aenter__()\nasyncio.run(main())"
    ),
    "cancelled": (
        "async def main():\n    asyncio.create_task(db.fetch_val('SELECT 1'))\n    await asyncio.sleep(0)\n"
        "asyncio.run(main())"
    ),
    "child that exits in a coroutine": (
        "async def main():\n    await db.fetch_val('SELECT 1')\n    pid = os.fork()\n"
        "    if not pid: sys.exit(7)\n"
        "    code = await asyncio.to_thread(lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "    assert code == 7, code\n    assert await db.fetch_val('SELECT 2') == 2\nasyncio.run(main())"
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_forgets_to_close_ends_silently(database: Database, name: str) -> None:
    url = database.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", START + SCRIPTS[name]],
        env={**os.environ, "LOOPSAFE_DB_URL": url},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    # asyncio's debug mode remarks on slow steps, which a busy machine has
    noise = [line for line in done.stderr.splitlines() if not line.startswith("Executing ")]
    assert (done.returncode, noise) == (0, [])
