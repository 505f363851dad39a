"""Tasks of Dask, on two processes with a nanny each: ``dask_jobs.py square|square_async``."""

from __future__ import annotations

import asyncio
import sys

import work
from distributed import Client, LocalCluster


def square(number):
    asyncio.run(work.square(number))


async def square_async(number):
    await work.square(number)


def main():
    import dask_jobs  # as workers import it: what is pickled of __main__ is copied

    jobs = getattr(dask_jobs, sys.argv[1])
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.gather([client.submit(jobs, number) for number in range(5)])


if __name__ == "__main__":
    main()
