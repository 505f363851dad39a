"""The values that say how a database is reached; made by settings or by hand, read by engines."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from numbers import Integral, Real
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from loopsafe_db.errors import InvalidSettingError, InvalidURLError
from loopsafe_db.url import hidden

if TYPE_CHECKING:
    from ssl import SSLContext

    from sqlalchemy import URL

    from loopsafe_db.errors import ConfigurationError
    from loopsafe_db.url import DatabaseURL

_SESSION_IDLE, _SESSION_LIFE = 0.5, 1.0  # seconds, behind a PgBouncer in session mode
_LONGEST = 2 * 86400.0  # a wait for longer than a day overflows some clocks
_LEAST_LIFE = 1.0  # seconds that are looked after while nobody uses a connection


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long things may take, in seconds.

    Attributes:
        connect: To open one connection; while the server refuses all that come, it is tried again for so long. Twice
            that until it has answered what has to be asked first.
        acquire: To wait for a free connection of the pool.
        statement: For each statement that has no ``timeout=`` of its own, each batch of a stream, and a COMMIT; None
            is no limit, but for a BEGIN, which has `acquire` then.
    """

    connect: float = 10.0
    acquire: float = 30.0
    statement: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "acquire", "statement"):
            value = getattr(self, name)
            if value is not None:
                SECONDS.check(f"timeout {name}", value)


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How many connections a handle may have in one process, and for how long.

    Attributes:
        max_connections: The most, over all loops and threads of the process.
        idle_timeout: Seconds after which a connection that nobody uses is given back; None never.
        recycle: Seconds that a connection lives, or up to a tenth less, so that not all end at once: then it is closed
            when its user gives it back, or while nobody uses it, and the next user opens another. None is no limit.
        pre_ping: Whether a connection is tried before each use. Without it one that the server or the network
            has ended is noticed too, where the end has reached this machine.
        min_connections: How many `Database.connect` opens at least. They are kept, and replaced where they are lost,
            until `Database.disconnect`, in that process, while an event loop runs.
        max_waiting: How many callers may wait for a connection; one more gets a `TooManyRequests`. 0 is no limit.
    """

    max_connections: int = 10
    idle_timeout: float | None = 300.0
    recycle: float | None = None
    pre_ping: bool = False
    min_connections: int = 0
    max_waiting: int = 0

    def __post_init__(self) -> None:
        POSITIVE.check("max_connections", self.max_connections)
        WHOLE.check("max_waiting", self.max_waiting)
        if WHOLE.check("min_connections", self.min_connections) > self.max_connections:
            raise InvalidSettingError(
                f"min_connections must be from 0 to max_connections, {self.max_connections!r}, "
                f"not {self.min_connections!r}"
            )
        for name in ("idle_timeout", "recycle"):
            if (value := getattr(self, name)) is not None:
                SECONDS.check(name, value)

    @property
    def pause(self) -> float | None:
        """Seconds from one look for idle connections that are to be closed to the next; None: there will be none."""
        lives = [] if self.recycle is None else [max(self.recycle, _LEAST_LIFE)]
        lives += [] if self.idle_timeout is None else [self.idle_timeout]
        return min(*lives, _LONGEST) / 2 if lives else None


@dataclass(frozen=True, slots=True)
class Token:
    """A password that expires: what the callable of ``password=`` may give instead of a text.

    Attributes:
        value: The password itself; never shown.
        lifetime: Seconds from now for which new connections may use it.
    """

    value: str = field(repr=False)
    lifetime: float


Password = Callable[[], "str | Token | Awaitable[str | Token]"]
Init = Callable[[Any], Awaitable[object]]
JsonSerializer = Callable[[Any], str | bytes]
JsonDeserializer = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class JsonText:
    """A user's function that makes JSON, as a text: those of orjson and msgspec give bytes."""

    function: JsonSerializer

    def __call__(self, value: Any) -> str:
        """Make JSON of a value."""
        made = self.function(value)
        return made if isinstance(made, str) else made.decode()


@dataclass(frozen=True, slots=True)
class Number:
    """What a number may be, given as a number, or as text in a URL.

    Attributes:
        words: The same for the reader of an error.
        kind: ``int`` or ``float``.
        least: The least that it may be.
    """

    words: str
    kind: type[int] | type[float]
    least: float

    def read(self, name: str, given: object, error: type[ConfigurationError]) -> Any:
        """Give the number, or raise `error`, which names it."""
        try:
            number = self.kind(str(given))
        except ValueError:
            number = -1
        if not self.least <= number < math.inf:
            raise error(f"{name} must be {self.words}, not {given!r}")
        return number

    def check(self, name: str, given: Any) -> Any:
        """Give back what a program has given, for which a text is no number.

        Raises:
            InvalidSettingError: It is no such number.
        """
        kind: Any = Integral if self.kind is int else Real
        if not isinstance(given, kind) or isinstance(given, bool):
            what = f"{given!r} ({type(given).__name__})"
            raise InvalidSettingError(f"{name} must be {self.words}, not {what}")
        if not given >= self.least:
            raise InvalidSettingError(f"{name} must be {self.words}, not {given!r}")
        return given


WHOLE = Number("a whole number, 0 or more", int, 0)
POSITIVE = Number("a whole number, 1 or more", int, 1)
SECONDS = Number("more than 0 seconds", float, math.ulp(0.0))
SECONDS_OR_0 = Number("seconds, 0 or more", float, 0)
SECONDS_OF_CALL = Number("a number of seconds", float, -math.inf)

# What other pools call what the handle itself sees to; by keyword or in the URL's query, with any driver.
HANDLE_NAMES = {
    "min_size": WHOLE,
    "max_size": POSITIVE,
    "max_queries": POSITIVE,  # of no effect: a connection serves for as long as `PoolLimits.recycle` says
    "max_inactive_connection_lifetime": SECONDS_OR_0,
    "max_lifetime": SECONDS_OR_0,
    "command_timeout": SECONDS,
}
_KINDS: Mapping[str, tuple[Any, str]] = {
    "pool": (PoolLimits, "PoolLimits(max_connections=5)"),
    "timeouts": (Timeouts, "Timeouts(statement=5)"),
    "server_settings": (Mapping, '{"search_path": "mine"}'),
    "application_name": (str, '"worker {pid}"'),
    **dict.fromkeys(("password", "init", "setup"), (Callable, "a_function")),
}
# Keywords for the driver, which knows the same names in the URL's query: so each means one thing.
DRIVER_NAMES = (
    "ssl",
    "statement_cache_size",
    "timeout",
    "cached_statements",
    "detect_types",
    "uri",
)


class Options(TypedDict, total=False):
    """The keyword arguments of `Database` and `configure`. None is the default of each.

    Those from `min_size` on are named as in `databases`, and may stand in the URL's query, too, but for `init`,
    `setup`, `reset` and `force_rollback`. Where a thing is said twice, a keyword goes before the URL, and both before
    `pool` and `timeouts`.

    Attributes:
        pool: How many connections each process may open, and for how long.
        timeouts: Seconds for connecting, acquiring and statements.
        application_name: How the server lists the sessions; ``{pid}`` and ``{process}`` are filled in.
        scope: ``"process"`` keeps connections warm for all loops and threads of a process, ``"loop"`` closes
            them with the loop that opened them, ``"auto"`` is the first where the driver can do it.
        password: Called for each new connection, in place of the URL's password; sync or async.
        pgbouncer: ``"transaction"`` or ``"session"``, if the URL leads to a PgBouncer of that pool mode.
        server_settings: PostgreSQL's settings of each session: ``{"search_path": "mine"}``.
        replicas: URLs of read-only copies, for `Database.read`; with the same options as the handle.
        json_serializer: Makes JSON of the values of SQLAlchemy's JSON columns; on PostgreSQL of those of texts, too.
        json_deserializer: Makes values of JSON, where that makes JSON.
        min_size: ``pool.min_connections``.
        max_size: ``pool.max_connections``.
        max_queries: Taken, and of no effect.
        max_inactive_connection_lifetime: ``pool.idle_timeout``; 0 is never.
        max_lifetime: ``pool.recycle``, as psycopg_pool calls it; 0 is no limit.
        command_timeout: ``timeouts.statement``.
        timeout: Seconds to open a connection; with SQLite, to wait for what others have locked.
        ssl: PostgreSQL: True is TLS with a certificate that the system trusts, for that host; False is none; or one
            of libpq's modes. With asyncpg also an `ssl.SSLContext`, which does not pickle.
        statement_cache_size: PostgreSQL: how many statements a connection keeps prepared, and 0 is none. With psycopg
            any other number is of no effect.
        init: Called with each new connection of the driver before its first use, and awaited; and again after a reset
            that undoes what it did.
        setup: Called with the driver's connection each time one is acquired, and awaited.
        reset: ``"auto"`` undoes what a user may have changed of a session, when that is given back; ``"always"`` does
            so each time, ``"never"`` leaves it to the next user. Or what is called with the driver's connection then,
            and awaited: after the same as ``"auto"``.
        cached_statements: SQLite: as in `sqlite3.connect`.
        detect_types: SQLite: as in `sqlite3.connect`.
        uri: SQLite: taken, and of no effect: a path that begins with ``file:`` is a URI.
        echo: Whether each statement is logged, by the logger ``loopsafe_db.statements`` at the level INFO, and on
            stdout if the program logs nowhere; ``"values"`` is with the values of the parameters.
        slow_query: Seconds with the server from which on a statement is logged, as a warning, with where its time went.
        slow_acquire: Seconds for a connection from which on.
        force_rollback: Whether all that is done is undone at `Database.disconnect`: for tests.
    """

    pool: PoolLimits | None
    timeouts: Timeouts | None
    application_name: str | None
    scope: Literal["auto", "loop", "process"]
    password: Password | None
    pgbouncer: str | None
    server_settings: Mapping[str, str] | None
    replicas: Sequence[str | URL]
    json_serializer: JsonSerializer | None
    json_deserializer: JsonDeserializer | None
    min_size: int | None
    max_size: int | None
    max_queries: int | None
    max_inactive_connection_lifetime: float | None
    max_lifetime: float | None
    command_timeout: float | None
    timeout: float | None
    ssl: bool | str | SSLContext | None
    statement_cache_size: int | None
    init: Init | None
    setup: Init | None
    reset: str | Init | None
    cached_statements: int | None
    detect_types: int | None
    uri: bool | None
    echo: bool | str | None
    slow_query: float | None
    slow_acquire: float | None
    force_rollback: bool


def working_folder() -> str:
    """Give the folder that the process is in; "" if it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """Everything that a `Database` handle knows: its URL as given, and what `Options` documents.

    Attributes:
        ssl_context: ``ssl=``, if it is one.
        connecting: The keywords of `DRIVER_NAMES`, as the URL's query would have them.
        keywords: All keywords, as they were given.
        folder: Where the process was when the handle was made; "" if that is gone.
        engine: What SQLAlchemy is told of its engine.
        connect_args: What a dialect of SQLAlchemy is told of each connection.
        pool_size: What SQLAlchemy's engine calls so; None is `PoolLimits.max_connections`.
        keeps: Whether connections are kept for the next user.
    """

    url: DatabaseURL
    pool: PoolLimits = field(default_factory=PoolLimits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    application_name: str | None = None
    scope: str = "auto"
    password: Password | None = field(default=None, repr=False)
    pgbouncer: str | None = None
    server_settings: Mapping[str, str] = field(default_factory=dict)
    replicas: tuple[DatabaseURL, ...] = ()
    init: Init | None = field(default=None, repr=False)
    json_serializer: JsonSerializer | None = field(default=None, repr=False)
    json_deserializer: JsonDeserializer | None = field(default=None, repr=False)
    setup: Init | None = field(default=None, repr=False)
    reset: str | Init = field(default="auto", repr=False)
    echo: bool | str = False
    slow_query: float | None = None
    slow_acquire: float | None = None
    force_rollback: bool = False
    ssl_context: SSLContext | None = field(default=None, repr=False)
    connecting: Mapping[str, str] = field(default_factory=dict)
    keywords: Mapping[str, Any] = field(default_factory=dict, repr=False)
    folder: str = field(default_factory=working_folder)
    engine: Mapping[str, Any] = field(default_factory=dict, repr=False)
    connect_args: Mapping[str, Any] = field(default_factory=dict, repr=False)
    pool_size: int | None = None
    keeps: bool = True

    def __post_init__(self) -> None:
        if self.pgbouncer not in (None, "transaction", "session"):
            raise InvalidSettingError(
                f"pgbouncer must be 'transaction' or 'session', not {self.pgbouncer!r}"
            )
        if not callable(self.reset) and self.reset not in ("auto", "always", "never"):
            raise InvalidSettingError(
                f"reset must be 'auto', 'always', 'never' or an async function, not {self.reset!r}"
            )
        if self.echo not in (True, False, "values"):
            rows = "; rows are logged by create_async_engine(echo='debug') alone"
            raise InvalidSettingError(
                f"echo must be True, False or 'values', not {self.echo!r}"
                f"{rows if self.echo == 'debug' else ''}"
            )
        for name in ("slow_query", "slow_acquire"):
            value = getattr(self, name)
            if value is not None:
                SECONDS_OR_0.check(name, value)
        if not isinstance(self.json_serializer, (JsonText, NoneType)):
            object.__setattr__(self, "json_serializer", JsonText(self.json_serializer))
        if self.pgbouncer == "session":  # who has a connection has a server, in use or not
            object.__setattr__(self, "pool", _hurried(self.pool))

    @property
    def query(self) -> dict[str, str]:
        """What is said to the driver: by the URL's query, and by keywords, which go first."""
        said = {
            name: _shown(name, value if isinstance(value, str) else ",".join(value))
            for name, value in self.url.query.items()
            if name not in HANDLE_NAMES
        }
        return {**said, **self.connecting}

    def number(self, name: str, number: Number, default: Any) -> Any:
        """Give a number of `query`.

        Raises:
            ConfigurationError: It cannot be.
        """
        given = self.query.get(name)
        return default if given is None else number.read(name, given, self.refusal(name))

    def refusal(self, name: str) -> type[ConfigurationError]:
        """Give the kind of error for what `query` says: it was a keyword, or in the URL."""
        return InvalidSettingError if name in self.connecting else InvalidURLError


def _shown(name: str, value: str) -> str:
    """Have a password in the query be masked where variables are shown."""
    return hidden(value) if "pass" in name.lower() else value


def limits(url: DatabaseURL, keywords: Mapping[str, Any]) -> tuple[PoolLimits, Timeouts]:
    """Give the limits: by name from keyword or URL, in this order, else those of ``pool`` and ``timeouts``.

    Raises:
        ConfigurationError: One cannot be.
    """
    for name, (kind, example) in _KINDS.items():
        refuse_other(keywords, name, kind, example)
    said: dict[str, Any] = {}
    for name, number in HANDLE_NAMES.items():
        if name in url.query:
            said[name] = number.read(name, url.query[name], InvalidURLError)
        if name in keywords:
            said[name] = number.read(name, keywords[name], InvalidSettingError)
    sizes = {"min_connections": said.get("min_size"), "max_connections": said.get("max_size")}
    pool = replace(
        keywords.get("pool", PoolLimits()),
        **{name: size for name, size in sizes.items() if size is not None},
    )
    if "max_inactive_connection_lifetime" in said:
        pool = replace(pool, idle_timeout=said["max_inactive_connection_lifetime"] or None)
    if "max_lifetime" in said:
        pool = replace(pool, recycle=said["max_lifetime"] or None)
    timeouts: Timeouts = keywords.get("timeouts", Timeouts())
    return pool, replace(timeouts, statement=said.get("command_timeout", timeouts.statement))


def call_limit(timeout: float) -> float:
    """Give the seconds that a call was given; less than 0 is 0, as what is left of a time that is over.

    Raises:
        InvalidSettingError: They are no number.
    """
    if type(timeout) is float and timeout >= 0:
        return timeout
    left: float = SECONDS_OF_CALL.check("timeout", timeout)
    return max(0.0, left)


def refuse_other(keywords: Mapping[str, Any], name: str, kind: Any, example: str) -> None:
    """Refuse what is not of that kind.

    Raises:
        InvalidSettingError: It is not.
    """
    if name in keywords and not isinstance(keywords[name], kind):
        raise InvalidSettingError(
            f"{name} takes {name}={example}, not {type(keywords[name]).__name__}"
        )


def nearest(name: str, known: Iterable[str], elsewhere: Mapping[str, str]) -> str:
    """Say what somebody may have meant who wrote a name that is not known, but perhaps elsewhere."""
    known = sorted(known)
    if name in elsewhere:
        return f"here that is {elsewhere[name]}"
    if close := get_close_matches(name, known, n=1, cutoff=0.7):
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(known)}"


def _hurried(limits: PoolLimits) -> PoolLimits:
    """Have connections given back soon, also busy ones, for those that wait for a server."""
    idle = min(limits.idle_timeout or _SESSION_IDLE, _SESSION_IDLE)
    return replace(
        limits, idle_timeout=idle, recycle=min(limits.recycle or _SESSION_LIFE, _SESSION_LIFE)
    )
