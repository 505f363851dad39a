"""Opening a connection to a server that is just about to start, or has no room just now."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loopsafe_db._runtime.whole_steps import in_whole_steps
from loopsafe_db.errors import ConnectError, ConnectTimeout

if TYPE_CHECKING:
    from loopsafe_db.drivers.base import ConnectOptions, Driver

_SHORTEST, _LONGEST = 0.05, 1.0  # seconds from one attempt to the next, at most: first, and ever
_log = logging.getLogger("loopsafe_db")


async def connect(driver: Driver, options: ConnectOptions) -> Any:
    """Open a connection; while the server refuses all that come, try again until the time for it is over.

    Raises:
        ConnectError: What the last attempt has met that had the time.
    """
    until, longest, attempt = time.monotonic() + options.timeout, _SHORTEST, options
    refused: ConnectError | None = None
    while True:
        try:
            return await in_whole_steps(driver.connect(attempt))
        except ConnectTimeout:
            if refused is None:
                raise
            raise refused from refused.__cause__  # the rest of the time was short
        except ConnectError as error:
            # Many processes may wait for the same server: none of them is to come at the same moment.
            pause = random.uniform(longest / 2, longest)
            if not error.is_temporary or time.monotonic() + pause >= until:
                raise
            if refused is None:
                why = error.reason.splitlines()[0]
                _log.warning(
                    "cannot connect to %s yet, tried again for up to %g s: %s",
                    *(options.target, options.timeout, why),
                )
            refused = error
        await asyncio.sleep(pause)
        attempt = replace(options, timeout=round(max(until - time.monotonic(), 0.001), 3))
        longest = min(longest * 2, _LONGEST)
