"""SQLAlchemy's greenlets: one that is ended by whomever goes back to who ends it, and one that waits keeps no loop.

A coroutine that is dropped half-way is ended where that happens: by the garbage collector, or by who lets its last
reference go, perhaps inside the greenlet of a stranger. A greenlet that ends goes on in its parent: the one that
has *started* it. So nobody would go back to the stranger, and its caller would get ``GeneratorExit``, or the answer of
another.

No garbage collector looks into a greenlet that waits: what its frames refer to is never garbage. So they know what is
awaited no more once somebody awaits it: that refers to the event loop, which may be dropped without ``close()``.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from greenlet import getcurrent, greenlet
from sqlalchemy.util import await_only, greenlet_spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator


def _throw(self: Any, *error: Any) -> Any:
    """Raise an error in a greenlet, and come back here."""
    with suppress(ValueError):  # it is another thread's: `throw` refuses it
        self.parent = getcurrent()
    return greenlet.throw(self, *error)


class _HandedOn:
    """What a greenlet has somebody await for it; empty from then on."""

    __slots__ = ("_awaitable",)

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self._awaitable: Any = awaitable

    def __await__(self) -> Generator[Any, Any, Any]:
        awaitable, self._awaitable = self._awaitable, None
        return awaitable.__await__()  # type: ignore[no-any-return]


def _hand_on(awaitable: Any, *, current: Any, kind: Any, handed_on: Any, refuse: Any) -> Any:
    """Be `await_only`: SQLAlchemy runs this code, and looks up names in a module of its own."""
    this = current()
    if not isinstance(this, kind):
        return refuse(awaitable)
    awaitable = handed_on(awaitable)
    return this.parent.switch(awaitable)


@cache
def mend_greenlets() -> None:
    """Have what SQLAlchemy runs in a greenlet come back to who throws into it, and know no more what is awaited for it.

    Its dialects have `await_only` by name, so that is given other code; not where a release has made it another thing.
    """
    spawned, kind = greenlet_spawn(getcurrent), cast("Any", greenlet)
    try:
        spawned.send(None)
    except StopIteration as ended:
        kind = type(ended.value)
    kind.throw = _throw
    known = getattr(await_only, "__code__", None)
    if known is not None and (known.co_argcount, known.co_kwonlyargcount) == (1, 0):
        refuse = FunctionType(await_only.__code__, await_only.__globals__)
        names = {"current": getcurrent, "kind": kind, "handed_on": _HandedOn, "refuse": refuse}
        await_only.__code__, await_only.__kwdefaults__ = _hand_on.__code__, names
