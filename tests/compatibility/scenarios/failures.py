"""Exceptions of the drivers, as programs catch them."""

from __future__ import annotations

import sqlite3
from typing import Any

import asyncpg
import sqlalchemy as sa

from tests.compatibility.scenarios.tables import notes, people
from tests.compatibility.world import World, attempt, only

EMAIL = people.insert().values(email="a@b")


async def _caught(coroutine: Any, kind: type[Exception]) -> Any:
    """Whether an ``except kind`` catches it; its SQLSTATE and constraint, where there are."""
    try:
        await coroutine
    except kind as error:
        return (
            type(error).__name__,
            getattr(error, "sqlstate", None),
            getattr(error, "constraint_name", None),
            str(error),
        )
    return "nothing was raised"


@only("postgresql")
async def unique_violation_of_postgresql(world: World) -> Any:
    async with world.database(notes, people) as database:
        await database.execute(EMAIL)
        text = "INSERT INTO people (email) VALUES (:email)"
        kind = asyncpg.UniqueViolationError
        return (
            await _caught(database.execute(EMAIL), kind),
            await _caught(database.execute(text, {"email": "a@b"}), kind),
            await _caught(database.execute_many(people.insert(), [{"email": "a@b"}]), kind),
            await _caught(database.execute_many(text, [{"email": "a@b"}]), kind),
            await _caught(database.fetch_one(EMAIL.returning(people.c.id)), kind),
        )


@only("postgresql")
async def other_violations_of_postgresql(world: World) -> Any:
    async with world.database(notes, people) as database:
        insert = people.insert()
        return (
            await _caught(database.execute(insert.values(age=1)), asyncpg.NotNullViolationError),
            await _caught(
                database.execute(insert.values(email="x", note_id=9)),
                asyncpg.ForeignKeyViolationError,
            ),
            await _caught(
                database.execute(insert.values(email="x", age=-1)), asyncpg.CheckViolationError
            ),
            await _caught(
                database.execute(insert.values(email="x" * 101)),
                asyncpg.StringDataRightTruncationError,
            ),
        )


@only("postgresql")
async def errors_of_statements_in_postgresql(world: World) -> Any:
    async with world.database(notes) as database:
        missing: Any = sa.select(sa.column("nothing")).select_from(notes)
        return (
            await _caught(database.fetch_all("SELEKT"), asyncpg.PostgresSyntaxError),
            await _caught(database.fetch_all("SELECT * FROM nowhere"), asyncpg.UndefinedTableError),
            await _caught(database.fetch_all(missing), asyncpg.UndefinedColumnError),
            await _caught(database.fetch_val("SELECT 1 / 0"), asyncpg.DivisionByZeroError),
            await _caught(database.execute(sa.schema.CreateTable(notes)), asyncpg.PostgresError),
        )


@only("postgresql")
async def values_of_the_wrong_type_in_postgresql(world: World) -> Any:
    async with world.database(notes) as database:
        query = notes.select().where(notes.c.id == "text")
        as_text = "SELECT * FROM notes WHERE id = :id"
        return await attempt(database.fetch_all(query)), await attempt(
            database.fetch_all(as_text, {"id": "text"})
        )


@only("postgresql")
async def serialization_failure_of_postgresql(world: World) -> Any:
    async with world.database(notes) as one, world.Database(world.url) as two:
        await one.execute(notes.insert().values(id=1))
        first = await one.transaction(isolation="serializable")
        second = await two.transaction(isolation="serializable")
        await one.fetch_all(notes.select())
        await two.fetch_all(notes.select())
        await one.execute(notes.update().values(text="one"))
        await first.commit()
        caught = await _caught(
            two.execute(notes.update().values(text="two")), asyncpg.SerializationError
        )
        await second.rollback()
        return caught[:2]


@only("postgresql")
async def statement_in_a_failed_transaction_of_postgresql(world: World) -> Any:
    async with world.database() as database:
        transaction = await database.transaction()
        try:
            await database.fetch_all("SELEKT")
        except asyncpg.PostgresError:
            caught = await _caught(
                database.fetch_val("SELECT 1"), asyncpg.InFailedSQLTransactionError
            )
        else:
            caught = None
        await transaction.rollback()
        return caught


@only("postgresql")
async def connection_that_the_server_ended(world: World) -> Any:
    async with world.database() as database:

        async def suicide() -> None:
            await database.fetch_val("SELECT pg_terminate_backend(pg_backend_pid())")

        ended = await _caught(suicide(), asyncpg.PostgresError)
        return ended[0], await database.fetch_val("SELECT 1")


@only("sqlite")
async def violations_of_sqlite(world: World) -> Any:
    async with world.database(notes, people) as database:
        await database.execute(EMAIL)
        text = "INSERT INTO people (email) VALUES (:email)"
        kind = sqlite3.IntegrityError
        insert = people.insert()
        return (
            await _caught(database.execute(EMAIL), kind),
            await _caught(database.execute(text, {"email": "a@b"}), kind),
            await _caught(database.execute_many(insert, [{"email": "a@b"}]), kind),
            await _caught(database.execute_many(text, [{"email": "a@b"}]), kind),
            await _caught(database.execute(insert.values(age=1)), kind),
            await _caught(database.execute(insert.values(email="x", age=-1)), kind),
        )


@only("sqlite")
async def foreign_keys_of_sqlite_are_enforced_or_not(world: World) -> Any:
    async with world.database(notes, people) as database:
        return await attempt(database.execute(people.insert().values(email="x", note_id=9)))


@only("sqlite")
async def errors_of_statements_in_sqlite(world: World) -> Any:
    async with world.database(notes) as database:
        kind = sqlite3.OperationalError
        return (
            await _caught(database.fetch_all("SELEKT"), kind),
            await _caught(database.fetch_all("SELECT * FROM nowhere"), kind),
            await _caught(database.execute(sa.schema.CreateTable(notes)), kind),
        )


async def handle_works_after_errors(world: World) -> Any:
    async with world.database(notes) as database:
        seen = [await attempt(database.fetch_all("SELEKT")) for _ in range(3)]
        return seen, await database.fetch_val("SELECT 1")
