"""What lives as long as a loop keeps nothing of whoever happened to begin it.

A loop copies the context of whoever calls its `call_later` or `add_reader`, and keeps it for as long as it waits: the
ContextVars of a loop's first user, and the request that is in them, would live as long as the loop.
"""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def in_no_context(call: Callable[..., T], *args: object) -> T:
    """Call what copies its caller's context, where there is nothing to copy."""
    return Context().run(call, *args)
