"""Jobs of pgqueuer, which keeps them in PostgreSQL by a connection of its own."""

from __future__ import annotations

import asyncio

import asyncpg
import work
from pgqueuer import AsyncpgDriver, PgQueuer, Queries
from pgqueuer.types import QueueExecutionMode


async def main():
    url = work.db.url.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(url)
    driver = AsyncpgDriver(connection)
    queries = Queries(driver)
    await queries.install()
    payloads = [str(number).encode() for number in range(5)]
    await queries.enqueue(["square"] * 5, payloads, [0] * 5)
    queue = PgQueuer(driver)

    @queue.entrypoint("square", concurrency_limit=1)
    async def square(job):
        await work.square(int(job.payload))

    await queue.run(mode=QueueExecutionMode.drain, batch_size=1)
    await connection.close()


asyncio.run(main())
