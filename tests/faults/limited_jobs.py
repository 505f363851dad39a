"""A worker whose jobs have a time limit out of a signal handler, as Celery's, RQ's and pytest-timeout's raise it.

``python limited_jobs.py URL SEED``: 40 jobs that the limit strikes, each followed by two without; then the ledger.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from loopsafe_db import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

STRIKES = 40
SECONDS = 25  # to strike in; a job whose wake-up asyncio itself has lost takes six
TRIES = 400  # a machine may be too fast, or too slow, for the limit to strike each time
THINGS = sa.table("things", sa.column("id"))
INSERT = "INSERT INTO things VALUES (:id)"


class TimeLimit(Exception):
    """What the handler raises."""


class Worker:
    """Runs jobs, and keeps the ledger of what they were told is done."""

    def __init__(self, url: str, seed: int) -> None:
        self.database = Database(url, max_size=2)
        self.random, self.ids, self.done = random.Random(seed), count(1), list[int]()
        self.limited = False
        signal.signal(signal.SIGALRM, self._strike)

    def _strike(self, *_: object) -> None:
        if self.limited:
            raise TimeLimit

    async def text(self) -> None:
        number = next(self.ids)
        await self.database.execute(INSERT, {"id": number})
        self.done.append(number)

    async def clause(self) -> None:
        number = next(self.ids)
        await self.database.execute(THINGS.insert(), {"id": number})
        self.done.append(number)

    async def session(self) -> None:
        number = next(self.ids)
        async with self.database.session.begin() as session:
            await session.execute(THINGS.insert(), {"id": number})
        self.done.append(number)

    async def transaction(self) -> None:
        number = next(self.ids)
        async with self.database.transaction():
            await self.database.execute(INSERT, {"id": number})
        self.done.append(number)

    async def stream(self) -> None:
        async for _ in self.database.iterate("SELECT id FROM things"):
            pass
        await self.text()

    async def swallow(self) -> None:
        first, second = next(self.ids), next(self.ids)
        async with self.database.connection() as connection:
            try:
                async with connection.transaction():
                    await connection.execute(INSERT, {"id": first})
                self.done.append(first)
            except TimeLimit:
                # Struck between two steps of `async with`, before it called __aexit__: what follows is inside, too.
                if connection.in_transaction:
                    raise
            await connection.execute(INSERT, {"id": second})
            self.done.append(second)

    @property
    def jobs(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [self.text, self.clause, self.session, self.transaction, self.stream, self.swallow]

    def limit(self, job: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> bool:
        """Run a job under the limit; tell whether it struck.

        It strikes again where the loop itself was struck, and has lost what it was about to do.
        """
        try:
            self.limited = True
            signal.setitimer(signal.ITIMER_REAL, seconds, 3)
            asyncio.run(job())
        except Exception:  # noqa: BLE001 (the limit, or what others make of it)
            return True
        finally:
            self.limited = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        return False

    def run(self) -> None:
        asyncio.run(self.text())
        seconds, strikes, until = 0.003, 0, time.monotonic() + SECONDS
        for _ in range(TRIES):
            struck = self.limit(self.random.choice(self.jobs), seconds * self.random.random())
            seconds *= 1.03 if struck else 0.85
            strikes += struck
            asyncio.run(self.text())
            asyncio.run(self.random.choice(self.jobs)())
            if strikes == STRIKES or time.monotonic() > until:
                break
        print(strikes, "strikes")

    def check(self) -> None:
        rows = asyncio.run(self.database.fetch_all("SELECT id FROM things"))
        seen = Counter(row[0] for row in rows)
        assert [number for number in self.done if seen[number] != 1] == []
        assert max(seen.values()) == 1
        assert self.database.stats().idle <= 2


if __name__ == "__main__":
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    worker.run()
    worker.check()
