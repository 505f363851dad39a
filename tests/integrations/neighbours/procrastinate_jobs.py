"""Tasks of procrastinate, which keeps them in PostgreSQL by connections of its own."""

from __future__ import annotations

import asyncio

import procrastinate
import work

url = work.db.url.set(drivername="postgresql").render_as_string(hide_password=False)
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))


@app.task
async def square(number):
    await work.square(number)


async def main():
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for number in range(5):
            await square.defer_async(number=number)
        await app.run_worker_async(wait=False, concurrency=3, install_signal_handlers=False)


asyncio.run(main())
