"""A host that vanishes in mid-transaction: ``unshare --net python -m tests.faults.vanished_host DRIVER``.

In this network of its own, whose one device is taken down, no end of a connection ever arrives. Two clients have a row
locked each; one has asked the server, by its URL, to look whether it lives. Prints as JSON which rows are free when the
server has looked.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from loopsafe_db import Database
from loopsafe_db.testing.postgres import EmbeddedPostgres

LOOKS = "-c tcp_keepalives_idle=1 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=2"
PATIENCE = 60  # seconds for what takes three or four
_ESTABLISHED = "01"


def _device(state: str) -> None:
    subprocess.run(("ip", "link", "set", "lo", state), check=True)


async def _set_up(url: str) -> None:
    async with Database(url) as database:
        await database.execute("CREATE TABLE held (id int)")
        await database.execute("INSERT INTO held VALUES (1), (2)")


async def _free_rows(url: str) -> list[int]:
    async with Database(url) as database:
        rows = await database.fetch_all("SELECT id FROM held ORDER BY id FOR UPDATE SKIP LOCKED")
    return [row["id"] for row in rows]


async def _hold(url: str, row: int) -> None:
    database = Database(url)
    async with database.transaction():
        await database.fetch_val("SELECT id FROM held WHERE id = :row FOR UPDATE", {"row": row})
        print("locked", flush=True)
        await asyncio.Event().wait()


def _client(stack: ExitStack, url: Any, row: int) -> None:
    command = (sys.executable, "-m", "tests.faults.vanished_host", "hold")
    shown = url.render_as_string(hide_password=False)
    process = subprocess.Popen((*command, shown, str(row)), stdout=subprocess.PIPE, text=True)
    stack.enter_context(process)
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"


def _sessions(port: int) -> int:
    """Count the connections that the server still has for alive."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        near.endswith(f":{port:04X}") and state == _ESTABLISHED for _, near, _, state, *_ in lines
    )


def main(driver: str) -> None:
    """Have both vanish, and tell."""
    _device("up")
    with EmbeddedPostgres() as server, ExitStack() as stack:
        url = make_url(server.url).set(drivername=f"postgresql+{driver}")
        asyncio.run(_set_up(server.url))
        _client(stack, url.update_query_dict({"options": LOOKS}), 1)
        _client(stack, url, 2)
        _device("down")
        give_up = time.monotonic() + PATIENCE
        while _sessions(url.port or 0) > 1 and time.monotonic() < give_up:
            time.sleep(0.05)  # no event tells of it
        _device("up")
        print(json.dumps(asyncio.run(_free_rows(server.url))), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        asyncio.run(_hold(sys.argv[2], int(sys.argv[3])))
    else:
        main(sys.argv[1])
