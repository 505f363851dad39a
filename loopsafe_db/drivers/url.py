"""Our URL grammar: SQLAlchemy's URL, with a query whose names are checked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy import URL

from loopsafe_db.errors import InvalidSettingError, InvalidURLError
from loopsafe_db.options import HANDLE_NAMES, SECONDS, nearest
from loopsafe_db.url import DatabaseURL, describe_other, hidden

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopsafe_db.options import DatabaseOptions

_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f]"
)  # a terminal takes the last ones for ESC and a letter


def parse_url(url: str | URL) -> DatabaseURL:
    """Read the URL of a handle; ``postgres://`` is ``postgresql://``.

    Raises:
        InvalidURLError: It cannot be read, or is none.
    """
    url = hidden(url)
    refuse_no_url(url)
    parsed = DatabaseURL(url)
    if _is_postgresql(parsed) and not parsed.database:
        raise InvalidURLError(f"the URL names no database: {describe_target(parsed)}")
    return parsed


def refuse_no_url(url: object) -> None:
    """Refuse what is neither a text nor a URL.

    Raises:
        InvalidURLError: It is neither.
    """
    if not isinstance(url, (str, URL)):
        raise InvalidURLError(describe_other(url))


def _is_postgresql(url: URL) -> bool:
    return url.drivername.startswith("postgresql")


def describe_target(url: URL) -> str:
    """Name driver, host, port and database, and neither user nor password."""
    return URL.create(
        url.drivername, host=url.host, port=url.port, database=url.database
    ).render_as_string()


def dialect_url(options: DatabaseOptions) -> URL:
    """Give SQLAlchemy's URL, with what its dialect may understand of the query: not what is ours for all drivers."""
    plain = URL._make(options.url)  # for str() of a DatabaseURL shows the password
    return plain.difference_update_query(["connect_timeout", *HANDLE_NAMES])


def connect_timeout(options: DatabaseOptions) -> float:
    """Give the seconds for connecting: what is said of it by name goes before ``timeouts``."""
    name = "connect_timeout"
    if name not in options.query and _is_postgresql(options.url):
        name = "timeout"
    seconds: float = options.number(name, SECONDS, options.timeouts.connect)
    return seconds


def refuse_postgresql_options(options: DatabaseOptions) -> None:
    """For drivers of other databases.

    Raises:
        InvalidSettingError: `options` has something that is PostgreSQL's alone.
    """
    for name in ("server_settings", "pgbouncer", "ssl_context"):
        if getattr(options, name):
            name = name.removesuffix("_context")
            raise InvalidSettingError(f"{name} is for PostgreSQL, not for {options.url.drivername}")


def refuse_keywords(options: DatabaseOptions, known: tuple[str, ...]) -> None:
    """Refuse what the driver does not know.

    Raises:
        InvalidSettingError: A keyword is for another database.
    """
    for name in options.connecting:
        if name not in known:
            raise InvalidSettingError(f"{name} is not for {options.url.drivername}")


def refuse_control_characters(options: DatabaseOptions) -> None:
    """Refuse what the server would cut off, change, or read as the next parameter of the session's start.

    Raises:
        InvalidSettingError: A keyword, or a setting of the sessions, has a control character.
        InvalidURLError: The URL has one.
    """
    for what, value in _in_keywords(options):
        if _CONTROL.search(value):
            raise InvalidSettingError(f"{what} has a control character")
    url = options.url
    for what, part in (("user", url.username), ("database", url.database), ("host", url.host)):
        if part and _CONTROL.search(part):
            raise InvalidURLError(f"the name of the {what} has a control character")
    for name, value in options.query.items():
        if _CONTROL.search(name + value):
            raise options.refusal(name)(f"{name!r} has a control character")


def _in_keywords(options: DatabaseOptions) -> Iterator[tuple[str, str]]:
    yield "application_name", options.application_name or ""
    for name, value in options.server_settings.items():
        yield f"server_settings: {name!r}", f"{name}{value}"


def known_query(options: DatabaseOptions, known: tuple[str, ...]) -> dict[str, str]:
    """Give what is said to the driver, by the URL's query and by keyword.

    Raises:
        InvalidURLError: The URL has a name that is not known.
        InvalidSettingError: A keyword is for another database.
    """
    refuse_keywords(options, known)
    query = options.query
    if unknown := sorted(query.keys() - set(known)):
        names = (*known, *HANDLE_NAMES)
        told = [f"{name} ({nearest(name, names, {})})" for name in unknown]
        raise InvalidURLError(f"unknown in the URL's query: {', '.join(told)}")
    return query


def is_memory(database: str) -> bool:
    """Tell whether SQLite keeps this nowhere: it ends with its last connection."""
    path, _, query = database.partition("?")
    return path in (":memory:", "file::memory:") or "mode=memory" in query.split("&")


def is_memory_for_dialect(url: URL) -> bool:
    """Tell whether SQLAlchemy's dialect opens a database that ends with its connection."""
    if url.get_backend_name() != "sqlite":
        return False
    return is_memory(url.database or ":memory:") or url.query.get("mode") == "memory"
