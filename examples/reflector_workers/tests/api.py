"""What a web application would show of the meetings: a little of Reflector's own."""

from fastapi import FastAPI, HTTPException

from loopsafe_db import get_database
from reflector_workers.domain import Turn
from reflector_workers.storage.meetings import meetings_controller
from reflector_workers.storage.speech import turns_controller

app = FastAPI()


@app.get("/meetings/{meeting_id}/turns")
async def get_turns(meeting_id: int) -> list[Turn]:
    """A meeting's speaker turns."""
    return list(await turns_controller.get_by_meeting(meeting_id))


@app.put("/meetings/{meeting_id}/name")
async def rename(meeting_id: int, name: str) -> str:
    """Give a meeting another name; the name it had."""
    async with get_database().transaction():
        try:
            before = (await meetings_controller.get_by_id(meeting_id)).name
        except LookupError as error:
            raise HTTPException(404, str(error)) from error
        await get_database().execute(
            "UPDATE reflector.meetings SET name = :name WHERE id = :id",
            {"id": meeting_id, "name": name},
        )
    return before
