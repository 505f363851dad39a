"""Our URL grammar: SQLAlchemy's URL, with a query whose names are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from loopsafe_db.errors import InvalidSettingError, InvalidURLError

if TYPE_CHECKING:
    from loopsafe_db.options import DatabaseOptions


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
    if "@" in (parsed.host or ""):  # the end of a password, which is not to be shown
        raise InvalidURLError("there is a second @ before the host: in a password it is %40")
    if parsed.drivername.startswith("postgresql") and not parsed.database:
        raise InvalidURLError(f"the URL names no database: {describe_target(parsed)}")
    return parsed


def describe_target(url: URL) -> str:
    """Name driver, host, port and database, and neither user nor password."""
    return URL.create(
        url.drivername, host=url.host, port=url.port, database=url.database
    ).render_as_string()


def connect_timeout(options: DatabaseOptions) -> float:
    """Give the seconds for connecting: the URL's own go before the settings'."""
    given = options.url.query.get("connect_timeout")
    if not given:
        return options.timeouts.connect
    try:
        seconds = float(str(given))
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InvalidURLError(f"connect_timeout must be more than 0 seconds, not {given!r}")
    return seconds


def refuse_postgresql_options(options: DatabaseOptions) -> None:
    """For drivers of other databases.

    Raises:
        InvalidSettingError: `options` has something that is PostgreSQL's alone.
    """
    for name in ("server_settings", "pgbouncer"):
        if getattr(options, name):
            raise InvalidSettingError(f"{name} is for PostgreSQL, not for {options.url.drivername}")


def known_query(url: URL, known: tuple[str, ...]) -> dict[str, str]:
    """Give the URL's query.

    Raises:
        InvalidURLError: It has a name that is not known.
    """
    unknown = sorted(set(url.query) - set(known))
    if unknown:
        raise InvalidURLError(
            f"unknown in the URL's query: {', '.join(unknown)}; known: {', '.join(known)}"
        )
    return {
        name: value if isinstance(value, str) else ",".join(value)
        for name, value in url.query.items()
    }
