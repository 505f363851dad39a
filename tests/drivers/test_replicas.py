"""Named databases, and replicas that are read from but never inside a transaction."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING

import pytest

from loopsafe_db import Database, configure, get_database
from loopsafe_db.errors import InvalidSettingError, InvalidURLError, MissingURLError
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def urls(tmp_path: Path) -> list[str]:
    """A primary and two replicas, each of which says which it is."""
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("primary", "first", "second")]
    for number, url in enumerate(urls):
        asyncio.run(Database(url).execute(f"CREATE TABLE me AS SELECT {number} AS n"))
    return urls


WHO = "SELECT n FROM me"


async def test_reading_goes_to_the_replicas_in_turn(urls: list[str]) -> None:
    database = Database(urls[0], replicas=urls[1:], scope=SCOPE)

    assert [await database.read().fetch_val(WHO) for _ in range(4)] == [1, 2, 1, 2]
    async with database.read().session() as session:
        assert (await session.connection()).engine.url.database == urls[1].partition("///")[2]
    assert await database.fetch_val(WHO) == 0


async def test_a_transaction_reads_what_it_wrote(urls: list[str]) -> None:
    database = Database(urls[0], replicas=urls[1:], scope=SCOPE)

    async with database.transaction():
        await database.execute("UPDATE me SET n = 10")
        assert await database.read().fetch_val(WHO) == 10
    assert await database.read().fetch_val(WHO) == 1


def test_without_replicas_a_handle_reads_itself(urls: list[str]) -> None:
    database = Database(urls[0], scope=SCOPE)
    assert database.read() is database


def test_replicas_pickle_with_their_handle(urls: list[str]) -> None:
    database = pickle.loads(pickle.dumps(Database(urls[0], replicas=urls[1:], scope=SCOPE)))
    assert asyncio.run(database.read().fetch_val(WHO)) == 1


def test_named_databases_have_settings_of_their_own(
    urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPSAFE_DB_MY_REPORTS_URL", urls[1])
    monkeypatch.setenv("LOOPSAFE_DB_MY_REPORTS_REPLICAS", f"{urls[2]} {urls[0]}")
    monkeypatch.setenv("LOOPSAFE_DB_MY_REPORTS_MAX_CONNECTIONS", "3")
    monkeypatch.setenv("LOOPSAFE_DB_MY_REPORTS_PRE_PING", "yes")

    reports = get_database("my-reports")

    assert get_database("my-reports") is reports
    assert asyncio.run(reports.fetch_val(WHO)) == 1
    assert [asyncio.run(reports.read().fetch_val(WHO)) for _ in range(2)] == [2, 0]
    assert pickle.loads(pickle.dumps(reports)) is reports


def test_a_named_database_without_a_url_says_which_variable() -> None:
    with pytest.raises(MissingURLError, match="LOOPSAFE_DB_NOWHERE_URL") as caught:
        get_database("nowhere")
    assert "DATABASE_URL" not in str(caught.value).replace("LOOPSAFE_DB_NOWHERE_URL", "")


def test_a_program_may_name_databases_itself(urls: list[str]) -> None:
    configure(urls[1], name="by-program", replicas=[urls[2]])

    assert asyncio.run(get_database("by-program").fetch_val(WHO)) == 1
    assert asyncio.run(get_database("by-program").read().fetch_val(WHO)) == 2


def test_what_cannot_be_is_refused_at_once(
    urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidURLError):
        Database(urls[0], replicas=["nonsense"])
    with pytest.raises(InvalidSettingError, match="pgbouncer"):
        Database(urls[0], pgbouncer="statement")
    monkeypatch.setenv("LOOPSAFE_DB_WRONG_URL", urls[0])
    monkeypatch.setenv("LOOPSAFE_DB_WRONG_PGBOUNCER", "statement")
    with pytest.raises(InvalidSettingError, match="LOOPSAFE_DB_WRONG_PGBOUNCER"):
        get_database("wrong")
    with pytest.raises(TypeError, match="sise"):
        Database(urls[0], sise=3)  # type: ignore[call-arg]
