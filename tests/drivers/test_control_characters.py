"""A control character in what a session starts with is refused by us, with an error that names the place."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import URL

from loopsafe_db import ConfigurationError, Database, configure, get_database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTROL = [*map(chr, range(32)), *map(chr, range(0x7F, 0xA0))]
POSTGRESQL = ("postgresql+asyncpg", "postgresql+psycopg")
KEYWORDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "application_name": lambda text: {"application_name": text},
    "search_path": lambda text: {"server_settings": {"search_path": text}},
    "server_settings": lambda text: {"server_settings": {text: "1"}},
    "'application_name": lambda text: {"server_settings": {"application_name": text}},
    "ssl": lambda text: {"ssl": text},
}


def url(driver: str, **parts: Any) -> URL:
    return URL.create(driver, **{"username": "ann", "host": "nowhere", "database": "app", **parts})


@pytest.mark.parametrize("driver", POSTGRESQL)
@pytest.mark.parametrize("place", KEYWORDS)
def test_a_keyword_is_refused(driver: str, place: str) -> None:
    for letter in CONTROL:
        with pytest.raises(ConfigurationError, match=re.escape(place.strip("'"))) as caught:
            Database(url(driver), **KEYWORDS[place](f"tenant{letter}one"))
        assert letter not in str(caught.value).replace("\nHINT", "")


@pytest.mark.parametrize("driver", POSTGRESQL)
@pytest.mark.parametrize("name", ["application_name", "options", "host", "sslrootcert"])
def test_the_urls_query_is_refused(driver: str, name: str) -> None:
    for letter in CONTROL:
        with pytest.raises(ConfigurationError, match=name) as caught:
            Database(url(driver, query={name: f"tenant{letter}one"}))
        assert letter not in str(caught.value).replace("\nHINT", "")


@pytest.mark.parametrize(
    "driver", [*POSTGRESQL, "sqlite+aiosqlite", "mysql+aiomysql", "mysql+asyncmy"]
)
@pytest.mark.parametrize("part", ["username", "database", "host"])
def test_a_part_of_the_url_is_refused(driver: str, part: str) -> None:
    for letter in CONTROL:
        with pytest.raises(ConfigurationError, match="has a control character") as caught:
            Database(url(driver, **{part: f"tenant{letter}one"}))
        assert letter not in str(caught.value).replace("\nHINT", "")


def test_so_is_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOOPSAFE_DB_TENANT_URL", "postgresql://ann@nowhere/app")
    monkeypatch.setenv("LOOPSAFE_DB_TENANT_APPLICATION_NAME", "tenant\x01one")
    with pytest.raises(ConfigurationError, match="application_name has a control character"):
        get_database("tenant")


def test_so_are_configures_and_a_replicas() -> None:
    with pytest.raises(ConfigurationError, match="has a control character"):
        configure("postgresql://ann@nowhere/a%01pp", name="refused")
    with pytest.raises(ConfigurationError, match="has a control character"):
        Database("postgresql://ann@nowhere/app", replicas=["postgresql://a%00nn@nowhere/app"])


def test_what_is_printable_is_taken() -> None:
    for driver in POSTGRESQL:
        Database(url(driver, username="änn", database="app one"), application_name="tenant ↯ {pid}")
