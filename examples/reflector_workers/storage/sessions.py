"""What PostgreSQL itself says about the sessions of the workers."""

from __future__ import annotations

import asyncio

from loopsafe_db import get_database

_LOOK_SECONDS = 0.1


async def open_sessions(application: str) -> int:
    """How many sessions are open whose application name begins with `application`."""
    return int(
        await get_database().fetch_val(
            """
            SELECT count(*) FROM pg_stat_activity
            WHERE starts_with(application_name, :application) AND pid <> pg_backend_pid()
            """,
            {"application": application},
        )
    )


async def sessions_left_open(application: str, patience: float = 5.0) -> int:
    """How many are still open; a closed socket takes the server a moment to notice.

    Args:
        application: Beginning of their application name.
        patience: Seconds until what is still open counts as left open.
    """
    for _ in range(int(patience / _LOOK_SECONDS)):
        if not await open_sessions(application):
            return 0
        await asyncio.sleep(_LOOK_SECONDS)
    return await open_sessions(application)
