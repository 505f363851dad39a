"""The values that say how a database is reached; made by settings or by hand, read by engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loopsafe_db.errors import InvalidSettingError

if TYPE_CHECKING:
    from sqlalchemy import URL


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
    """How many connections one pool may hold, and for how long.

    Attributes:
        size: The most connections that one loop of one process opens.
        recycle: Seconds after which a connection is replaced; None never.
    """

    size: int = 5
    recycle: float | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InvalidSettingError(f"pool size must be at least 1, not {self.size!r}")


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """Everything that a `Database` handle knows.

    Attributes:
        url: SQLAlchemy's URL; its ``repr`` masks the password.
        pool: Limits of each pool.
        timeouts: Seconds for connecting, acquiring, statements.
        application_name: How the server lists the sessions; a name in the URL goes first.
    """

    url: URL
    pool: PoolLimits = field(default_factory=PoolLimits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    application_name: str | None = None
