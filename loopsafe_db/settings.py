"""LoopsafeSettings: the only reader of the environment."""

from __future__ import annotations

import re

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from loopsafe_db.engines.options import DatabaseOptions, PoolLimits, Timeouts
from loopsafe_db.engines.url import parse_url
from loopsafe_db.errors import InvalidSettingError, MissingURLError

_PREFIX = "LOOPSAFE_DB_"


class LoopsafeSettings(BaseSettings):
    """One database's settings, from the environment, then from ``.env``; times are seconds."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    url: SecretStr | None = None
    pool_size: int = Field(default=5, ge=1)
    acquire_timeout: float = Field(default=30.0, gt=0)
    connect_timeout: float = Field(default=10.0, gt=0)
    statement_timeout: float | None = Field(default=None, gt=0)
    application_name: str | None = None


class _PlatformSettings(BaseSettings):
    """What hosting platforms set."""

    model_config = SettingsConfigDict(
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
    prefix = (
        _PREFIX if name == "default" else f"{_PREFIX}{re.sub(r'[^A-Za-z0-9]', '_', name).upper()}_"
    )
    try:
        settings = LoopsafeSettings(_env_prefix=prefix)  # type: ignore[call-arg]
    except ValidationError as error:
        wrong = "; ".join(
            f"{prefix}{str(item['loc'][0]).upper()}: {item['msg']}"
            for item in error.errors(include_input=False)
        )
        raise InvalidSettingError(wrong) from None  # pydantic's own text shows the input
    url, variables = settings.url, [f"{prefix}URL"]
    if name == "default":
        variables.append("DATABASE_URL")
        url = url or _PlatformSettings().database_url
    if url is None:
        raise MissingURLError(name, variables)
    return DatabaseOptions(
        parse_url(url.get_secret_value()),
        PoolLimits(settings.pool_size),
        Timeouts(settings.connect_timeout, settings.acquire_timeout, settings.statement_timeout),
        settings.application_name,
    )
