"""Where values of PostgreSQL are others with asyncpg than with psycopg: what the page on URLs says."""

from __future__ import annotations

from datetime import UTC, date, datetime
from uuid import UUID

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from loopsafe_db import Database
from tests.conftest import SCOPE

FIRST = UUID("00000000-0000-0000-0000-000000000001")
DIFFERENT = {
    "'infinity'::date": (date.max, psycopg.DataError),
    "'infinity'::timestamp": (datetime.max, psycopg.DataError),
    "'infinity'::timestamptz": (datetime.max, psycopg.DataError),
    "'0044-03-15 BC'::date": (ValueError, psycopg.DataError),
    "'10000-01-01'::date": (ValueError, psycopg.DataError),
    "'24:00'::time": (ValueError, psycopg.DataError),
    "0.1::real": (0.10000000149011612, 0.1),
    "'a'::\"char\"": (b"a", "a"),
    "'[1,5)'::int4range": (asyncpg.Range(1, 5), Range(1, 5)),
    "'{[1,3)}'::int4multirange": ([asyncpg.Range(1, 3)], Multirange([Range(1, 3)])),
    "B'101'": (asyncpg.BitString("101"), "101"),
    "'(1,2)'::point": (asyncpg.Point(1, 2), "(1,2)"),
    "ROW(1, 'a')": ((1, "a"), ("1", "a")),
    "'0/10'::pg_lsn": (16, "0/10"),
    "'(0,1)'::tid": ((0, 1), "(0,1)"),
}


@pytest.fixture(params=["asyncpg", "psycopg"])
def mine(postgres_url: str, request: pytest.FixtureRequest) -> Database:
    url = sa.make_url(postgres_url).set(drivername=f"postgresql+{request.param}")
    return Database(url, scope=SCOPE, max_size=1, server_settings={"timezone": "Asia/Tokyo"})


async def test_each_is_as_the_page_says(mine: Database) -> None:
    async with mine:
        for sql, values in DIFFERENT.items():
            wanted = values[mine.url.driver == "psycopg"]
            query = f"SELECT {sql}"
            if isinstance(wanted, type):
                with pytest.raises(wanted):
                    await mine.fetch_val(query)
            else:
                assert await mine.fetch_val(query) == wanted, sql


async def test_the_last_day_is_infinity_to_asyncpg(mine: Database) -> None:
    async with mine:
        stored = await mine.fetch_val("SELECT CAST(CAST(:day AS date) AS text)", {"day": date.max})
        assert stored == {"asyncpg": "infinity", "psycopg": "9999-12-31"}[str(mine.url.driver)]


async def test_a_moment_is_in_utc_or_where_the_session_is(mine: Database) -> None:
    async with mine:
        moment = await mine.fetch_val("SELECT CAST('2026-01-02 03:04:05+00' AS timestamptz)")
        assert moment == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        assert moment.utcoffset().seconds == {"asyncpg": 0, "psycopg": 32400}[str(mine.url.driver)]
        uuid = await mine.fetch_val("SELECT CAST(:it AS uuid)", {"it": FIRST})
        assert uuid == FIRST
        assert (type(uuid) is UUID) == (mine.url.driver == "psycopg")
