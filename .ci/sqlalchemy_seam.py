"""A plugin of pytest: what SQLAlchemy's tests make by `testing_engine` is made by loopsafe_db."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio

import loopsafe_db

_OWN_ASYNC, _OWN = sa.ext.asyncio.create_async_engine, sa.create_engine
_POOLS = (None, sa.AsyncAdaptedQueuePool, sa.NullPool)
_THEIRS = ("pool", "creator", "async_creator", "module", "_initialize", "server_side_cursors")


def create_async_engine(url: Any, **options: Any) -> Any:
    """Make one of ours, unless the test is about another pool, or about how connections are made."""
    if _is_theirs(url, options):
        return _OWN_ASYNC(url, **options)
    return loopsafe_db.create_async_engine(url, **options)


def create_engine(url: Any, **options: Any) -> Any:
    """Make the one below it, which runs in SQLAlchemy's greenlet."""
    if _is_theirs(url, options):
        return _OWN(url, **options)
    engine: Any = loopsafe_db.create_async_engine(url, **options)
    engine.sync_engine.kept = engine.handle  # or its connections would end
    return engine.sync_engine


def _is_theirs(url: Any, options: dict[str, Any]) -> bool:
    return (
        not url.get_dialect().is_async
        or options.get("poolclass") not in _POOLS
        or any(options.get(name) is not None for name in _THEIRS)
    )


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Have SQLAlchemy's tests call these."""
    from sqlalchemy.testing import engines

    of_sqlalchemy: Any = engines.testing_engine

    def testing_engine(*args: Any, **options: Any) -> Any:
        with (
            mock.patch.object(sa, "create_engine", create_engine),
            mock.patch.object(sa.ext.asyncio, "create_async_engine", create_async_engine),
        ):
            return of_sqlalchemy(*args, **options)

    engines.testing_engine = testing_engine
