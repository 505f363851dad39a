"""SQLAlchemy's locks at a fork: one that another thread has just then would stay locked in the child for ever.

Sessions and queries of the ORM count themselves under such a lock, and mappers are configured under one. A fork waits
for them, as for steps of our own. What it has not got by then is new in the child, where nobody has it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects.postgresql._psycopg_common import _server_side_id
from sqlalchemy.orm.loading import _new_runid
from sqlalchemy.orm.mapper import _CONFIGURE_MUTEX
from sqlalchemy.orm.session import _new_sessionid

from loopsafe_db._runtime.whole_steps import wait_at_forks

if TYPE_CHECKING:
    from collections.abc import Callable


def _locks_of(counter: Callable[[], int]) -> list[Any]:
    """Give the lock of a ``sqlalchemy.util.counter()``, which only its closure knows; nothing where it needs none."""
    cells = counter.__closure__ or ()
    return [cell.cell_contents for cell in cells if hasattr(cell.cell_contents, "acquire")]


@cache
def guard_locks() -> None:
    """Have each fork from now on wait for SQLAlchemy's locks."""
    counters = (_new_sessionid, _new_runid, _server_side_id)
    wait_at_forks(_CONFIGURE_MUTEX, *(lock for one in counters for lock in _locks_of(one)))
