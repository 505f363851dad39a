"""OpenTelemetry's and Sentry's instrumentation of SQLAlchemy: on an engine of ours as on SQLAlchemy's own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

if TYPE_CHECKING:
    from pathlib import Path

USE = """
import asyncio, os, loopsafe_db
import sqlalchemy as sa

async def use(engine):
    async with engine.begin() as connection:
        await connection.execute(sa.text("SELECT 1"))
        await connection.execute(sa.select(sa.literal(2)))
    try:
        async with engine.connect() as connection:
            await connection.execute(sa.text("SELECT no_such_column"))
    except sa.exc.DBAPIError:
        pass

def seen_by(create):
    engine = create(os.environ["ENGINE_URL"])
    found = [told() for _ in range(2) if asyncio.run(use(engine)) is None]
    read, write = os.pipe()
    child = os.fork()
    if not child:
        asyncio.run(use(engine))
        os.write(write, told().encode())
        os._exit(0)
    os.waitpid(child, 0)
    found.append(os.read(read, 100_000).decode())
    asyncio.run(engine.dispose())
    return found

def compare():
    import sqlalchemy.ext.asyncio
    from sqlalchemy.pool import NullPool
    plain = seen_by(lambda url: sqlalchemy.ext.asyncio.create_async_engine(url, poolclass=NullPool))
    ours = seen_by(loopsafe_db.create_async_engine)
    assert "SELECT" in plain[0] and plain == ours, (plain, ours)
    print("the same")
"""
OPENTELEMETRY = """
from opentelemetry import trace
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

provider, exporter = TracerProvider(), InMemorySpanExporter()
provider.add_span_processor(SimpleSpanProcessor(exporter))
SQLAlchemyInstrumentor().instrument(tracer_provider=provider, skip_dep_check=True)

def told():
    spans = exporter.get_finished_spans()
    exporter.clear()
    return repr([(one.name, sorted(one.attributes.items()), one.status.status_code.name) for one in spans])

compare()
"""
SENTRY = """
import sentry_sdk
from sentry_sdk.integrations.sqlalchemy import SqlalchemyIntegration

sent = []
sentry_sdk.init(
    dsn="http://key@127.0.0.1:1/1",
    integrations=[SqlalchemyIntegration()],
    default_integrations=False,
    auto_enabling_integrations=False,
    traces_sample_rate=1.0,
    before_send_transaction=lambda event, hint: sent.append(event),
)
used = use

async def use(engine):
    with sentry_sdk.start_transaction(name="job"):
        await used(engine)

def told():
    spans = [(one["op"], one["description"], one.get("status")) for event in sent for one in event["spans"]]
    del sent[:]
    return repr(spans)

compare()
"""


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(
    ("package", "script"),
    [("opentelemetry.instrumentation.sqlalchemy", OPENTELEMETRY), ("sentry_sdk", SENTRY)],
)
def test_it_is_told_the_same_in_each_loop_and_in_children(
    package: str, script: str, driver: str, postgres_url: str, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    url = sa.make_url(postgres_url).set(drivername=f"postgresql+{driver}", query={})
    environment = {**os.environ, "ENGINE_URL": url.render_as_string(hide_password=False)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", USE + script]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.strip() == "the same", ran.stderr[-3000:]
