"""A short storm for each driver; `make soak` lets it blow for long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.storm.storm import Weather, blow, set_up

if TYPE_CHECKING:
    from pathlib import Path

    from loopsafe_db import Database


@pytest.mark.parametrize("undone", [False, True], ids=["plain", "force_rollback"])
@pytest.mark.parametrize("connections", [1, 2, 5])
def test_a_storm_loses_nothing_and_mixes_nothing_up(
    database: Database, connections: int, *, undone: bool, tmp_path: Path
) -> None:
    url = database.url.render_as_string(hide_password=False)
    set_up(url)
    weather = Weather(
        f"ci-{connections}",
        database.url.driver,
        connections=connections,
        undone=undone,
        forks=0 if undone else 1,
    )

    ledger = blow(url, weather, tmp_path)

    assert ledger.wrong == []
    assert ledger.operations >= 150


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_lightning_loses_nothing_that_was_told_and_is_met_as_errors_of_the_family(
    postgres_url: str, driver: str, tmp_path: Path
) -> None:
    set_up(postgres_url)
    weather = Weather(f"lightning-{driver}", driver, forks=1, lightning=True)

    ledger = blow(postgres_url, weather, tmp_path)

    assert ledger.wrong == []
    assert ledger.operations >= 150
    assert ledger.struck
