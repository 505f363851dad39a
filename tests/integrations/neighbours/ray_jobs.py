"""Tasks and an actor of Ray on two processes: ``ray_jobs.py square|square_async``."""

from __future__ import annotations

import asyncio
import os
import sys

# On the loopback alone, as on macOS: Ray replaces a `_node_ip_address` of 127.0.0.1 by an outward one.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
import ray
import work  # what is pickled of __main__ is copied, and imports it where it runs


@ray.remote
def square(number):
    asyncio.run(work.square(number))


@ray.remote
class Squares:
    async def square(self, number):
        await work.square(number)


def main():
    ray.init(num_cpus=2, include_dashboard=False, logging_level="warning")
    job = square if sys.argv[1] == "square" else Squares.remote().square
    for number in range(5):
        ray.get(job.remote(number))
    ray.shutdown()


if __name__ == "__main__":
    main()
