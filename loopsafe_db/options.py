"""The values that say how a database is reached; made by settings or by hand, read by engines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypedDict

from loopsafe_db.errors import InvalidSettingError

if TYPE_CHECKING:
    from sqlalchemy import URL

_SESSION_IDLE, _SESSION_LIFE = 0.5, 1.0  # seconds, behind a PgBouncer in session mode


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long things may take, in seconds.

    Attributes:
        connect: To open one connection.
        acquire: To wait for a free connection of the pool.
        statement: For each statement that has no ``timeout=`` of its own; None is no limit.
    """

    connect: float = 10.0
    acquire: float = 30.0
    statement: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "acquire", "statement"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidSettingError(
                    f"timeout {name} must be more than 0 seconds, not {value!r}"
                )


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How many connections a handle may have in one process, and for how long.

    Attributes:
        max_connections: The most, over all loops and threads of the process.
        idle_timeout: Seconds after which a connection that nobody uses is given back; None never.
        recycle: Seconds after which a connection is replaced; None never.
        pre_ping: Whether a connection is tried before each use. Without it one that the server or the network
            has ended is noticed too, where the end has reached this machine.
    """

    max_connections: int = 10
    idle_timeout: float | None = 300.0
    recycle: float | None = None
    pre_ping: bool = False

    def __post_init__(self) -> None:
        if self.max_connections < 1:
            raise InvalidSettingError(
                f"max_connections must be at least 1, not {self.max_connections!r}"
            )
        for name in ("idle_timeout", "recycle"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidSettingError(f"{name} must be more than 0 seconds, not {value!r}")


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


class Options(TypedDict, total=False):
    """The keyword arguments of `Database` and `configure`.

    Attributes:
        pool: How many connections each process may open, and for how long.
        timeouts: Seconds for connecting, acquiring and statements.
        application_name: How the server lists the sessions; ``{pid}`` and ``{process}`` are filled in.
        scope: ``"process"`` keeps connections warm for all loops and threads of a process, ``"loop"`` closes
            them with the loop that opened them, ``"auto"`` is the first where the driver can do it.
        password: Called for each new connection, in place of the URL's password; sync or async.
        pgbouncer: ``"transaction"`` or ``"session"``, if the URL leads to a PgBouncer of that pool mode.
        server_settings: PostgreSQL's settings of each session: ``{"search_path": "mine"}``.
        replicas: URLs of read-only copies, for `Database.read`.
    """

    pool: PoolLimits | None
    timeouts: Timeouts | None
    application_name: str | None
    scope: str
    password: Password | None
    pgbouncer: str | None
    server_settings: Mapping[str, str] | None
    replicas: Sequence[str | URL]


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """Everything that a `Database` handle knows: its URL, and what `Options` documents."""

    url: URL
    pool: PoolLimits = field(default_factory=PoolLimits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    application_name: str | None = None
    scope: str = "auto"
    password: Password | None = field(default=None, repr=False)
    pgbouncer: str | None = None
    server_settings: Mapping[str, str] = field(default_factory=dict)
    replicas: tuple[URL, ...] = ()

    def __post_init__(self) -> None:
        if self.pgbouncer not in (None, "transaction", "session"):
            raise InvalidSettingError(
                f"pgbouncer must be 'transaction' or 'session', not {self.pgbouncer!r}"
            )
        if self.pgbouncer == "session":  # who has a connection has a server, in use or not
            object.__setattr__(self, "pool", _hurried(self.pool))


def _hurried(limits: PoolLimits) -> PoolLimits:
    """Have connections given back soon, also busy ones, for those that wait for a server."""
    idle = min(limits.idle_timeout or _SESSION_IDLE, _SESSION_IDLE)
    return replace(
        limits, idle_timeout=idle, recycle=min(limits.recycle or _SESSION_LIFE, _SESSION_LIFE)
    )
