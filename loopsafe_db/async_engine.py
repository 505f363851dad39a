"""create_async_engine(): SQLAlchemy's, for an engine in a module that is used in every loop, thread and process."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import asbool

from loopsafe_db.database import Database, _restore
from loopsafe_db.engines.factory import make_options
from loopsafe_db.engines.sqlalchemy_options import read
from loopsafe_db.errors import InvalidSettingError
from loopsafe_db.url import hidden

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

_KINDS = {
    **DefaultDialect.engine_config_types,
    **dict.fromkeys(("pool_pre_ping", "pool_use_lifo", "hide_parameters"), asbool),
}


def create_async_engine(url: str | URL, **options: Any) -> AsyncEngine:
    """Make an engine; should live as long as your program does.

    Keep it in a module global, make it at import, before a fork, in any thread. Each use finds the connections of the
    process that it is made in, and one that works in the loop that it is made in. `AsyncSession`, `async_sessionmaker`
    and what listens to its events may be made once, too.

    Args:
        url: As SQLAlchemy takes it; ``postgresql://`` is asyncpg, ``sqlite://`` aiosqlite.
        options: Those of SQLAlchemy's `create_async_engine`, and those of `Options`.

    Raises:
        ConfigurationError: The URL cannot be read, or has no driver; or an option cannot be meant here.
    """
    said = read(hidden(url), options)
    made = replace(
        make_options(said.url, said.ours),  # type: ignore[arg-type]
        engine=said.theirs,
        connect_args=said.connecting,
        pool_size=said.size,
        keeps=said.keeps,
    )
    return _restore(
        Database, made
    ).engine  # SQLAlchemy's own is made with it, and refuses what it does not know


def async_engine_from_config(
    configuration: Mapping[str, Any], prefix: str = "sqlalchemy.", **options: Any
) -> AsyncEngine:
    """Make an engine of a configuration: ``{"sqlalchemy.url": ..., "sqlalchemy.pool_size": "5"}``.

    Args:
        configuration: Options of `create_async_engine`, which may be texts, and others.
        prefix: What the names of its options begin with.
        options: Further ones, which go first.

    Raises:
        ConfigurationError: As `create_async_engine`.
    """
    said = {
        name.removeprefix(prefix): value
        for name, value in configuration.items()
        if name.startswith(prefix)
    }
    said = {**said, **options}
    if "url" not in said:
        raise InvalidSettingError(f"async_engine_from_config: there is no {prefix}url")
    return create_async_engine(**{name: _read(name, value) for name, value in said.items()})


def _read(name: str, value: Any) -> Any:
    """Give what a text says, of the options that are no texts."""
    kind = _KINDS.get(name)
    return value if kind is None or not isinstance(value, str) else kind(value)
