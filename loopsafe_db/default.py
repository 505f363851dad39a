"""get_database() and configure(): the named handles of this process."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from loopsafe_db.database import Database, _restore
from loopsafe_db.drivers.url import describe_target
from loopsafe_db.engines.factory import make_options
from loopsafe_db.errors import (
    ConfigurationError,
    InvalidSettingError,
    InvalidURLError,
    MissingURLError,
)
from loopsafe_db.settings import load_options, name_variable
from loopsafe_db.url import DatabaseURL, hidden

if TYPE_CHECKING:
    from typing import Unpack

    from sqlalchemy import URL

    from loopsafe_db.options import DatabaseOptions, Options

_handles: dict[str, NamedDatabase] = {}
_NO_NAME = re.compile(r"://|[@=]")  # a URL, a part of one, or libpq's "host=... password=..."


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
        name = hidden(name)
    name = _checked(name)
    try:
        made = _named(name, load_options(name))
    except MissingURLError as error:
        raise MissingURLError(name, error.variables, sorted(_handles)) from None
    except ConfigurationError as error:
        name_variable(error, name)
        raise
    return _handles.setdefault(name, made)  # threads that race share one


def configure(url: str | URL, *, name: str = "default", **options: Unpack[Options]) -> Database:
    """Set a handle up from the program instead of the environment.

    A handle of that name that somebody holds already changes with it; its idle connections are closed, those
    in use when they come back. Where it is undone just then, by `Database.force_rollback` or a fixture for tests, that
    goes on, and the new settings hold afterwards.

    Args:
        url: As for `Database`.
        name: What `get_database` is asked for.
        options: See `Options`.

    Raises:
        ConfigurationError: The URL cannot be read, or has no driver; or an option has a value that cannot be.
    """
    url, name = hidden(url), hidden(name)
    name = _checked(name)
    made = _named(name, make_options(url, options))
    kept = _handles.setdefault(name, made)
    if kept is not made:
        kept._overrides.rebase(made._overrides.base)  # noqa: SLF001
    return kept


def _checked(name: Any) -> str:
    """Give the name, unless it is something else that may hold a password, which no error is to show."""
    if isinstance(name, str) and not _NO_NAME.search(name):
        return str(name)
    what = "a URL" if isinstance(name, str) else f"a {type(name).__name__}"
    with suppress(InvalidURLError, TypeError):
        what = f"a URL, {describe_target(DatabaseURL(name))}"
    raise InvalidSettingError(
        f"name: this takes the name of a handle, such as 'default', and was given {what}; a URL goes to "
        "loopsafe_db.Database(url), or once to loopsafe_db.configure(url), and get_database() gives that handle"
    )


def _named(name: str, options: DatabaseOptions) -> NamedDatabase:
    made = _restore(NamedDatabase, options)
    made._name = name  # noqa: SLF001
    return made
