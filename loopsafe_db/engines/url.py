"""Our URL grammar -> SQLAlchemy's URL and one driver's connect arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from loopsafe_db.errors import InvalidURLError

if TYPE_CHECKING:
    from loopsafe_db.engines.options import DatabaseOptions

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_POSTGRESQL_NAMES = (
    "application_name",
    "connect_timeout",
    "ssl",
    "sslmode",
    "host",
    "port",
    "options",
)
_SQLITE_NAMES = ("timeout", "cached_statements", "uri", "detect_types", "mode", "cache")


def parse_url(url: str | URL) -> URL:
    """Read a URL; ``postgres://`` is ``postgresql://``.

    Raises:
        InvalidURLError: It cannot be read.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The text may hold a password anywhere, so no part of it is shown.
        raise InvalidURLError(
            f"not a database URL (a text of {len(str(url))} characters)"
        ) from None
    if parsed.drivername == "postgres":
        parsed = parsed.set(drivername="postgresql")
    if parsed.drivername.startswith("postgresql") and not parsed.database:
        raise InvalidURLError(f"the URL names no database: {parsed!r}")
    return parsed


def describe_target(url: URL) -> str:
    """Name driver, host, port and database, and neither user nor password."""
    return URL.create(
        url.drivername, host=url.host, port=url.port, database=url.database
    ).render_as_string()


def asyncpg_arguments(options: DatabaseOptions) -> dict[str, Any]:
    """Give asyncpg's connect arguments.

    Raises:
        InvalidURLError: The query has a name that is not known, or a value that cannot be.
    """
    url = options.url
    query = _known_query(url, _POSTGRESQL_NAMES)
    settings = {
        "application_name": query.get("application_name")
        or options.application_name
        or "loopsafe_db"
    }
    if "options" in query:
        settings["options"] = query["options"]
    mode = query.get("sslmode", query.get("ssl"))
    if mode is not None and mode not in _SSL_MODES:
        raise InvalidURLError(f"sslmode must be one of {', '.join(_SSL_MODES)}, not {mode!r}")
    return {
        "host": query.get("host", url.host),
        "port": int(query["port"]) if "port" in query else url.port,
        "user": url.username,
        "password": url.password,
        "database": url.database,
        "ssl": mode,
        "server_settings": settings,
    }


def aiosqlite_arguments(options: DatabaseOptions) -> dict[str, Any]:
    """Give sqlite3's connect arguments.

    Raises:
        InvalidURLError: The query has a name that is not known.
    """
    query = _known_query(options.url, _SQLITE_NAMES)
    timeout = float(query.get("timeout", 5.0))
    database = options.url.database or ":memory:"
    return {"database": database, "timeout": timeout, "uri": database.startswith("file:")}


def connect_timeout(options: DatabaseOptions) -> float:
    """Give the seconds for connecting: the URL's own go before the settings'."""
    given = options.url.query.get("connect_timeout")
    try:
        return float(str(given)) if given else options.timeouts.connect
    except ValueError:
        raise InvalidURLError(f"connect_timeout must be seconds, not {given!r}") from None


def _known_query(url: URL, known: tuple[str, ...]) -> dict[str, str]:
    unknown = sorted(set(url.query) - set(known))
    if unknown:
        raise InvalidURLError(
            f"unknown in the URL's query: {', '.join(unknown)}; known: {', '.join(known)}"
        )
    return {name: str(value) for name, value in url.query.items()}
