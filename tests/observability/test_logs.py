"""What is logged: each statement where somebody wants that, and what was slow, with whose fault it was."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, PoolLimits, create_async_engine
from loopsafe_db.errors import InvalidSettingError
from tests.docs.test_docs import run_script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STATEMENTS = "loopsafe_db.statements"


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    logger = logging.getLogger(STATEMENTS)
    level = logger.level
    yield
    logger.setLevel(level)


def of(caplog: pytest.LogCaptureFixture, name: str) -> list[Any]:
    return [record for record in caplog.records if record.name == name]


async def test_echo_logs_texts_clauses_and_sessions_without_values(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    loud = Database(database.url, echo=True)
    await loud.fetch_val("SELECT CAST(:n AS text)", {"n": "hunter2"})
    await loud.fetch_val(sa.select(sa.literal_column("2")))
    async with loud.session() as session:
        await session.execute(sa.text("SELECT 3"))

    told = [record.getMessage() for record in of(caplog, STATEMENTS)]
    assert [sum(f"SELECT {what}" in one for one in told) for what in ("CAST", "2", "3")] == [1] * 3
    assert all(__file__ in one for one in told if "SELECT" in one)
    assert "hunter2" not in caplog.text


async def test_echo_shows_values_where_that_is_asked(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    loud = Database(database.url, echo="values")
    await loud.fetch_val("SELECT CAST(:n AS text)", {"n": "hunter2"})

    assert "('hunter2',)" in caplog.text


async def test_the_level_of_the_logger_does_it_too_and_that_of_the_root_does_not(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await Database(database.url).fetch_val("SELECT 1")
    assert of(caplog, STATEMENTS) == []

    with caplog.at_level(logging.INFO, STATEMENTS):
        await Database(database.url).fetch_val("SELECT 2")
    assert [record.statement.sql for record in of(caplog, STATEMENTS)] == ["SELECT 2"]


def test_echo_is_on_stdout_where_a_program_logs_nowhere(tmp_path: Path, postgres_url: str) -> None:
    script = """
import asyncio, os
from loopsafe_db import Database
asyncio.run(Database(os.environ["DATABASE_URL"], echo=True).fetch_val("SELECT 1"))
"""
    done = run_script(script, tmp_path, postgres_url)

    assert done.stderr == ""
    assert "INFO loopsafe_db.statements SELECT 1" in done.stdout


async def test_what_is_quick_is_not_logged(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await Database(database.url, slow_query=60, slow_acquire=60).fetch_val("SELECT 1")

    assert of(caplog, "loopsafe_db") == []


async def test_a_slow_statement_is_one_warning_with_its_parts_and_its_place(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Database(database.url, slow_query=0)
    await slow.fetch_val("SELECT 1")

    (record,) = of(caplog, "loopsafe_db")
    assert record.levelno == logging.WARNING
    assert record.statement.sql == "SELECT 1"
    text = record.getMessage()
    for part in ("waiting", "connecting", "server", "loop was busy", "SELECT 1", __file__):
        assert part in text


async def test_a_slow_acquire_is_told_apart(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(postgres_url, pool=PoolLimits(max_connections=1), slow_acquire=1e-9)
    async with database.connection() as connection:
        await connection.fetch_val("SELECT 'holds it'")
        caplog.clear()
        waiting = asyncio.create_task(
            database.fetch_val("SELECT 'waits'"), context=contextvars.Context()
        )
        await asyncio.sleep(0)  # it waits: nobody gives the connection back
    await waiting

    (record,) = of(caplog, "loopsafe_db")
    assert record.statement.sql == "SELECT 'waits'"
    assert record.statement.wait > 0


async def test_a_busy_loop_is_told_apart_from_a_slow_server(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(postgres_url, slow_query=0.1)
    await database.connect()
    query = asyncio.create_task(database.fetch_val("SELECT 1"))
    await asyncio.sleep(0)  # now it is on its way
    threading.Event().wait(0.2)
    await query

    (record,) = of(caplog, "loopsafe_db")
    assert record.statement.lag > 0.1


@pytest.mark.parametrize("option", [{"echo": "loud"}, {"slow_query": -1}, {"slow_acquire": "x"}])
def test_what_cannot_be_is_refused(option: Any) -> None:
    with pytest.raises(InvalidSettingError, match=next(iter(option))):
        Database("sqlite:///x.db", **option)


def test_echo_debug_is_refused_by_a_handle_with_the_way_to_it() -> None:
    with pytest.raises(InvalidSettingError, match=r"not 'debug'; rows are .* create_async_engine"):
        Database("postgresql://h/d", echo="debug")


async def test_echo_debug_of_an_engine_logs_the_rows_as_sqlalchemy_does(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_async_engine(
        postgres_url.replace("postgresql:", "postgresql+asyncpg:"), echo="debug"
    )
    async with engine.connect() as connection:
        (await connection.execute(sa.text("SELECT 4711 AS n"))).all()
    await engine.dispose()
    logging.getLogger("sqlalchemy.engine.Engine").setLevel(logging.NOTSET)

    assert "Row (4711,)" in [record.getMessage() for record in caplog.records]
