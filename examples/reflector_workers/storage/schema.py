"""The tables, in a schema of their own, so that a database given by a user stays tidy."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import BigInteger, Column, Double, Integer, MetaData, Table, Text, Uuid

from loopsafe_db import get_database

DEFINITION = Path(__file__).with_name("schema.sql")
_LOCK = 7_113_105  # any number, the same in every process

# Only the tables that are written or read by SQLAlchemy clauses; schema.sql is the definition.
_metadata = MetaData(schema="reflector")

turns = Table(
    "turns",
    _metadata,
    Column("workflow_instance_id", Text, primary_key=True),
    Column("reference_task_name", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("meeting_id", BigInteger),
    Column("speaker", Text),
    Column("starts_at", Double),
    Column("ends_at", Double),
)

job_log = Table(
    "job_log",
    _metadata,
    Column("execution_id", Uuid, primary_key=True),
    Column("workflow_instance_id", Text),
    Column("reference_task_name", Text),
    Column("job_type", Text),
    Column("worker_id", Text),
    Column("pid", Integer),
    Column("thread", Text),
    Column("backend_pid", Integer),
)


async def create_schema() -> None:
    """Create what is missing; safe to repeat, and for two programs to do at once."""
    database = get_database()
    async with database.transaction():
        # IF NOT EXISTS alone loses a race of two creators with a unique violation
        await database.execute(
            "SELECT pg_advisory_xact_lock(CAST(:lock AS bigint))", {"lock": _LOCK}
        )
        for statement in DEFINITION.read_text(encoding="utf-8").split(";\n"):
            if statement.strip():
                await database.execute(statement)
