"""What a program has SQLAlchemy's events call, on the engines of a handle: on each of them, and in forked children."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

from sqlalchemy.util.concurrency import AsyncAdaptedLock

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


def is_ours(listener: Any) -> bool:
    """Tell whether something that listens is of this library; SQLAlchemy wraps what gives nothing back."""
    cells = [cell.cell_contents for cell in getattr(listener, "__closure__", None) or ()]
    functions = [listener, getattr(listener, "func", None), *cells]
    return any(str(getattr(one, "__module__", "")).startswith("loopsafe_db.") for one in functions)


def put_first(engine: AsyncEngine, event: str) -> None:
    """Have what listens to an event of the engine's last be called first: SQLAlchemy does not heed ``insert=True``."""
    getattr(engine.sync_engine.dispatch, event).listeners.rotate(1)


def hand_on(before: AsyncEngine, engine: AsyncEngine) -> None:
    """Have `engine` heed what listens to the one before it, but for what is ours: it has the like."""
    own = before.sync_engine.pool.own_listeners  # type: ignore[attr-defined]
    for former, target in zip(_targets(before), _targets(engine), strict=True):
        for event in former.dispatch._event_descriptors:  # noqa: SLF001
            if any(id(listener) not in own for listener in event.listeners):
                heard = getattr(target.dispatch, event.name).for_modify(target.dispatch)
                there = set(map(id, heard.listeners))  # some of ours are the same on all engines
                heard._update(event, only_propagate=False)  # noqa: SLF001
                kept = [one for one in heard.listeners if id(one) in there or id(one) not in own]
                heard.listeners.clear()  # the same queue: it may be known already
                heard.listeners.extend(kept)
                target._has_events = True  # noqa: SLF001 (as SQLAlchemy has it when somebody begins to listen)


def unlock(engine: AsyncEngine) -> None:
    """Have an engine that came through a fork wait for no thread or task of its parent's, which may have its locks."""
    for target in _targets(engine):
        for event in target.dispatch._event_descriptors:  # noqa: SLF001
            if hasattr(event, "_exec_once_mutex"):
                event._exec_once_mutex = AsyncAdaptedLock() if event._is_asyncio else Lock()  # noqa: SLF001
    compiled: Any = engine.sync_engine._compiled_cache  # noqa: SLF001
    if compiled is not None:
        compiled._mutex = Lock()  # noqa: SLF001


def _targets(engine: AsyncEngine) -> tuple[Any, ...]:
    sync: Any = engine.sync_engine
    return sync, sync.pool, sync.dialect
