"""SQLAlchemy's greenlets: one that is ended by whomever goes back to who ends it.

A coroutine that is dropped half-way is ended where that happens: by the garbage collector, or by who lets its last
reference go, perhaps inside the greenlet of a stranger. A greenlet that ends goes on in its parent: the one that
has *started* it. So nobody would go back to the stranger, and its caller would get ``GeneratorExit``, or the answer of
another.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from greenlet import getcurrent, greenlet
from sqlalchemy.util import greenlet_spawn


def _throw(self: Any, *error: Any) -> Any:
    """Raise an error in a greenlet, and come back here."""
    with suppress(ValueError):  # it is another thread's: `throw` refuses it
        self.parent = getcurrent()
    return greenlet.throw(self, *error)


def come_back_from_throw() -> None:
    """Have what SQLAlchemy runs in a greenlet come back to who throws into it, not to who has started it."""
    spawned = greenlet_spawn(getcurrent)
    try:
        spawned.send(None)
    except StopIteration as ended:
        type(ended.value).throw = _throw
