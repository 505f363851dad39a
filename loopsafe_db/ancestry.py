"""Which blocks the running code is inside of: an asyncio task inherits that from the task that starts it."""

from __future__ import annotations

from contextvars import ContextVar


class Block:
    """A block of code that holds a connection or a transaction."""

    __slots__ = ("_ended",)

    def __init__(self) -> None:
        self._ended = False

    def enter(self) -> None:
        """Note that the running code, and whatever it starts, is inside from now on."""
        blocks = {self}
        if others := _blocks.get():
            # Blocks that were left in another context, as a generator's are by the garbage collector, go here.
            blocks.update(block for block in others if not block._ended)  # noqa: SLF001
        _blocks.set(frozenset(blocks))

    def leave(self) -> None:
        """Note that the running code is so no longer; what it has started still is."""
        self._ended = True
        _blocks.set(_blocks.get() - {self})

    @property
    def surrounds(self) -> bool:
        """Whether the running code, or a task that led to it, is inside."""
        return self in _blocks.get()


def is_inside_any() -> bool:
    """Tell whether the running code is, or was, inside of any block: the first question, for it is cheap."""
    return bool(_blocks.get())


_blocks: ContextVar[frozenset[Block]] = ContextVar("loopsafe_db blocks", default=frozenset())
