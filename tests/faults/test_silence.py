"""Scripts that forget everything still end: exit 0, nothing on stderr, nothing left on the server."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from loopsafe_db.testing.conformance import EXIT_IN_A_COROUTINE

if TYPE_CHECKING:
    from loopsafe_db import Database

START = "import asyncio, os, sys\nfrom loopsafe_db import get_database\ndb = get_database()\n"
ASK = "db.fetch_val('SELECT 1')"
WAKE_AT_THE_END = (
    "from loopsafe_db._runtime.reaper import Reaper\n"
    "class Late:\n"
    "    reaper = Reaper(lambda: None)\n"
    "    def __del__(self): self.reaper.wake()\n"
    "late = Late()\n"
)
EXIT_IN_CHILD = (
    "async def main():\n    await db.fetch_val('SELECT 1')\n    pid = os.fork()\n"
    f"    if not pid: {EXIT_IN_A_COROUTINE}\n"
    "    code = await asyncio.to_thread(lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    "    assert code == 7, code\n    assert await db.fetch_val('SELECT 2') == 2\n"
)
EXIT_AT_WORK = (
    "slow = 'SELECT 5 FROM pg_sleep(0.3)' if db.url.host else 'SELECT 5'\n"
    "async def main():\n"
    "    await asyncio.gather(*(db.fetch_val(slow) for _ in range(warm)))\n"
    "    tasks = [asyncio.create_task(db.fetch_val(slow)) for _ in range(5)]\n"
    f"    await asyncio.sleep(0)\n    pid = os.fork()\n    if not pid: {EXIT_IN_A_COROUTINE}\n"
    "    async with asyncio.timeout(10): assert await asyncio.gather(*tasks) == [5] * 5\n"
    "    code = await asyncio.to_thread(lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    "    assert code == 7, code\n"
)
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
    "cancelled": (
        "async def main():\n    asyncio.create_task(db.fetch_val('SELECT 1'))\n    await asyncio.sleep(0)\n"
        "asyncio.run(main())"
    ),
    "child that exits in a coroutine": EXIT_IN_CHILD + "asyncio.run(main())",
    "child that exits in a coroutine under uvloop": (
        # by name: what resolves it must not leave uvloop's threads behind
        "from loopsafe_db import Database\nif db.url.host: db = Database(db.url.set(host='localhost'))\n"
        f"{EXIT_IN_CHILD}import uvloop; uvloop.run(main())"
    ),
    "warm, then a fork": (
        f"asyncio.run({ASK}); asyncio.run({ASK})\npid = os.fork()\nassert asyncio.run({ASK}) == 1\n"
        "if pid: assert os.waitpid(pid, 0)[1] == 0"
    ),
}


WATCH_FORKS = (  # before the library is imported: so that is asked first to get ready
    "import os, threading\nseen = []\n"
    "names = lambda: [thread.name for thread in threading.enumerate()]\n"
    "os.register_at_fork(before=lambda: seen.extend(names()))\n"
)
FORK_WARM = (
    f"asyncio.run({ASK}); asyncio.run({ASK})\n"
    "warm = db._options.scope != 'loop'\n"
    "assert ('loopsafe_db reaper' in names()) is warm\n"
    "if not os.fork(): os._exit(0)\n"
    "assert 'MainThread' in seen and 'loopsafe_db reaper' not in seen, seen\n"
    "if sys.version_info >= (3, 12): db.stats()  # it counts threads after its hooks\n"
    "warm = warm and db.url.dialect != 'sqlite'  # whose idle connections are closed before a fork\n"
    "assert ('loopsafe_db reaper' in names()) is warm"
)
# Generators of the user's, kept until their loop ends them, and what is in them: it ends all it knows, at once.
KEPT = (
    "from contextlib import aclosing\n"
    "kept = []\n"
    "async def main():\n"
    "    for _ in range(4):\n        kept.append(generator())\n        await anext(kept[-1])\n"
)
KEPT_STREAMS = {
    "alone": "generator = lambda: db.iterate('SELECT 1 UNION SELECT 2')",
    "in a generator": (
        "async def generator():\n"
        "    async with aclosing(db.iterate('SELECT 1 UNION SELECT 2')) as rows:\n"
        "        async for row in rows: yield row"
    ),
    "in a transaction": (
        "async def generator():\n"
        "    async with db.transaction(), aclosing(db.iterate('SELECT 1 UNION SELECT 2')) as rows:\n"
        "        async for row in rows: yield row"
    ),
    "in a connection that is shared": (
        "async def generator():\n"
        "    async with db.connection() as c, c.share(), aclosing(c.iterate('SELECT 1 UNION SELECT 2')) as rows:\n"
        "        async for row in rows: yield row"
    ),
}
OPEN_TRANSACTION = (
    "async def main():\n    global t\n    t = db.transaction()\n    await t.__aenter__()\n"
    "asyncio.run(main())"
)

INTERRUPTED_RELEASE = (
    "import sqlalchemy\n"
    "async def use():\n    async with db.connection() as c:\n"
    "        await c.fetch_val(sqlalchemy.select(1))\n        loop.stop()\n"
    "with asyncio.Runner() as runner:\n"
    "    loop = runner.get_loop()\n    task = loop.create_task(use())\n    loop.run_forever()"
)


def needs_asyncpg_under_uvloop(database: Database) -> None:
    """libuv queues changes of the epoll in memory that it shares with a child that exits inside a coroutine.

    Only asyncpg's sockets stay registered as they are while an answer is awaited (decision 0003).
    """
    if database.url.drivername != "postgresql+asyncpg":
        pytest.skip("libuv itself may abort the parent here, whoever uses it")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_forgets_to_close_ends_silently(database: Database, name: str) -> None:
    if name == "child that exits in a coroutine under uvloop":
        needs_asyncpg_under_uvloop(database)

    assert run(database, SCRIPTS[name]) == (0, [])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("name", KEPT_STREAMS)
def test_a_loop_that_ends_kept_streams_ends_silently(
    database: Database, name: str, loop: str
) -> None:
    ends = f"\nimport {loop}; {loop}.run(main())\nassert db.stats().in_use == 0"
    assert run(database, KEPT + KEPT_STREAMS[name] + ends) == (0, [])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_child_that_exits_while_answers_are_under_way_does_not_disturb_them(
    database: Database, loop: str
) -> None:
    warm = 3  # the others are being opened
    if loop == "uvloop":
        needs_asyncpg_under_uvloop(database)
        warm = 5  # whoever opens one changes libuv's epoll
    # Under uvloop the child takes its parent's tasks up before it exits, and says what it thinks of them.
    script = f"warm = {warm}\n{EXIT_AT_WORK}import {loop}; {loop}.run(main())"
    assert run(database, script)[0] == 0


def test_no_thread_of_ours_is_there_during_a_fork_and_it_is_there_again_afterwards(
    database: Database,
) -> None:
    assert run(database, FORK_WARM, first=WATCH_FORKS) == (0, [])


def test_a_connection_that_was_never_given_back_is_a_resource_warning(database: Database) -> None:
    code, lines = run(database, OPEN_TRANSACTION)

    assert code == 0
    (told,) = (line for line in lines if "ResourceWarning: a connection was not given back" in line)
    assert told.endswith("<string>:7")  # where it was taken


def test_a_connection_is_given_back_though_the_end_of_the_loop_interrupts_it(
    database: Database,
) -> None:
    assert run(database, INTERRUPTED_RELEASE) == (0, [])


def test_what_the_interpreter_collects_at_its_very_end_starts_no_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", WAKE_AT_THE_END],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def run(database: Database, script: str, first: str = "") -> tuple[int, list[str]]:
    """Run a script with every warning on; give its exit code, and what it wrote to stderr.

    No warning is an error: CPython 3.12 and later swallow what they say of a fork beside threads then.
    """
    url = database.url.render_as_string(hide_password=False)
    warnings = ["-W", "always"]
    if database.url.dialect == "sqlite":  # a thread for each connection is aiosqlite's way
        warnings += ["-W", "ignore:This process:DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, "-X", "dev", *warnings, "-c", first + START + script],
        env={**os.environ, "LOOPSAFE_DB_URL": url},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    # asyncio's debug mode remarks on slow steps, which a busy machine has
    return done.returncode, [
        line for line in done.stderr.splitlines() if not line.startswith("Executing ")
    ]
