"""Tasks of Luigi with its local scheduler: ``luigi_jobs.py WORKERS``."""

from __future__ import annotations

import asyncio
import sys

import luigi
import work


class Square(luigi.Task):
    number = luigi.IntParameter()

    def run(self):
        asyncio.run(work.square(self.number))

    def complete(self):
        return asyncio.run(work.is_there(self.number))


def main():
    squares = [Square(number=number) for number in range(5)]
    assert luigi.build(squares, workers=int(sys.argv[1]), local_scheduler=True)


if __name__ == "__main__":
    main()
