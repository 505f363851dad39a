"""get_database() and configure(): the named handles of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loopsafe_db.database import Database
from loopsafe_db.engines.options import DatabaseOptions, PoolLimits, Timeouts
from loopsafe_db.engines.url import parse_url
from loopsafe_db.settings import load_options

if TYPE_CHECKING:
    from sqlalchemy import URL

_handles: dict[str, NamedDatabase] = {}


class NamedDatabase(Database):
    """A handle with a name: it pickles as its name, and so without its password."""

    _name: str

    def __reduce__(self) -> tuple[Any, ...]:
        return get_database, (self._name,)


def get_database(name: str = "default") -> Database:
    """Give the process-wide handle of that name; cheap, and right to call anywhere at any time.

    Reads ``LOOPSAFE_DB_URL``, else ``DATABASE_URL`` (for another name ``LOOPSAFE_DB_<NAME>_URL``), once.

    Raises:
        ConfigurationError: No URL is set, or a setting will not do.
    """
    try:
        return _handles[name]
    except KeyError:
        return _keep(name, load_options(name))


def configure(
    url: str | URL,
    *,
    name: str = "default",
    pool: PoolLimits | None = None,
    timeouts: Timeouts | None = None,
    application_name: str | None = None,
) -> Database:
    """Set a handle up from the program instead of the environment.

    A handle of that name that somebody holds already changes with it; connections that are open stay
    until their loop ends.

    Raises:
        ConfigurationError: The URL cannot be read, or has no driver.
    """
    return _keep(
        name,
        DatabaseOptions(
            parse_url(url), pool or PoolLimits(), timeouts or Timeouts(), application_name
        ),
    )


def _keep(name: str, options: DatabaseOptions) -> Database:
    made = NamedDatabase.__new__(NamedDatabase)
    made._name = name  # noqa: SLF001
    made._apply(options)  # noqa: SLF001
    kept = _handles.setdefault(name, made)  # threads that race share one
    if kept is not made:
        kept._apply(options)  # noqa: SLF001
    return kept
