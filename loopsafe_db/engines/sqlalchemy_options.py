"""What SQLAlchemy's `create_async_engine` takes, in our words; what cannot be meant here is refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, StaticPool

from loopsafe_db.drivers.discovery import known_name
from loopsafe_db.drivers.url import is_memory_for_dialect, refuse_no_url
from loopsafe_db.errors import InvalidSettingError
from loopsafe_db.options import SECONDS, WHOLE, Options, PoolLimits, Timeouts, refuse_other
from loopsafe_db.url import DatabaseURL, hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import URL

_POOL_SIZE, _MAX_OVERFLOW = 5, 10  # SQLAlchemy's
_NO_LIMIT = 1_000_000  # connections
_BY_US = "leave it out: connections are opened by the driver of the URL, in each process"
# What has no meaning here, and what to do instead.
_IMPOSSIBLE = {
    "creator": f"{_BY_US}; `init` is called with each new one, `password` for its password",
    "async_creator": f"{_BY_US}; `init` is called with each new one, `password` for its password",
    "async_creator_fn": _BY_US,
    "module": "leave it out: the URL names the driver",
    "paramstyle": "leave it out: it is the driver's",
    "strategy": "leave it out: it is of SQLAlchemy 1.3",
}
_UNIQUE_NAMES = (
    "is not possible; leave it out: no two prepared statements have one name; "
    "behind a PgBouncer say pgbouncer='transaction'"
)
_THEIRS = {"echo", "json_serializer", "json_deserializer", "pool", "timeouts"}
_OURS = Options.__optional_keys__ - _THEIRS


@dataclass(slots=True)
class EngineOptions:
    """What was given, in parts.

    Attributes:
        url: With what belongs to it.
        ours: The keyword arguments of `Database`.
        theirs: What SQLAlchemy is to see to.
        size: SQLAlchemy's ``pool_size``.
        keeps: Whether connections are kept for the next user.
        connecting: Of ``connect_args``, what a dialect of SQLAlchemy is given as it is.
    """

    url: URL
    ours: dict[str, Any]
    theirs: dict[str, Any]
    size: int = _POOL_SIZE
    keeps: bool = True
    connecting: dict[str, Any] = field(default_factory=dict)


def read(url: str | URL, given: Mapping[str, Any]) -> EngineOptions:
    """Take apart what `create_async_engine` was given.

    Raises:
        ConfigurationError: Something of it cannot be meant here.
    """
    _refuse_impossible(given)
    said = dict(given)
    refuse_no_url(url := hidden(url))
    parsed = DatabaseURL(url)
    ours = {name: said.pop(name) for name in _OURS & said.keys()}
    read = EngineOptions(parsed, ours, said)
    _read_pool(read)
    _read_connect_args(read)
    for name in ("json_serializer", "json_deserializer"):  # the driver's, too
        if name in said:
            ours[name] = said.pop(name)
    return read


def _refuse_impossible(given: Mapping[str, Any]) -> None:
    for name, cure in _IMPOSSIBLE.items():
        if given.get(name) is not None:
            raise InvalidSettingError(f"create_async_engine: {name} is not possible; {cure}")
    for name in ("echo", "echo_pool"):
        if given.get(name) not in (None, True, False, "debug"):
            raise InvalidSettingError(
                f"create_async_engine: {name} must be True, False or 'debug', not {given[name]!r}"
            )
    pool = given.get("pool")
    if pool is not None and not isinstance(pool, PoolLimits):
        raise InvalidSettingError(
            f"create_async_engine: pool takes PoolLimits, and no pool of SQLAlchemy's ({type(pool).__name__}); "
            "leave it out: the connections are those of this process, whichever that is"
        )


def _read_pool(read: EngineOptions) -> None:
    said, ours = read.theirs, read.ours
    refuse_other(said, "timeouts", Timeouts, "Timeouts(acquire=5)")
    pool, timeouts = said.pop("pool", None), said.pop("timeouts", None) or Timeouts()
    size, overflow = _sizes(said)
    if pool is None:
        no_limit = size == 0 or overflow < 0
        pool = PoolLimits(max_connections=_NO_LIMIT if no_limit else size + overflow)
        read.size = size
    else:
        read.size = pool.max_connections
    recycle = said.pop("pool_recycle", None)
    if recycle is not None and recycle >= 0:
        pool = replace(pool, recycle=recycle or 1e-9)  # 0: each use has a new one
    pool = replace(pool, pre_ping=bool(said.pop("pool_pre_ping", pool.pre_ping)))
    if (timeout := said.pop("pool_timeout", None)) is not None:
        seconds = SECONDS.read("pool_timeout", timeout or 1e-3, InvalidSettingError)
        timeouts = replace(timeouts, acquire=seconds)
    said.pop("pool_use_lifo", None)  # so it is always: what was used last is warm, the rest may go
    ours["pool"], ours["timeouts"] = pool, timeouts
    _read_class(read)
    _read_reset(read)


def _sizes(said: dict[str, Any]) -> tuple[int, int]:
    size, overflow = said.pop("pool_size", None), said.pop("max_overflow", None)
    size = _POOL_SIZE if size is None else WHOLE.read("pool_size", size, InvalidSettingError)
    if overflow is None or overflow == -1:
        return size, _MAX_OVERFLOW if overflow is None else -1
    return size, WHOLE.read("max_overflow", overflow, InvalidSettingError)


def _read_class(read: EngineOptions) -> None:
    kind = read.theirs.pop("poolclass", None)
    if kind is NullPool:
        read.keeps, read.size = False, 0
        read.ours["pool"] = replace(read.ours["pool"], max_connections=_NO_LIMIT)
    elif kind is StaticPool and is_memory_for_dialect(read.url):
        return  # a database in memory has one connection anyway
    elif kind not in (None, AsyncAdaptedQueuePool):
        raise InvalidSettingError(
            f"create_async_engine: poolclass {kind.__name__} is not possible; leave it out, or give "
            "AsyncAdaptedQueuePool, which is the same, or NullPool, which has each use connect anew"
        )


def _read_reset(read: EngineOptions) -> None:
    given = read.theirs.pop("pool_reset_on_return", "rollback")
    name = given if given is None or isinstance(given, (str, bool)) else given.name
    if name in ("commit", "reset_commit"):
        raise InvalidSettingError(
            "create_async_engine: pool_reset_on_return='commit' is not possible: what a connection comes back with is "
            "rolled back; commit it by engine.begin(), or session.commit()"
        )
    if name in (None, False, "none", "reset_none"):
        read.ours.setdefault("reset", "never")


# -- connect_args, of each driver


def _read_connect_args(read: EngineOptions) -> None:
    given = dict(read.theirs.pop("connect_args", None) or {})
    driver = known_name(read.url.drivername)
    if driver in _TAKEN:
        for name in set(_OF_QUERY) & _TAKEN[driver].keys() & read.url.query.keys():
            given.setdefault(name, read.url.query[name])
            read.url = read.url.difference_update_query([name])
        for name, value in given.items():
            take = _TAKEN[driver].get(name)
            if take is None:
                raise InvalidSettingError(
                    f"create_async_engine: connect_args[{name!r}] is not for {driver} here; known: "
                    f"{', '.join(sorted(_TAKEN[driver]))}"
                )
            take(read, name, value)
    else:
        read.connecting = given


def _as_option(read: EngineOptions, name: str, value: Any) -> None:
    if value is not None:
        read.ours.setdefault(name, value)


def _in_query(read: EngineOptions, name: str, value: Any) -> None:
    if value is not None:
        text = str(value).lower() if isinstance(value, bool) else str(value)
        read.url = read.url.update_query_dict({name: text})


def _in_url(part: str) -> Callable[[EngineOptions, str, Any], None]:
    def take(read: EngineOptions, _: str, value: Any) -> None:
        made: URL = read.url.set(**{part: hidden(value) if part == "password" else value})
        read.url = made

    return take


def _as_password(read: EngineOptions, name: str, value: Any) -> None:
    if callable(value):
        _as_option(read, name, value)
    else:
        _in_url("password")(read, name, value)


def _prepared(read: EngineOptions, _: str, value: Any) -> None:
    """Take the number of statements that SQLAlchemy or psycopg keep prepared, or after which they begin to."""
    if value in (0, "0", None):
        read.ours["statement_cache_size"] = 0


def _without_effect(read: EngineOptions, name: str, value: Any) -> None:
    """Take what is so anyway."""


def _only(allowed: Any) -> Callable[[EngineOptions, str, Any], None]:
    def take(read: EngineOptions, name: str, value: Any) -> None:
        if value is not allowed:
            raise InvalidSettingError(
                f"create_async_engine: connect_args[{name!r}] can only be {allowed!r} here, not {value!r}"
            )

    return take


def _names(read: EngineOptions, name: str, value: Any) -> None:
    """Refuse what SQLAlchemy's page on PgBouncer has."""
    if value is not None:
        raise InvalidSettingError(f"create_async_engine: connect_args[{name!r}] {_UNIQUE_NAMES}")


_PLACE = {
    "host": _in_url("host"),
    "port": _in_url("port"),
    "user": _in_url("username"),
    "password": _as_password,
}
_LIBPQ = (
    *("application_name", "options", "passfile", "target_session_attrs", "client_encoding"),
    *("sslmode", "sslrootcert", "sslcert", "sslkey", "channel_binding", "connect_timeout"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    *("tcp_user_timeout", "gssencmode", "load_balance_hosts"),
)
_TAKEN: dict[str, dict[str, Callable[[EngineOptions, str, Any], None]]] = {
    "asyncpg": {
        **_PLACE,
        "database": _in_url("database"),
        **dict.fromkeys(("server_settings", "ssl", "command_timeout", "timeout"), _as_option),
        "statement_cache_size": _as_option,
        "prepared_statement_cache_size": _prepared,
        "prepared_statement_name_func": _names,
        **dict.fromkeys(("passfile", "target_session_attrs"), _in_query),
    },
    "psycopg": {
        **_PLACE,
        "dbname": _in_url("database"),
        "prepare_threshold": _prepared,
        "autocommit": _only(allowed=False),
        **dict.fromkeys(_LIBPQ, _in_query),
    },
    "aiosqlite": {
        **dict.fromkeys(("timeout", "cached_statements", "detect_types", "uri"), _as_option),
        "check_same_thread": _without_effect,
        "isolation_level": _only(allowed=None),
    },
}
_OF_QUERY = ("prepared_statement_cache_size",)  # which SQLAlchemy takes in the URL
