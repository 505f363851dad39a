"""What every neighbour is asked to do: a module of a user, whose handle is used where it is imported first."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loopsafe_db import get_database

db = get_database()
numbers = itertools.count()
_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, int] = weakref.WeakKeyDictionary()
_serials = itertools.count()
atexit.register(lambda: Path(f"exit-{os.getpid()}").touch())


async def square(number: int) -> None:
    """Store a square, and who did it: the process, its session, the loop's number in the process."""
    loop = _loops.setdefault(asyncio.get_running_loop(), next(_serials))
    values = {"number": number, "square": number * number, "pid": os.getpid(), "loop": loop}
    async with db.transaction():
        await db.execute(
            "INSERT INTO squares VALUES (:number, :square, :pid, pg_backend_pid(), :loop)", values
        )


async def is_there(number: int) -> bool:
    query = "SELECT count(*) FROM squares WHERE number = :number"
    return await db.fetch_val(query, {"number": number}) == 1


# Whatever is forked from the first process inherits a warm connection.
if os.environ.setdefault("FIRST_PROCESS", str(os.getpid())) == str(os.getpid()):
    with ThreadPoolExecutor(1) as thread:  # who imports this may run a loop
        thread.submit(lambda: asyncio.run(square(-1))).result()
