"""A worker of RQ with five jobs: ``rq_run Worker|SimpleWorker``. It has imported the module of the jobs."""

from __future__ import annotations

import os
import sys

import redis
import rq
import work


def main():
    connection = redis.Redis.from_url(os.environ["REDIS_URL"])
    queue = rq.Queue(connection=connection)
    for number in range(5):
        queue.enqueue(work.square, number)
    getattr(rq, sys.argv[1])([queue], connection=connection).work(burst=True)


if __name__ == "__main__":
    main()
