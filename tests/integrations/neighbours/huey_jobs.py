"""Tasks of Huey, which keeps them in SQLite."""

from __future__ import annotations

import asyncio

import work
from huey import SqliteHuey

huey = SqliteHuey(filename="huey.db")


@huey.task()
def square(number):
    asyncio.run(work.square(number))
    return True  # nothing can be waited for that gives nothing
