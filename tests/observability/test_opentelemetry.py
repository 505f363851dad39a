"""OpenTelemetry: spans and metrics by its conventions, one of each statement, beside its other instrumentations too."""

from __future__ import annotations

import asyncio
import contextvars
import re
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import sqlalchemy as sa

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import (
    code_attributes,
    db_attributes,
    error_attributes,
    server_attributes,
)
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.trace import SpanKind, StatusCode

from loopsafe_db import Database, PoolLimits, Timeouts
from loopsafe_db.errors import AcquireTimeout
from loopsafe_db.integrations.opentelemetry import instrument
from loopsafe_db.snapshot import live_pools
from tests.observability import tools

if TYPE_CHECKING:
    from collections.abc import Iterator


class Told:
    """What OpenTelemetry was told."""

    def __init__(self) -> None:
        self.exporter, self.tracers = InMemorySpanExporter(), TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])

    @property
    def spans(self) -> Any:
        return self.exporter.get_finished_spans()

    def metrics(self) -> dict[str, list[Any]]:
        data: Any = self.reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def told() -> Iterator[Told]:
    told = Told()
    stop = instrument(tracer_provider=told.tracers, meter_provider=told.meters)
    yield told
    stop()


async def test_a_span_has_the_names_of_the_conventions(postgres_url: str, told: Told) -> None:
    database = Database(postgres_url)
    await database.fetch_all("SELECT :n AS n", {"n": "hunter2"})

    (span,) = told.spans
    assert (span.name, span.kind) == ("SELECT", SpanKind.CLIENT)
    attributes = dict(span.attributes)
    assert {
        "db.system.name": "postgresql",
        "db.namespace": database.url.database,
        "db.query.summary": "SELECT",
        "db.query.text": "SELECT $1 AS n",
        "db.response.returned_rows": 1,
        "server.address": database.url.host,
        "server.port": database.url.port,
        "code.file.path": __file__,
    }.items() <= attributes.items()
    assert "hunter2" not in str(attributes)
    assert span.start_time < span.end_time


async def test_a_span_is_the_child_of_what_its_caller_is_in(database: Database, told: Told) -> None:
    with told.tracers.get_tracer("mine").start_as_current_span("mine") as mine:
        async with database.transaction():
            await database.fetch_val("SELECT 1")

    parents = [span.parent.span_id for span in told.spans if span.name != "mine"]
    assert parents == [mine.get_span_context().span_id] * 3


async def test_what_fails_has_its_type_and_the_servers_code(postgres_url: str, told: Told) -> None:
    with pytest.raises(Exception, match="no_such"):
        await Database(postgres_url).fetch_all("SELECT * FROM no_such")

    (span,) = told.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "asyncpg.exceptions.UndefinedTableError"
    assert span.attributes["db.response.status_code"] == "42P01"


async def test_nothing_is_told_where_the_caller_has_switched_it_off(
    database: Database, told: Told
) -> None:
    with suppress_instrumentation():
        await database.fetch_val("SELECT 1")

    assert told.spans == ()


POOL_METRICS = (
    """count idle.max idle.min max pending_requests timeouts create_time wait_time use_time"""
)


def of_pool(metrics: dict[str, list[Any]], database: Database) -> dict[str, list[Any]]:
    """Give the points of one pool, by what stands after ``db.client.connection.``."""
    pool, prefix = database.stats().name, "db.client.connection."
    return {
        name.removeprefix(prefix): [one for one in points if pool in one.attributes.values()]
        for name, points in metrics.items()
        if name.startswith(prefix)
    }


def values(points: list[Any]) -> list[int]:
    return [point.value for point in points]


def counts(points: list[Any]) -> list[int]:
    return [point.count for point in points]


async def test_pools_have_the_metrics_of_the_conventions(postgres_url: str, told: Told) -> None:
    database = Database(
        postgres_url, pool=PoolLimits(1, min_connections=1), timeouts=Timeouts(acquire=0.05)
    )
    async with database.connection() as connection:
        await connection.fetch_val("SELECT 1")
        with pytest.raises(AcquireTimeout):
            await asyncio.create_task(database.fetch_val("SELECT 2"), context=contextvars.Context())
        held = of_pool(told.metrics(), database)
    metrics = told.metrics()
    given_back = of_pool(metrics, database)

    count = {point.attributes["db.client.connection.state"]: point.value for point in held["count"]}
    assert count == {"idle": 0, "used": 1}
    assert values(held["max"]) == values(held["idle.max"]) == values(held["idle.min"]) == [1]
    assert values(held["pending_requests"]) == [0]
    assert values(held["timeouts"]) == [1]
    assert given_back.keys() == set(POOL_METRICS.split())
    for name in ("create_time", "wait_time", "use_time"):
        assert counts(given_back[name]) == [1], name
    (duration,) = metrics["db.client.operation.duration"]
    assert duration.count == 1


async def test_every_name_is_one_of_the_conventions(postgres_url: str, told: Told) -> None:
    database = Database(postgres_url, pool=PoolLimits(1), timeouts=Timeouts(acquire=0.05))
    async with database.connection():
        with pytest.raises(AcquireTimeout):
            await asyncio.create_task(database.fetch_val("SELECT 2"), context=contextvars.Context())
    await database.execute_many("SELECT CAST(:n AS int)", [{"n": 1}, {"n": 2}])
    with pytest.raises(asyncpg.UndefinedColumnError):
        await database.fetch_val("SELECT nothing")

    metrics = told.metrics()
    points = [point for found in metrics.values() for point in found]
    attributes = {name for one in [*told.spans, *points] for name in one.attributes}
    conventions = [code_attributes, db_attributes, error_attributes, server_attributes, db_metrics]
    known = {name for each in conventions for name in vars(each).values() if isinstance(name, str)}
    theirs = {name for name in attributes if not name.startswith("loopsafe_db.")}

    assert theirs <= known
    assert set(metrics) <= known
    assert len(theirs) >= 8


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_each_use_of_a_connection_is_measured_on_every_path(
    postgres_url: str, told: Told, driver: str
) -> None:
    database = Database(postgres_url.replace("postgresql:", f"postgresql+{driver}:"))
    await database.fetch_val("SELECT 1")
    await database.fetch_val(sa.select(sa.literal(1)))
    async with database.session() as session:
        await session.execute(sa.text("SELECT 1"))
    async with database.connection():  # nothing is sent
        pass
    async for _ in database.iterate("SELECT 1"):
        pass
    with pytest.raises(Exception, match="no_such"):
        await database.fetch_val("SELECT no_such()")

    metrics = of_pool(told.metrics(), database)
    assert counts(metrics["use_time"]) == counts(metrics["wait_time"]) == [6]
    assert counts(metrics["create_time"]) == [1]
    await database.disconnect()


async def test_a_wait_counts_for_the_one_who_has_waited(postgres_url: str, told: Told) -> None:
    database = Database(postgres_url, pool=PoolLimits(max_connections=1))
    async with database.connection():
        waiting = asyncio.create_task(database.fetch_val("SELECT 1"), context=contextvars.Context())
        await asyncio.sleep(0)
        assert database.stats().waiting == 1
    await waiting
    await database.fetch_val("SELECT 1")

    (wait,) = of_pool(told.metrics(), database)["wait_time"]
    assert wait.count == 3
    assert wait.min == 0.0  # nobody has waited for the third
    assert wait.sum > 0.0


async def test_handles_of_one_database_are_summed(postgres_url: str, told: Told) -> None:
    handles = [Database(postgres_url, pool=PoolLimits(max_connections=most)) for most in (2, 3)]
    for handle in handles:
        await handle.fetch_val("SELECT 1")

    assert values(of_pool(told.metrics(), handles[0])["max"]) == [5]
    assert sum(values(of_pool(told.metrics(), handles[0])["count"])) == 2


def test_where_nobody_listens_no_use_is_told_of(postgres_url: str) -> None:
    database = Database(postgres_url)
    asyncio.run(database.fetch_val("SELECT 1"))
    assert [pool.tell_use for pool in live_pools()] == [None] * len(live_pools())

    instrument(tracer_provider=TracerProvider(), meter_provider=MeterProvider())()

    assert [pool.tell_use for pool in live_pools()] == [None] * len(live_pools())


@pytest.mark.slow
def test_each_tool_sees_what_the_table_says(postgres_url: str) -> None:
    pytest.importorskip("logfire")
    pytest.importorskip("sentry_sdk")
    page = (tools.ROOT / "docs/how-to/monitoring.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"(^\| \| text .*?)\n\n", page, re.MULTILINE | re.DOTALL)

    assert tools.table(postgres_url) == shown
