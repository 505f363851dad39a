"""What a program has SQLAlchemy's events call, on the engine of a handle: called in forked children, too."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


def listeners_of(engine: AsyncEngine) -> frozenset[int]:
    """Tell what listens to it now, by ``id``: it lives as long as the engine does."""
    return frozenset(
        id(listener)
        for target in _targets(engine)
        for event in target.dispatch._event_descriptors  # noqa: SLF001
        for listener in event.listeners
    )


def hand_on(parents: AsyncEngine, own: frozenset[int], engine: AsyncEngine) -> None:
    """Have `engine` heed what listens to its parent process's, but for that one's `own`: it has the like."""
    for before, after in zip(_targets(parents), _targets(engine), strict=True):
        for event in before.dispatch._event_descriptors:  # noqa: SLF001
            if any(id(listener) not in own for listener in event.listeners):
                heard = getattr(after.dispatch, event.name).for_modify(after.dispatch)
                heard._update(event, only_propagate=False)  # noqa: SLF001
                heard.listeners = deque(one for one in heard.listeners if id(one) not in own)


def _targets(engine: AsyncEngine) -> tuple[Any, ...]:
    sync: Any = engine.sync_engine
    return sync, sync.pool, sync.dialect
