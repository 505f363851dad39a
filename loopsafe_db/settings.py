"""LoopsafeSettings: the only reader of the environment."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from loopsafe_db.engines.factory import connect_options, make_options
from loopsafe_db.errors import ConfigurationError, InvalidSettingError, MissingURLError
from loopsafe_db.options import PoolLimits, Timeouts, nearest

if TYPE_CHECKING:
    from loopsafe_db.options import DatabaseOptions

_PREFIX = "LOOPSAFE_DB_"
_ELSEWHERE = {
    "MAX_LIFETIME": "RECYCLE",
    "MAX_SIZE": "MAX_CONNECTIONS",
    "POOL_SIZE": "MAX_CONNECTIONS",
}


class LoopsafeSettings(BaseSettings):
    """One database's settings, from the environment, then from ``.env``; times are seconds."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=_PREFIX, env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    url: SecretStr | None = None
    scope: Literal["auto", "loop", "process"] = "auto"
    max_connections: int | None = Field(default=None, ge=1)
    idle_timeout: float | None = Field(default=300.0, gt=0)
    fleet_connections: int | None = Field(default=None, ge=1)
    fleet_workers: int = Field(default=1, ge=1)
    acquire_timeout: float = Field(default=30.0, gt=0)
    connect_timeout: float = Field(default=10.0, gt=0)
    statement_timeout: float | None = Field(default=None, gt=0)
    recycle: float | None = Field(default=None, gt=0)
    pre_ping: bool = False
    max_waiting: int = Field(default=0, ge=0)
    slow_query: float | None = Field(default=None, ge=0)
    slow_acquire: float | None = Field(default=None, ge=0)
    application_name: str | None = None
    pgbouncer: Literal["transaction", "session"] | None = None
    reset: Literal["auto", "always", "never"] = "auto"
    replicas: SecretStr = SecretStr("")


class _PlatformSettings(BaseSettings):
    """What hosting platforms set."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    database_url: SecretStr | None = None


def load_options(name: str) -> DatabaseOptions:
    """Read what the environment says of the database `name`.

    Raises:
        MissingURLError: No URL is set.
        InvalidSettingError: A variable has a value that it cannot have.
        InvalidURLError: The URL cannot be read.
    """
    prefix = _prefix(name)
    settings = _read(prefix)
    _warn_of_unknown(prefix)
    url = _url(settings, name)
    if url is None:
        others = ["DATABASE_URL"] if name == "default" else []
        raise MissingURLError(name, [f"{prefix}URL", *others])
    share = _share(settings, prefix)
    most = settings.max_connections or share or PoolLimits().max_connections
    options = make_options(
        url.get_secret_value(),
        {
            "pool": PoolLimits(
                most,
                settings.idle_timeout,
                settings.recycle,
                settings.pre_ping,
                max_waiting=settings.max_waiting,
            ),
            "timeouts": Timeouts(
                settings.connect_timeout, settings.acquire_timeout, settings.statement_timeout
            ),
            "slow_query": settings.slow_query,
            "slow_acquire": settings.slow_acquire,
            "application_name": settings.application_name,
            "scope": settings.scope,
            "pgbouncer": settings.pgbouncer,
            "reset": settings.reset,
            "replicas": settings.replicas.get_secret_value().split(),
        },
    )
    if share is None or options.pool.max_connections <= share:
        return options
    least = min(options.pool.min_connections, share)
    limits = replace(options.pool, max_connections=share, min_connections=least)
    return replace(options, pool=limits)


def name_variable(error: ConfigurationError, name: str) -> None:
    """Say in the text of an error from which variable of the database `name` what cannot be comes."""
    prefix = _prefix(name)
    text = str(error).removeprefix(f"[{error.code}] ")
    if text.startswith(prefix):
        return
    option, settings = text.partition(" ")[0], _read(prefix)
    if option in LoopsafeSettings.model_fields:
        variable = f"{prefix}{option.upper()}"
    elif settings.replicas and _is_taken(_url(settings, name)):
        variable = f"{prefix}REPLICAS"
    else:
        variable = f"{prefix}URL" if settings.url else "DATABASE_URL"
    error.args = (f"[{error.code}] {variable}: {text}",)


def fleet_budget() -> int | None:
    """Give the connections that all processes of the fleet may have together, on all hosts; None if nobody says."""
    return _read(_PREFIX).fleet_connections


def application_name() -> str | None:
    """Give what the environment says of the sessions' names."""
    return _read(_PREFIX).application_name


def pgbouncer() -> Literal["transaction", "session"] | None:
    """Give the pool mode of the PgBouncer that the environment names."""
    return _read(_PREFIX).pgbouncer


def _prefix(name: str) -> str:
    return (
        _PREFIX if name == "default" else f"{_PREFIX}{re.sub(r'[^A-Za-z0-9]', '_', name).upper()}_"
    )


def _read(prefix: str) -> LoopsafeSettings:
    try:
        return LoopsafeSettings(_env_prefix=prefix)  # type: ignore[call-arg]
    except ValidationError as error:
        wrong = "; ".join(
            f"{prefix}{str(item['loc'][0]).upper()}: {item['msg']}"
            for item in error.errors(include_input=False)
        )
        raise InvalidSettingError(wrong) from None  # pydantic's own text shows the input


def _url(settings: LoopsafeSettings, name: str) -> SecretStr | None:
    others = _PlatformSettings().database_url if name == "default" else None
    return settings.url or others


def _is_taken(url: SecretStr | None) -> bool:
    """Tell whether a URL is one that a handle takes."""
    try:
        connect_options(make_options(url.get_secret_value() if url else "", {}))
    except ConfigurationError:
        return False
    return True


def _warn_of_unknown(prefix: str) -> None:
    """Warn of variables that nobody reads; those of a named database, which is told by its URL, are that one's."""
    found = {name.upper() for name in (*os.environ, *dotenv_values(".env"))}
    fields = {name.upper() for name in LoopsafeSettings.model_fields}
    own = {name.removeprefix(prefix): name for name in found if name.startswith(prefix)}
    others = tuple(name.removesuffix("URL") for name in own if name.endswith("_URL"))
    for rest, name in own.items():
        if rest not in fields and not rest.startswith(others):
            meant = nearest(rest, fields, _ELSEWHERE)
            warnings.warn(f"{name} is not read: no setting {rest}; {meant}", stacklevel=4)


def _share(settings: LoopsafeSettings, prefix: str) -> int | None:
    """Give the connections that one process of the fleet may have; None if there is no fleet."""
    if settings.fleet_connections is None:
        return None
    share = settings.fleet_connections // settings.fleet_workers
    if share < 1:
        raise InvalidSettingError(
            f"{prefix}FLEET_CONNECTIONS={settings.fleet_connections} for "
            f"{prefix}FLEET_WORKERS={settings.fleet_workers}: not one connection for each process"
        )
    return share
