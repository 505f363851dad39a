"""Run scenarios with one library: ``python -m tests.compatibility.run LIBRARY URL [SCENARIO...]``.

Prints a line of JSON for each: its name, and what it saw. The database of the URL is emptied before each.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import asyncpg

from tests.compatibility.world import TIMEOUT, World, find_scenarios, play

_EMPTY = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid();
DROP SCHEMA public CASCADE;
CREATE SCHEMA public
"""


def main(library: str, url: str, *names: str) -> None:
    found = find_scenarios(url.split(":", 1)[0])
    module = importlib.import_module(library)
    for number, name in enumerate(names or found):
        world = World(module, empty(url, number))
        print(json.dumps([name, run_apart(found[name], world)]), flush=True)


def run_apart(scenario: Any, world: World) -> dict[str, Any]:
    """Run one in a thread that can be left behind: some deadlocks cannot even be cancelled."""
    outcomes: list[dict[str, Any]] = []
    thread = threading.Thread(
        target=lambda: outcomes.append(asyncio.run(play(scenario, world))), daemon=True
    )
    thread.start()
    thread.join(TIMEOUT + 3)
    return outcomes[0] if outcomes else {"stopped by": "a deadlock"}


def empty(url: str, number: int) -> str:
    """Give the URL of a database without anything of the scenario before, not even its connections."""
    if url.startswith("sqlite"):  # which removes files by their names, whoever has them by now
        path = Path(url.removeprefix("sqlite:///"))
        return f"sqlite:///{path.with_name(f'{number}_{path.name}')}"

    async def run() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(_EMPTY)
        await connection.close()

    asyncio.run(run())
    return url


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # a driver's thread that was left behind would keep the process
