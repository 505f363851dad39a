"""The section "Where the rest goes": one query, step by step, beside the same steps without loopsafe_db."""

from __future__ import annotations

import enum
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.rounds import Result


class Step(enum.Enum):
    """What happens in a job, in this order."""

    OPEN = "open", "`asyncio.run` makes a loop and starts the task"
    THERE = "there", "loopsafe_db finds pool, connection and compiled query"
    NOTHING = "nothing", ""
    DRIVER = "driver", "asyncpg sends the query and waits for the answer"
    BACK = "back", "loopsafe_db gives the connection back"
    CLOSE = "close", "`asyncio.run` closes the loop"

    @property
    def key(self) -> str:
        return self.value[0]

    @property
    def title(self) -> str:
        return self.value[1]


ALL_STEPS = [Step.OPEN, Step.THERE, Step.DRIVER, Step.BACK, Step.CLOSE]
BARE_RUN, BARE_QUERY = "empty asyncio.run", "asyncpg, held connection"
OUR_RUN, OUR_QUERY = "loopsafe_db in runs", "loopsafe_db in one loop"


def rows(result: Result) -> list[list[str]]:
    """Give the table: a step, then microseconds in a run of its own, in a long loop, and bare."""
    steps = {
        name: {key: median(values) * 1e6 for key, values in track.facts.items()}
        for name, track in result.tracks.items()
    }
    bare = {**steps[BARE_RUN], **steps[BARE_QUERY]}
    columns = [steps[OUR_RUN], steps[OUR_QUERY], bare]
    table = [[step.title, *_cells(columns, step.key)] for step in ALL_STEPS]
    sums = [sum(column.get(step.key, 0) for step in ALL_STEPS) for column in columns]
    return [*table, ["together", *(f"**{value:.0f}**" for value in sums)]]


def _cells(columns: Sequence[dict[str, float]], key: str) -> list[str]:
    return [f"{column[key]:.0f}" if key in column else "" for column in columns]
