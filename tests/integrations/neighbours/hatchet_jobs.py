"""Tasks of Hatchet and their worker."""

from __future__ import annotations

import asyncio

import work
from hatchet_sdk import Context, Hatchet
from pydantic import BaseModel


class Number(BaseModel):
    number: int


hatchet = Hatchet()


@hatchet.task(name="square", input_validator=Number)
def square(given: Number, context: Context) -> dict:
    asyncio.run(work.square(given.number))
    return {}


@hatchet.task(name="square_async", input_validator=Number)
async def square_async(given: Number, context: Context) -> dict:
    await work.square(given.number)
    return {}


if __name__ == "__main__":
    hatchet.worker("squares", workflows=[square, square_async]).start()
