"""What the fleet needs around it: a PostgreSQL, a Conductor, and their end whatever happens."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from loopsafe_db import configure
from loopsafe_db.testing.postgres import EmbeddedPostgres
from reflector_workers.conductor import open_conductor
from reflector_workers.domain import MeetingError
from reflector_workers.storage.schema import create_schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from rich.console import Console

URL_VARIABLE = "LOOPSAFE_DB_URL"


@dataclass(frozen=True)
class Stage:
    """Running servers.

    Attributes:
        conductor_url: The API of a Conductor.
        application: How the workers' sessions are named in ``pg_stat_activity``.
    """

    conductor_url: str
    application: str


@contextmanager
def open_stage(conductor: str | None, console: Console) -> Iterator[Stage]:
    """Start what is missing; processes started inside find the database in the environment.

    Args:
        conductor: ``stand-in``, ``real``, a URL, or None for what the environment says.
        console: Told what starts.

    Raises:
        MeetingError: ``LOOPSAFE_DB_URL`` names no PostgreSQL.
        LoopsafeError: The database cannot be used.
        ConductorError: There is no Conductor.
    """
    application = f"reflector-{secrets.token_hex(4)}"
    with _sigterm_ends_it(), _database(console) as url:
        # two names, so that the workers' sessions can be told from this process's own
        configure(url=_named(url, f"{application}-demo"))
        asyncio.run(create_schema())
        with (
            _environment(URL_VARIABLE, _named(url, f"{application}-worker")),
            open_conductor(conductor, report=console.print) as conductor_url,
        ):
            console.print(f"Conductor: {conductor or 'stand-in'} at {conductor_url}")
            yield Stage(conductor_url, f"{application}-worker")


@contextmanager
def _database(console: Console) -> Iterator[str]:
    if given := os.environ.get(URL_VARIABLE):
        console.print(f"PostgreSQL: the one of {URL_VARIABLE}, {_postgresql(given)!r}")
        yield given
        return
    with EmbeddedPostgres() as server:
        console.print(f"PostgreSQL: embedded, {make_url(server.url)!r}")
        yield server.url


def _postgresql(text: str) -> object:
    """The URL, which shows no password; refused if it is of another database."""
    cure = f"Unset {URL_VARIABLE}, or give postgresql://user:password@host/database"
    try:
        url = make_url(text)
    except ArgumentError as error:  # its text would repeat the password
        raise MeetingError(f"{URL_VARIABLE} is not a database URL. {cure}") from error
    if url.get_backend_name() != "postgresql":
        raise MeetingError(f"this demo needs PostgreSQL, not {url.get_backend_name()}. {cure}")
    return url


def _named(url: str, application: str) -> str:
    named = make_url(url).update_query_dict({"application_name": application})
    return named.render_as_string(hide_password=False)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _sigterm_ends_it() -> Iterator[None]:
    """Make SIGTERM leave every ``with`` block, as Ctrl-C does."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
