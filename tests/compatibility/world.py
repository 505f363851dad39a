"""What a scenario is given, and how what it saw is written down: nothing here knows which library runs."""

from __future__ import annotations

import asyncio
import enum
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.schema import CreateTable

from tests.compatibility import scenarios

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import ModuleType

    from sqlalchemy import Table

TIMEOUT = 10.0  # seconds for a scenario; what hangs is an outcome, too


@dataclass(frozen=True)
class World:
    """One of the two libraries, and an empty database for it.

    Attributes:
        library: ``databases`` or ``loopsafe_db``.
        url: ``postgresql://…`` or ``sqlite:///…``.
    """

    library: ModuleType
    url: str

    @property
    def dialect(self) -> str:
        return self.url.split(":", 1)[0]

    @property
    def Database(self) -> Any:
        return self.library.Database

    @property
    def DatabaseURL(self) -> Any:
        return self.library.DatabaseURL

    @asynccontextmanager
    async def database(self, *tables: Table, **options: Any) -> AsyncIterator[Any]:
        """A connected handle with these tables."""
        async with self.Database(self.url, **options) as database:
            await create(database, *tables)
            yield database


async def create(database: Any, *tables: Table) -> None:
    for table in tables:
        await database.execute(CreateTable(table))


def only(dialect: str) -> Callable[[Any], Any]:
    """Mark a scenario that makes sense on one kind of database."""

    def mark(scenario: Any) -> Any:
        scenario.dialects = (dialect,)
        return scenario

    return mark


def find_scenarios(dialect: str) -> dict[str, Any]:
    """Give every scenario of a dialect by its name, ``module.function``."""
    found = {}
    for module_info in pkgutil.iter_modules(scenarios.__path__):
        module = importlib.import_module(f"{scenarios.__name__}.{module_info.name}")
        for name, function in inspect.getmembers(module, inspect.iscoroutinefunction):
            if name.startswith("_") or function.__module__ != module.__name__:
                continue
            if dialect in getattr(function, "dialects", (dialect,)):
                found[f"{module_info.name}.{name}"] = function
    return found


async def play(scenario: Any, world: World) -> dict[str, Any]:
    """Run one scenario; give what it saw, or what stopped it. Only `message` is not compared."""
    try:
        async with asyncio.timeout(TIMEOUT):
            return {"saw": plain(await scenario(world))}
    except Exception as error:  # noqa: BLE001 (whatever stops it is the outcome)
        return {"stopped by": type(error).__name__, "message": str(error)[:500]}


async def attempt(awaitable: Awaitable[Any], timeout: float = 10.0) -> Any:
    """Give what comes back, or the name of the exception that does."""
    try:
        async with asyncio.timeout(timeout):  # not wait_for, which makes an asyncio task of it
            return plain(await awaitable)
    except Exception as error:  # noqa: BLE001 (whatever is raised is the outcome)
        return f"raised {type(error).__name__}"


def attempt_call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Do so for a plain function."""
    try:
        return plain(function(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 (whatever is raised is the outcome)
        return f"raised {type(error).__name__}"


def plain(value: Any) -> Any:
    """Put a value in terms of JSON; its type can still be told."""
    if isinstance(value, enum.Enum):
        return str(value)
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):  # SQLAlchemy has subclasses for names
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if type(value) in (list, set):
        return [plain(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [plain(item) for item in value]}
    return f"{type(value).__name__}: {value!r}"


async def rows_of(database: Any, query: Any, values: Any = None) -> list[dict[str, Any]]:
    return [dict(row) for row in await database.fetch_all(query, values)]
