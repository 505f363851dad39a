"""How the database is, as its server tells it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from loopsafe_db.cli.findings import Finding
from loopsafe_db.database import Database
from loopsafe_db.default import get_database
from loopsafe_db.drivers.libpq import APPLICATION
from loopsafe_db.drivers.url import describe_target
from loopsafe_db.errors import LoopsafeError
from loopsafe_db.options import Timeouts
from loopsafe_db.settings import application_name, fleet_budget, pgbouncer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

IDLE_SECONDS = 30.0  # in a transaction, until it is worth a word
BLOCKED_SECONDS = 1.0  # by another session's lock, until it is worth a word
FULL = 0.8  # of the server's connections, until it is worth a word

_SESSIONS = """
SELECT coalesce(nullif(application_name, ''), '?') || ' on ' || coalesce(client_addr::text, 'this host') AS who,
       count(*) AS number
FROM pg_stat_activity WHERE backend_type = 'client backend' GROUP BY 1 ORDER BY 2 DESC, 1
"""
_FLEET = """
SELECT coalesce(host(client_addr), 'this host') AS host, count(*) AS number
FROM pg_stat_activity
WHERE starts_with(application_name, :name) AND pid <> pg_backend_pid() GROUP BY 1 ORDER BY 1
"""
_IDLE = """
SELECT pid, application_name, coalesce(client_addr::text, 'this host') AS host,
       extract(epoch FROM now() - state_change)::float8 AS seconds, left(query, 80) AS query
FROM pg_stat_activity
WHERE state LIKE 'idle in transaction%' AND now() - state_change > make_interval(secs => :seconds)
ORDER BY seconds DESC
"""
_BLOCKED = """
SELECT blocked.pid, extract(epoch FROM now() - blocked.query_start)::float8 AS seconds,
       left(blocked.query, 80) AS query,
       blocker.pid AS by_pid, coalesce(nullif(blocker.application_name, ''), '?') AS by_name, blocker.state,
       coalesce(blocker.client_addr::text, 'this host') AS host, left(blocker.query, 80) AS last,
       (SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0) AS waiting
FROM pg_stat_activity AS blocked
JOIN pg_stat_activity AS blocker ON blocker.pid = ANY(pg_blocking_pids(blocked.pid))
WHERE now() - blocked.query_start > make_interval(secs => :seconds) AND 0 = ALL(pg_blocking_pids(blocker.pid))
ORDER BY seconds DESC LIMIT 10
"""  # by the first of a queue: to end one that waits itself helps nobody; 0 is a prepared transaction, no session
_USUAL = Timeouts()
_TO_CONNECT = 0.8  # of the time to wait: so there is some left in which to say why
_MOST = "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"


async def check_database(url: str | None, idle_seconds: float = IDLE_SECONDS) -> list[Finding]:
    """Look at a database; without a URL at that of the environment."""
    try:
        database = find_database(url)
        async with database:
            checks = {"postgresql": _postgresql, "sqlite": _sqlite}.get(
                database.url.get_backend_name()
            )
            return [found async for found in (checks or _other)(database, idle_seconds)]
    except LoopsafeError as error:
        return [Finding("D101", "error", "the database cannot be used", str(error))]


async def _postgresql(database: Database, idle_seconds: float) -> AsyncIterator[Finding]:
    version = await database.fetch_val("SELECT current_setting('server_version')")
    yield Finding("D100", "ok", f"PostgreSQL {version} answers", describe_target(database.url))
    if pooler := await _pooler(database):
        yield pooler
    rows = await database.fetch_all(_SESSIONS)
    used, most = sum(row["number"] for row in rows), await database.fetch_val(_MOST)
    seen = ", ".join(f"{row['number']} of {row['who']}" for row in rows[:10])
    if used > FULL * most:
        cure = "lower LOOPSAFE_DB_MAX_CONNECTIONS, give the fleet a budget, or put a PgBouncer in between"
        yield Finding("D102", "warning", f"{used} of {most} connections are in use", seen, cure)
    else:
        yield Finding("D100", "ok", f"{used} of {most} connections are in use", seen)
    yield await _fleet(database)
    if pooler is None and (found := _too_much(most)):
        yield found
    for row in await database.fetch_all(_BLOCKED, {"seconds": BLOCKED_SECONDS}):
        yield Finding(
            "D104",
            "warning",
            f"pid {row['pid']} has waited for {row['seconds']:.0f} s for a lock: {row['query']}",
            f"pid {row['by_pid']} has it, {row['by_name']} on {row['host']}, {row['state']}, last: {row['last']}; "
            f"{row['waiting']} sessions wait for locks",
            f"have that transaction end, or SELECT pg_terminate_backend({row['by_pid']})",
        )
    for row in await database.fetch_all(_IDLE, {"seconds": idle_seconds}):
        yield Finding(
            "D103",
            "warning",
            f"a session is idle in a transaction for {row['seconds']:.0f} s",
            f"pid {row['pid']}, {row['application_name'] or '?'} on {row['host']}, last: {row['query']}",
            "end the transaction before other work is waited for; set idle_in_transaction_session_timeout",
        )


async def _pooler(database: Database) -> Finding | None:
    """Tell of a PgBouncer: it names another process at login than the one that answers."""
    async with database.connection() as connection:
        raw = connection.raw_connection
        named = raw.get_server_pid() if hasattr(raw, "get_server_pid") else raw.info.backend_pid
        answers = await connection.fetch_val("SELECT pg_backend_pid()")
    if named == answers:
        return None
    seen = f"{named} was named at login, server process {answers} answers"
    if mode := database.options.get("pgbouncer"):
        return Finding("D100", "ok", f"a pooler is in front, in {mode} mode as it was said", seen)
    cure = (
        'say which pool mode it has: pgbouncer="transaction" or "session", or LOOPSAFE_DB_PGBOUNCER'
    )
    return Finding(
        "D106",
        "warning",
        "a pooler is in front, such as a PgBouncer, and nobody has said so",
        seen,
        cure,
    )


async def _fleet(database: Database) -> Finding:
    """How many sessions the fleet has, on all its hosts: its budget is for all of them."""
    name = _name_of_all(database)
    rows = await database.fetch_all(_FLEET, {"name": name})
    used, budget = sum(row["number"] for row in rows), fleet_budget()
    what = f"{used} sessions of {name!r}, from {len(rows)} hosts"
    seen = ", ".join(f"{row['number']} of {row['host']}" for row in rows)
    if budget is None or used <= budget:
        return Finding("D100", "ok", what, seen)
    cure = (
        "count the workers of all hosts in LOOPSAFE_DB_FLEET_WORKERS, or put a PgBouncer in between"
    )
    return Finding("D105", "warning", f"{what}: the fleet's budget is {budget}", seen, cure)


def _too_much(most: int) -> Finding | None:
    """Tell of a fleet that may have more connections than there are."""
    budget = fleet_budget()
    if budget is None or budget <= most:
        return None
    cure = (
        "lower LOOPSAFE_DB_FLEET_CONNECTIONS, raise max_connections, or put a PgBouncer in between"
    )
    what = f"the fleet may have {budget} connections, the server takes {most}"
    return Finding("D107", "warning", what, "what comes last is refused", cure)


def _name_of_all(database: Database) -> str:
    """What the names of a fleet's sessions begin with; a pid or a process is each one's own."""
    given = database.url.query.get("application_name")
    name = given if isinstance(given, str) else application_name() or APPLICATION
    return name.partition("{")[0].rstrip()


async def _sqlite(database: Database, _idle_seconds: float) -> AsyncIterator[Finding]:
    version = await database.fetch_val("SELECT sqlite_version()")
    mode = await database.fetch_val("PRAGMA journal_mode")
    yield Finding(
        "D100",
        "ok",
        f"SQLite {version} answers, its journal is {mode}",
        describe_target(database.url),
    )


async def _other(database: Database, _idle_seconds: float) -> AsyncIterator[Finding]:
    await database.fetch_val("SELECT 1")
    yield Finding(
        "D100", "ok", f"{database.url.get_backend_name()} answers", describe_target(database.url)
    )


def find_database(url: str | None, timeouts: Timeouts = _USUAL) -> Database:
    """Give the handle of a URL; without one that of the environment, which has time-outs of its own.

    Raises:
        ConfigurationError: The URL, or the environment, has what cannot be.
    """
    return (
        get_database() if url is None else Database(url, pgbouncer=pgbouncer(), timeouts=timeouts)
    )


async def what_fails(url: str | None, seconds: float) -> str | None:
    """Say in so many seconds why a database cannot be used now; None if it can."""
    database = find_database(url, Timeouts(connect=seconds * _TO_CONNECT))
    try:
        async with asyncio.timeout(seconds), database:
            await database.fetch_val("SELECT 1")
    except (LoopsafeError, OSError) as error:  # also TimeoutError
        return str(error) or f"it took more than {seconds:.1f} s"
    return None
