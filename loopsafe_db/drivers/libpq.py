"""libpq's names in a URL's query, which mean the same with every driver for PostgreSQL."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import re
import socket
import stat
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.util import await_only

from loopsafe_db import lexer
from loopsafe_db.copies import refuse_copy
from loopsafe_db.drivers.handed_out import plain_connection
from loopsafe_db.drivers.session_state import Touched
from loopsafe_db.drivers.url import known_query
from loopsafe_db.errors import (
    InvalidSettingError,
    InvalidURLError,
    PgBouncerError,
    TransactionAborted,
    TransactionError,
)
from loopsafe_db.options import WHOLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from sqlalchemy import URL
    from sqlalchemy.engine import ExceptionContext

    from loopsafe_db.options import DatabaseOptions

_LONG = 4_000  # characters of a text that is not kept
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VALUES = {  # the libpq names that take one of a few words
    "ssl": (*_SSL_MODES, "true", "false"),
    "sslmode": _SSL_MODES,
    "target_session_attrs": (
        "any",
        "read-write",
        "read-only",
        "primary",
        "standby",
        "prefer-standby",
    ),
    "gssencmode": ("disable", "prefer", "require"),
    "load_balance_hosts": ("disable", "random"),
    "channel_binding": ("disable", "prefer", "require"),
}
# Of a connection over TCP: what is set where the URL says nothing; None is the system's own. So what a firewall has
# forgotten is noticed after two minutes, where Linux would send nothing for two hours.
_TCP: dict[str, int | None] = {
    "keepalives": 1,
    "keepalives_idle": 60,
    "keepalives_interval": 15,
    "keepalives_count": 4,
    "tcp_user_timeout": None,
}
_SOCKET_OPTIONS = {
    "keepalives_idle": "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}
_ISOLATION = {
    "serializable": "SERIALIZABLE",
    "repeatable_read": "REPEATABLE READ",
    "read_committed": "READ COMMITTED",
    "read_uncommitted": "READ UNCOMMITTED",
}
SSL_FILES = ("sslrootcert", "sslcert", "sslkey")
ROLLED_BACK = "ROLLBACK"  # what the server answers to a COMMIT that it refuses
# What ``DISCARD ALL`` does, but for what the driver has prepared; in one message. RESET ALL leaves roles alone.
RESET = (
    "SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; "
    "SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)
# What a user has prepared by text; the names of others are the driver's.
_FORGET = """; DO $$ DECLARE statement text; BEGIN
    FOR statement IN SELECT name FROM pg_prepared_statements WHERE from_sql LOOP
        EXECUTE format('DEALLOCATE %I', statement);
    END LOOP;
END $$"""
NAMES = (
    "application_name",
    "connect_timeout",
    "timeout",
    "statement_cache_size",
    "ssl",
    "sslmode",
    *SSL_FILES,
    "host",
    "port",
    "options",
    "target_session_attrs",
    "channel_binding",
    "client_encoding",
    "passfile",
    "load_balance_hosts",
    *_TCP,
)
# What asyncpg cannot do.
LIBPQ_ALONE = ("gssencmode",)
APPLICATION = "loopsafe_db {process} {pid}"
_NAME_BYTES = 63  # PostgreSQL cuts the rest off
_HOST_AND_PORT = re.compile(r"(\[.*\]|[^/\[\]:]*):(\d+)")
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
# What both drivers call the statements that they prepare; users may have prepared others, and lost them.
_PREPARED = re.compile("__asyncpg_|_pg3_")
# What drops all that is prepared, at the beginning of a statement; and anywhere in a script, where it may be one.
DISCARDS = re.compile(r"\s*(?:DISCARD|DEALLOCATE)\b", re.IGNORECASE)
MAY_DISCARD = re.compile(r"\b(?:DISCARD|DEALLOCATE)\b", re.IGNORECASE)
# What commits, at the beginning of a text; comments before it are as PostgreSQL has them, but for nested ones.
COMMITS = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:COMMIT\b(?!\s+PREPARED\b)|END\b|PREPARE\s+TRANSACTION\b)",
    re.IGNORECASE | re.DOTALL,
)
DISCARDED = ("DISCARD ALL", "DEALLOCATE ALL")  # what the server answers
BACKEND = "SELECT pg_backend_pid()"
POOL_MODE = "pgbouncer.pool_mode"  # what a PgBouncer reports at login, as 1.26 does
_DROPPED_TYPE = "cache lookup failed for type"
# What SQLAlchemy asks a server that it meets, and how all of it is asked at once.
_FIRST_QUESTIONS = {
    "select pg_catalog.version()": "pg_catalog.version()",
    "select current_schema()": "current_schema()",
    "show transaction isolation level": "current_setting('transaction_isolation')",
    "show standard_conforming_strings": "current_setting('standard_conforming_strings')",
}
_UNSUPPORTED = re.compile("unsupported startup parameter", re.IGNORECASE)


def postgresql_query(options: DatabaseOptions, known: tuple[str, ...]) -> dict[str, str]:
    """Give the query in libpq's names, checked; with the name and the settings of the sessions.

    Raises:
        InvalidURLError: It has a name that is not known, or a value that cannot be.
        InvalidSettingError: A setting of the sessions cannot be, or PgBouncer would refuse it.
    """
    query = known_query(options, known)
    if "ssl" in query:
        query["ssl"] = query["ssl"].lower()
    for name, allowed in _VALUES.items():
        if query.get(name, allowed[0]) not in allowed:
            raise options.refusal(name)(
                f"{name} must be one of {', '.join(allowed)}, not {query[name]!r}"
            )
    if (mode := query.pop("ssl", None)) is not None and (
        "ssl" in options.connecting or "sslmode" not in query
    ):
        _encrypt(query, mode)
    if query.get("sslrootcert") == "system" and query.setdefault("sslmode", "verify-full") != (
        "verify-full"
    ):
        raise InvalidURLError("sslrootcert=system goes with sslmode=verify-full only")
    for name in ("timeout", "statement_cache_size"):  # no names of libpq's; see `prepares`
        query.pop(name, None)
    settings = _session_options(options, query.pop("options", ""))
    return {**query, **settings, "application_name": _name(options, query.get("application_name"))}


def tcp_settings(options: DatabaseOptions) -> dict[str, int]:
    """Give what the URL says of a connection over TCP, by libpq's names, and what holds where it says nothing.

    Raises:
        InvalidURLError: A number cannot be.
    """
    settings = {name: options.number(name, WHOLE, default) for name, default in _TCP.items()}
    return {name: number for name, number in settings.items() if number is not None}


def set_tcp(sock: Any, settings: Mapping[str, int]) -> None:
    """Do to a socket what libpq does; 0 is the system's own, as there."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(settings["keepalives"] != 0))
    for name, option in _SOCKET_OPTIONS.items():
        number = settings.get(name, 0)
        wanted = settings["keepalives"] or name == "tcp_user_timeout"
        if number and wanted and hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), number)


def reset_query(touched: int) -> str | None:
    """Give what makes a session what it was; None if only closing it does."""
    if touched == Touched.PARAMETER:
        return "RESET ALL"
    if touched & Touched.BEYOND:
        return None
    return RESET + _FORGET if touched & (Touched.STATEMENTS | Touched.RAW) else RESET


def _encrypt(query: dict[str, str], mode: str) -> None:
    """Put what ``ssl`` says in libpq's names; True is what it is to asyncpg: the system's trust, and the right host."""
    query["sslmode"] = {"true": "verify-full", "false": "disable"}.get(mode, mode)
    if mode == "true":
        query.setdefault("sslrootcert", "system")


def prepares(options: DatabaseOptions) -> bool:
    """Tell whether statements may stay prepared on a connection."""
    return options.pgbouncer != "transaction" and statement_cache_size(options) != 0


def statement_cache_size(options: DatabaseOptions) -> int | None:
    """Give the number of statements that may stay prepared, if it is said."""
    size: int | None = options.number("statement_cache_size", WHOLE, None)
    return size


def _name(options: DatabaseOptions, in_url: str | None) -> str:
    """Give the name of a session: as text of the user's, or with our braces filled in."""
    setting = options.server_settings.get("application_name")
    if setting and not in_url:
        return str(setting)
    return _application_name(in_url or options.application_name or APPLICATION)


def _application_name(name: str) -> str:
    """Fill in ``{pid}`` and ``{process}``; of a process' name goes what PostgreSQL would not keep."""
    name = name.replace("{pid}", str(os.getpid()))
    if "{process}" not in name:
        return name
    process = multiprocessing.current_process().name.encode("ascii", "replace").decode()
    process = "".join(letter if letter.isprintable() else "?" for letter in process)
    room = _NAME_BYTES - len(name.replace("{process}", "").encode())
    return name.replace("{process}", process[: max(room // name.count("{process}"), 0)])


def _session_options(options: DatabaseOptions, given: str) -> dict[str, str]:
    """Give libpq's ``options``, if there are any: `server_settings`, then the URL's, which so go first."""
    for name in options.server_settings:
        if not _SETTING.fullmatch(name):
            raise InvalidSettingError(f"server_settings: {name!r} is not the name of a setting")
    words = [
        f"-c {name}={_escaped(value)}"
        for name, value in options.server_settings.items()
        if name != "application_name"  # has a place of its own, which PgBouncer knows, too
    ]
    words += [given] if given else []
    if words and options.pgbouncer:
        raise InvalidSettingError(
            "PgBouncer keeps no settings of a session: give server_settings and the URL's options to the "
            "user or the database (ALTER ROLE ... SET ...), or use SET LOCAL in a transaction"
        )
    return {"options": " ".join(words)} if words else {}


def _escaped(value: str) -> str:
    return re.sub(r"([\s\\])", r"\\\1", str(value))


def places(url: URL, query: dict[str, str]) -> tuple[list[str], list[int]]:
    """Give hosts and ports; the query's go first, and may be several with commas between, each with its port."""
    hosts = query["host"].split(",") if "host" in query else [url.host] if url.host else []
    ports = query["port"].split(",") if "port" in query else [str(url.port)] if url.port else []
    if any(_HOST_AND_PORT.fullmatch(host) for host in hosts):
        if "port" in query:
            raise InvalidURLError("port is said twice: with the hosts, and by port=")
        ports = [
            found[2] if (found := _HOST_AND_PORT.fullmatch(host)) else "5432" for host in hosts
        ]
        hosts = [_HOST_AND_PORT.sub(r"\1", host).strip("[]") for host in hosts]
    if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports):
        given = query.get("port", str(url.port))
        raise InvalidURLError(f"port must be a number from 1 to 65535, not {given!r}")
    if len(ports) not in (0, 1, len(hosts)):
        raise InvalidURLError(f"{len(hosts)} hosts cannot have {len(ports)} ports")
    return hosts, [int(port) for port in ports]


def quoted(*names: str | None) -> str:
    """Quote names, with dots between."""
    return ".".join('"{}"'.format(name.replace('"', '""')) for name in names if name is not None)


def in_turn(
    hosts: Sequence[str], ports: Sequence[int], balance: str | None
) -> tuple[list[str], list[int]]:
    """Give several hosts, and their ports, in the order in which one connection tries them."""
    order = list(range(len(hosts)))
    if balance == "random":
        random.shuffle(order)
    each = list(ports) if len(ports) == len(hosts) else [*ports[:1]] * len(hosts)
    return [hosts[i] for i in order], [each[i] for i in order] if each else []


def tls_files(given: Mapping[str, Any], mode: str | None) -> dict[str, str]:
    """Give those of `SSL_FILES` that count, as libpq has it: one that is not there is one that was not named.

    Raises:
        OSError: A file is not there and has to be, or is a key that others may read.
    """
    files = {name: str(given[name]) for name in SSL_FILES if name in given}
    root = files.get("sslrootcert")
    if root is not None and root != "system" and not os.path.exists(root):
        if (mode or "").startswith("verify"):
            raise OSError(f"root certificate file {root!r} does not exist")
        del files["sslrootcert"]
    if "sslcert" in files and not os.path.exists(files["sslcert"]):
        del files["sslcert"]
        files.pop("sslkey", None)
    if "sslcert" in files and "sslkey" in files:
        _check_key(files["sslkey"])
    return files


def _check_key(path: str) -> None:
    if not os.path.exists(path):
        raise OSError(f"certificate present, but not private key file {path!r}")
    found = os.stat(path)
    group = stat.S_IRGRP if found.st_uid == 0 else 0
    if os.name != "nt" and found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~group:
        raise OSError(f"private key file {path!r} has group or world access: chmod 600")


def unique_names() -> Iterator[str]:
    """Count, for the names of one connection's statements: no two connections of any process have one in common.

    A PgBouncer that nobody has named may lend a server on which another client has prepared something. By an equal
    name that would be run instead, without an error.
    """
    mine = os.urandom(8).hex()
    return (f"{mine}_{number:x}" for number in itertools.count(1))


def refuse_rollback(sql: str) -> None:
    """Look at a text whose first statement a server has answered by ROLLBACK.

    Raises:
        TransactionAborted: It was to commit.
    """
    if COMMITS.match(sql):
        raise TransactionAborted


def cut_off_commit(sql: str) -> tuple[str, str]:
    """Give the first statement of a script if it commits, else nothing; and the rest."""
    if not COMMITS.match(sql):
        return "", sql
    end = 0
    for kind, text in lexer.tokens(sql, "postgresql"):
        end += len(text)
        if kind == "end":
            break
    return sql[:end], sql[end:]


class Farewell:
    """What the server says before it ends a connection by itself: its FATAL error, in its protocol.

    Attributes:
        said: The text and the SQLSTATE; None as long as it has said nothing.
    """

    FIRST = b"E"  # of each message of an error
    said: tuple[str, str] | None = None

    def hear(self, message: bytes) -> None:
        """Keep it, if this is one: after five bytes come fields, each a letter and a text that ends with a zero."""
        fields = {
            field[:1]: field[1:].decode(errors="replace") for field in message[5:].split(b"\0")
        }
        if fields.get(b"V", fields.get(b"S")) in ("FATAL", "PANIC"):
            self.said = fields.get(b"M", ""), fields.get(b"C", "")


def is_lost(error: BaseException) -> bool:
    """Tell whether a statement that the driver has prepared is not there, or is there already."""
    return getattr(error, "sqlstate", None) in ("26000", "42P05") and bool(
        _PREPARED.search(str(error))
    )


def is_of_a_dropped_type(error: BaseException) -> bool:
    """Tell whether a prepared statement has a type that was dropped since, and perhaps made anew."""
    return getattr(error, "sqlstate", None) == "XX000" and _DROPPED_TYPE in str(error)


def name_pgbouncer(error: BaseException) -> None:
    """Raise the driver's `error` as what it means, if it is one of those that a PgBouncer makes.

    Raises:
        PgBouncerError: A prepared statement is on another server, or a start-up parameter is refused.
    """
    text = str(error)
    if is_lost(error) or _UNSUPPORTED.search(text):
        raise PgBouncerError(text.strip().splitlines()[0]) from error


class AsksAtOnce(PGDialect):
    """A dialect that asks a server that it meets first all at once, and not one by one."""

    def initialize(self, connection: Any) -> None:
        """Ask, and have SQLAlchemy take the answers one by one."""
        known = _Known(connection)
        level: str = known.exec_driver_sql("show transaction isolation level").scalar()
        self._isolation_at_first = level.upper()
        super().initialize(known)  # type: ignore[no-untyped-call]

    def get_default_isolation_level(self, dbapi_conn: Any) -> Any:
        """Give that of the engine's ``isolation_level``, else the server's, which was asked for."""
        wanted = self._on_connect_isolation_level
        return self._isolation_at_first if wanted in (None, "AUTOCOMMIT") else wanted


class _Known:
    """SQLAlchemy's connection, with answers to what it asks first."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        answers = connection.exec_driver_sql(f"SELECT {', '.join(_FIRST_QUESTIONS.values())}").one()
        self.answers = dict(zip(_FIRST_QUESTIONS, answers, strict=True))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def exec_driver_sql(self, statement: str) -> Any:
        """Give the answer that is known; what SQLAlchemy asks beside that is asked, as what a QuestDB answers by ''."""
        if self.answers.get(statement):
            return SimpleNamespace(scalar=lambda: self.answers[statement])
        return self._connection.exec_driver_sql(statement)


class RefusesCopy:
    """Has a dialect of SQLAlchemy refuse what `refuse_copy` does."""

    def do_execute(self, cursor: Any, statement: str, *rest: Any) -> None:
        """Execute, with parameters."""
        _refuse_engines_copy(statement)
        super().do_execute(cursor, statement, *rest)  # type: ignore[misc]

    def do_execute_no_params(self, cursor: Any, statement: str, *rest: Any) -> None:
        """Execute, without."""
        _refuse_engines_copy(statement)
        super().do_execute_no_params(cursor, statement, *rest)  # type: ignore[misc]

    def do_executemany(self, cursor: Any, statement: str, *rest: Any) -> None:
        """Execute, with many."""
        _refuse_engines_copy(statement)
        super().do_executemany(cursor, statement, *rest)  # type: ignore[misc]


def needs_a_look(statement: str) -> bool:
    """Tell whether a statement may be one that commits, discards what was prepared, or copies."""
    return len(statement) > _LONG or _may_be_special(statement)


@lru_cache(1024)
def _may_be_special(statement: str) -> bool:
    ends = COMMITS.match(statement) or DISCARDS.match(statement)
    return ends is not None or "copy" in statement.lower()


def _refuse_engines_copy(statement: str) -> None:
    if "copy" in statement.lower():
        refuse_copy(lexer.statements(lexer.tokens(statement, "postgresql")), statement)


def name_engines_pgbouncer(
    is_elsewhere: Callable[[Any], Awaitable[bool]], context: ExceptionContext
) -> None:
    """Do so for SQLAlchemy: its event ``handle_error``.

    Args:
        is_elsewhere: Tells of a driver's connection whether another server answers than the one that was connected to.
        context: Of the event.
    """
    error = context.original_exception.__cause__ or context.original_exception
    connection = context.connection
    if is_lost(error) and connection is not None and not connection.closed:
        raw = plain_connection(connection.connection)
        if not await_only(is_elsewhere(raw)):
            return  # by DISCARD ALL or DEALLOCATE ALL
    name_pgbouncer(error)


def isolation(level: str) -> str:
    """Give an isolation level as PostgreSQL writes it.

    Raises:
        TransactionError: There is none of that name.
    """
    if level not in _ISOLATION:
        known = ", ".join(map(repr, _ISOLATION))
        raise TransactionError(f"PostgreSQL has no isolation level {level!r}, only {known}")
    return _ISOLATION[level]
