"""What `execute` and `execute_many` give, the same on every driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from tests.drivers.test_texts import dialect_of, server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from loopsafe_db import Database

__all__ = ["server"]  # a fixture

metadata = sa.MetaData()
numbered = sa.Table(
    "numbered",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(20), unique=True),
)
named = sa.Table(
    "named", metadata, sa.Column("name", sa.String(20), primary_key=True, default=lambda: "made")
)


@pytest.fixture
async def made(server: Database) -> AsyncIterator[Database]:
    """A handle, and two tables with a row each."""
    for table in metadata.sorted_tables:
        await server.execute(f"DROP TABLE IF EXISTS {table.name}")
        await server.execute(sa.schema.CreateTable(table))
    assert await server.execute(numbered.insert().values(name="a")) == 1
    assert await server.execute(numbered.insert().values(id=700, name="b")) == 700
    assert await server.execute(named.insert()) == "made"
    yield server
    for table in metadata.sorted_tables:
        await server.execute(sa.schema.DropTable(table))


def or_nothing(database: Database, table: sa.Table) -> Any:
    """An insert that does nothing where there is such a row."""
    match dialect_of(database):
        case "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing()
        case "sqlite":
            return sqlite.insert(table).on_conflict_do_nothing()
        case _:
            return mysql.insert(table).prefix_with("IGNORE")


def text_or_nothing(database: Database) -> str:
    insert = "INTO numbered (name) VALUES (:name)"
    if dialect_of(database) in ("mysql", "mariadb"):
        return f"INSERT IGNORE {insert}"
    return f"INSERT {insert} ON CONFLICT DO NOTHING"


async def test_an_insert_that_inserts_nothing_gives_0(made: Database) -> None:
    of_numbered, of_named = or_nothing(made, numbered), or_nothing(made, named)
    nobody = sa.select(numbered.c.name).where(numbered.c.id == -1)
    for query in (
        of_numbered.values(name="a"),
        of_numbered.values(id=700),
        of_named.values(name="made"),
        of_named,
        numbered.insert().from_select(["name"], nobody),
    ):
        assert await made.execute(query) == 0, str(query)
    for text in (text_or_nothing(made), sa.text(text_or_nothing(made))):
        assert await made.execute(text, {"name": "a"}) == 0


async def test_what_gives_no_row_where_it_could_gives_none(made: Database) -> None:
    nobody = sa.select(numbered.c.name).where(numbered.c.id == -1)
    returning = f"{text_or_nothing(made)} RETURNING id"
    for query in (
        or_nothing(made, numbered).values(name="a").returning(numbered.c.id),
        numbered.insert().from_select(["name"], nobody).returning(numbered.c.id),
        numbered.delete().where(numbered.c.id == -1).returning(numbered.c.id),
        "DELETE FROM numbered WHERE id = -1 RETURNING id",
        "INSERT INTO numbered (name) SELECT name FROM numbered WHERE id = -1 RETURNING id",
        "SELECT id FROM numbered WHERE id = -1",
        sa.select(numbered.c.id).where(numbered.c.id == -1),
        nobody,
    ):
        assert await made.execute(query) is None, str(query)
    assert await made.execute(returning, {"name": "a"}) is None
    assert await made.execute(sa.text(returning), {"name": "a"}) is None
    assert isinstance(await made.execute(returning, {"name": "new"}), int)


async def test_what_has_no_key_gives_the_rows_affected(made: Database) -> None:
    for query, affected in (
        ("UPDATE numbered SET name = 'c' WHERE id = 700", 1),
        (numbered.update().where(numbered.c.id == -1).values(name="d"), 0),
        (numbered.insert().values([{"name": "e"}, {"name": "f"}]), 2),
        (numbered.delete().where(numbered.c.id == 700), 1),
        ("DELETE FROM numbered", 3),
    ):
        assert await made.execute(query) == affected, str(query)


async def test_an_upsert_gives_the_key_of_the_row_that_was_there(made: Database) -> None:
    kind = {"postgresql": postgresql, "sqlite": sqlite}.get(dialect_of(made))
    if kind is None:
        pytest.skip("MySQL says which key it was only if it is told to, by LAST_INSERT_ID()")
    insert = kind.insert(numbered)
    update = insert.on_conflict_do_update(index_elements=["name"], set_={"name": "a"})
    assert await made.execute(numbered.insert().values(id=701, name="c")) == 701
    assert await made.execute(update, {"name": "a"}) == 1
    assert await made.execute(update.values(name="new")) != 1


async def test_many_rows_give_those_that_were_affected(made: Database) -> None:
    tells = "asyncpg" not in str(made.url) and made.url.drivername != "postgresql"
    rows = [{"name": name} for name in ("x", "y", "a", "x")]
    for query, values, affected in (
        (text_or_nothing(made), rows, 2),
        (numbered.insert(), [{"name": "z"}, {"name": "w"}], 2),
        ("INSERT INTO numbered (name) VALUES (:n) RETURNING id", [{"n": "r"}, {"n": "s"}], 2),
        ("DELETE FROM numbered WHERE name = :name", rows, 3),
    ):
        seen = await made.execute_many(query, values)
        assert seen == (affected if tells else None), str(query)
    assert await made.fetch_val("SELECT count(*) FROM numbered") == 5


async def test_a_session_has_no_key_of_another_insert_where_one_did_nothing(
    made: Database,
) -> None:
    async with made.session.begin() as session:
        await session.execute(numbered.insert().values(name="before"))
        result: Any = await session.execute(or_nothing(made, numbered).values(name="a"))
        if dialect_of(made) == "postgresql":
            return  # SQLAlchemy has no key at all
        assert result.inserted_primary_key[0] in (None, 0)
        if dialect_of(made) == "sqlite":
            assert result.lastrowid is None
            upsert = sqlite.insert(numbered).values(name="a")
            upsert = upsert.on_conflict_do_update(index_elements=["name"], set_={"name": "c"})
            assert (await session.execute(upsert)).inserted_primary_key == (None,)  # type: ignore[attr-defined]
        inserted: Any = await session.execute(or_nothing(made, numbered).values(name="new"))
        assert inserted.inserted_primary_key[0] == await session.scalar(
            sa.select(numbered.c.id).where(numbered.c.name == "new")
        )
