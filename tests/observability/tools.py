"""What each tool sees of each path: run as a program, it prints the table of the how-to on monitoring.

``python -m tests.observability.tools URL`` makes the table; with the name of a tool, that process goes all paths
and tells how often the tool has seen each, as JSON. A tool patches what it watches for good, so each has a process
of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMES = 3
AT_A_TIME = 3
PATHS = ("text", "clause", "iterate", "session", "BEGIN and COMMIT")
Seen = list[str]
Tool = tuple[Callable[[], object], Callable[[], Seen]]  # begins to look, and gives what it has seen


def main() -> None:
    """Print the table, or one row."""
    url, *tool = sys.argv[1:]
    if tool:
        print(json.dumps(asyncio.run(observe(url, *tool))))
    else:
        print(table(url))


def table(url: str) -> str:
    """Make the table, each row by a process, some at a time."""
    lines = [f"| | {' | '.join(PATHS)} |", f"|---|{'---|' * len(PATHS)}"]
    with ThreadPoolExecutor(AT_A_TIME) as threads:
        rows = threads.map(lambda tool: row(url, tool), TOOLS)
    return "\n".join([*lines, *rows])


def row(url: str, tool: str) -> str:
    """Have a process go all paths under a tool."""
    run = [sys.executable, "-m", "tests.observability.tools", url, tool]
    done = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True)
    cells: dict[str, str] = json.loads(done.stdout)
    return f"| {tool} | {' | '.join(cells[path] for path in PATHS)} |"


async def observe(url: str, tool: str) -> dict[str, str]:
    """Do each thing three times under one tool, and tell how often it has seen that."""
    driver, switch_on = TOOLS[tool]
    start, read = switch_on()
    from loopsafe_db import Database  # after the tool has patched what it watches

    database = Database(url.replace("postgresql:", f"postgresql+{driver}:"))
    await database.connect()  # what SQLAlchemy asks its first connection is not counted
    start()
    await begin_and_commit(database)
    ends = [one for one in read() if one.startswith(("BEGIN", "COMMIT"))]
    start()
    await ask(database)
    seen = read()
    cells = {path: cell(sum(f"'{path}'" in one for one in seen), TIMES) for path in PATHS[:-1]}
    return {**cells, PATHS[-1]: cell(len(ends), 2 * TIMES)}


def cell(count: int, wanted: int) -> str:
    """Tell how often something was seen."""
    if count in (0, wanted, 2 * wanted):
        return {0: "no", wanted: "yes", 2 * wanted: "twice"}[count]
    return f"{count} of {wanted}" if count < wanted else f"{count} spans for {wanted}"


async def ask(database: Any) -> None:
    """Go each path three times."""
    import sqlalchemy as sa

    for _ in range(TIMES):
        await database.fetch_val("SELECT 'text'")
        await database.fetch_all(sa.select(sa.literal_column("'clause'")))
    for _ in range(TIMES):
        async for _ in database.iterate("SELECT 'iterate' FROM generate_series(1, 3)"):
            pass
    for _ in range(TIMES):
        async with database.session() as session:
            await session.execute(sa.text("SELECT 'session'"))


async def begin_and_commit(database: Any) -> None:
    """Begin and commit three transactions."""
    for _ in range(TIMES):
        async with database.transaction():
            pass


def by_opentelemetry(*names: str, ours: bool = False) -> Callable[[], Tool]:
    """Switch OpenTelemetry's instrumentations on, and perhaps this library's."""

    def switch_on() -> Tool:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        instrument(names, ours=ours)
        return exporter.clear, lambda: spans_of(exporter)

    return switch_on


def instrument(names: tuple[str, ...], *, ours: bool) -> None:
    """Switch these on."""
    if "asyncpg" in names:
        from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor

        of_asyncpg: Any = AsyncPGInstrumentor
        of_asyncpg().instrument()
    if "psycopg" in names:
        from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor

        PsycopgInstrumentor().instrument(skip_dep_check=True)
    if "SQLAlchemy" in names:
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

        SQLAlchemyInstrumentor().instrument(skip_dep_check=True)
    if ours:
        from loopsafe_db.integrations.opentelemetry import instrument as instrument_ours

        instrument_ours()


def spans_of(exporter: Any) -> Seen:
    """Give the statement of each span."""
    return [
        str(
            span.attributes.get("db.query.text") or span.attributes.get("db.statement") or span.name
        )
        for span in exporter.get_finished_spans()
    ]


def by_logfire(*, ours: bool) -> Callable[[], Tool]:
    """Switch logfire on, with what it has for asyncpg and SQLAlchemy."""

    def switch_on() -> Tool:
        import logfire
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter = InMemorySpanExporter()
        processors = [SimpleSpanProcessor(exporter)]
        logfire.configure(
            send_to_logfire=False, console=False, additional_span_processors=processors
        )
        logfire.instrument_asyncpg()
        instrument(("SQLAlchemy",), ours=ours)
        return exporter.clear, lambda: spans_of(exporter)

    return switch_on


def by_sentry(*, ours: bool) -> Callable[[], Tool]:
    """Switch Sentry on as it comes, or without its own integrations and with a listener."""

    def switch_on() -> Tool:
        import sentry_sdk

        seen: Seen = []

        def keep(event: Any, _: object) -> None:
            seen.extend(str(span.get("description")) for span in event["spans"])

        options: dict[str, Any] = {}
        if ours:
            from sentry_sdk.integrations.asyncpg import AsyncPGIntegration
            from sentry_sdk.integrations.sqlalchemy import SqlalchemyIntegration

            options["disabled_integrations"] = [AsyncPGIntegration(), SqlalchemyIntegration()]
        sentry_sdk.init(
            "http://key@127.0.0.1:1/1",
            traces_sample_rate=1.0,
            before_send_transaction=keep,
            **options,
        )
        if ours:
            from loopsafe_db import on_statement

            on_statement(tell_sentry)
        transactions: list[Any] = []

        def start() -> None:
            seen.clear()
            transactions.append(sentry_sdk.start_transaction(name="the program").__enter__())

        def read() -> Seen:
            transactions.pop().__exit__(None, None, None)
            return list(seen)

        return start, read

    return switch_on


def tell_sentry(statement: Any) -> None:
    """Make a span of Sentry's, as the how-to has it."""
    import sentry_sdk

    began = datetime.fromtimestamp(statement.started_at, UTC)
    span = sentry_sdk.start_span(op="db", name=statement.sql, start_timestamp=began)
    span.set_data("db.system", statement.url.get_backend_name())
    span.finish()


TOOLS: dict[str, tuple[str, Callable[[], Tool]]] = {
    "OpenTelemetry for asyncpg": ("asyncpg", by_opentelemetry("asyncpg")),
    "OpenTelemetry for psycopg": ("psycopg", by_opentelemetry("psycopg")),
    "OpenTelemetry for SQLAlchemy": ("asyncpg", by_opentelemetry("SQLAlchemy")),
    "Sentry, as it comes": ("asyncpg", by_sentry(ours=False)),
    "logfire for asyncpg and SQLAlchemy": ("asyncpg", by_logfire(ours=False)),
    "**`instrument()`**": ("asyncpg", by_opentelemetry(ours=True)),
    "… beside OpenTelemetry for asyncpg and SQLAlchemy": (
        "asyncpg",
        by_opentelemetry("asyncpg", "SQLAlchemy", ours=True),
    ),
    "… beside OpenTelemetry for psycopg and SQLAlchemy": (
        "psycopg",
        by_opentelemetry("psycopg", "SQLAlchemy", ours=True),
    ),
    "… beside logfire for asyncpg and SQLAlchemy": ("asyncpg", by_logfire(ours=True)),
    "**`on_statement`** and Sentry": ("asyncpg", by_sentry(ours=True)),
}

if __name__ == "__main__":
    main()
