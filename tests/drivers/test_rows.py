# ruff: noqa: SLF001 (`_mapping` is public: it is SQLAlchemy's name)
"""Rows know their columns, mappings lose none of them, and many rows may have other names each."""

from __future__ import annotations

import gc
import pickle
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db.records import RecordKeys, TupleRecord

if TYPE_CHECKING:
    from loopsafe_db import Database

table = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, default=lambda: "by default"),
    sa.Column("n", sa.Integer),
)
ALL = table.select().order_by(table.c.id)


async def make_table(database: Database) -> None:
    await database.execute("DROP TABLE IF EXISTS things")
    await database.execute(sa.schema.CreateTable(table))


async def seen(database: Database) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await database.fetch_all(ALL)]


async def test_a_labelled_column_is_found_by_the_column_as_well(database: Database) -> None:
    await make_table(database)
    await database.execute(table.insert().values(id=1, name="x", n=2))
    label = table.c.name.label("title")
    query = sa.select(label, table.c.n.label("inner").label("outer"), table.c.id)

    (row,) = await database.fetch_all(query)
    (streamed,) = [one async for one in database.iterate(query)]

    for one in (row, streamed):
        assert [one[key] for key in (label, table.c.name, table.c.n, table.c.id)] == [
            "x",
            "x",
            2,
            1,
        ]
    assert await database.fetch_val(query, column=table.c.n) == 2


async def test_a_column_is_found_by_its_twin_in_another_table_object(database: Database) -> None:
    await make_table(database)
    await database.execute(table.insert().values(id=1, name="x"))
    twin = table.to_metadata(sa.MetaData())
    stranger = table.to_metadata(sa.MetaData(), schema="other")

    (row,) = await database.fetch_all(ALL)

    assert row[twin.c.name] == "x"
    with pytest.raises(KeyError):
        row[stranger.c.name]


async def test_a_column_that_was_not_selected_is_a_plain_key_error(database: Database) -> None:
    await make_table(database)
    await database.execute(table.insert().values(id=1))

    (row,) = await database.fetch_all(sa.select(table.c.id, sa.literal_column("1").label("one")))

    keys: list[Any] = [table.c.n, sa.func.max(table.c.n), sa.literal_column("1").label("two")]
    for key in keys:
        with pytest.raises(KeyError) as caught:
            row[key]
        assert type(caught.value) is KeyError


async def test_the_mapping_of_a_row_has_every_column_in_order(database: Database) -> None:
    text = "SELECT 1 AS id, 2 AS id, 3 AS n"

    (row,) = await database.fetch_all(text)
    (of_clause,) = await database.fetch_all(
        sa.select(sa.literal_column("1").label("id"), sa.literal_column("3").label("n"))
    )

    mapping = row._mapping
    assert isinstance(mapping, Mapping)
    assert (list(mapping), list(mapping.keys())) == (["id", "id", "n"], ["id", "id", "n"])
    assert list(mapping.values()) == [1, 2, 3]
    assert list(mapping.items()) == [("id", 1), ("id", 2), ("n", 3)]
    assert (len(mapping), mapping["id"], mapping.get("no", 9)) == (3, 2, 9)
    assert ("n" in mapping, "no" in mapping, 1 in mapping.values()) == (True, False, True)
    assert {**of_clause._mapping} == dict(**of_clause._mapping) == {"id": 1, "n": 3}
    assert of_clause._mapping == {"id": 1, "n": 3} == pickle.loads(pickle.dumps(of_clause._mapping))
    with pytest.raises(TypeError):
        mapping["id"] = 5  # type: ignore[index]


async def test_many_rows_may_have_other_names_each(database: Database) -> None:
    await make_table(database)
    rows: list[dict[str, Any]] = [
        {"id": 1, "name": "a"},
        {"id": 2, "name": "b"},
        {"id": 3, "n": 3},
        {"n": 4, "id": 4},
    ]

    inserted = await database.execute_many(table.insert(), rows)
    changes: list[dict[str, Any]] = [{"name": "first"}, {"n": 7}, {"name": "last"}]
    await database.execute_many(table.update().where(table.c.id < 3), changes)

    assert inserted in (4, None)  # where the driver can tell
    assert await seen(database) == [
        (1, "last", 7),
        (2, "last", 7),
        (3, "by default", 3),
        (4, "by default", 4),
    ]


async def test_many_rows_with_other_names_each_are_all_or_nothing(database: Database) -> None:
    await make_table(database)

    with pytest.raises(Exception, match=r"(?i)unique"):
        await database.execute_many(table.insert(), [{"id": 1}, {"id": 2, "n": 1}, {"id": 1}])

    assert await seen(database) == []


async def test_one_of_many_rows_is_counted_and_not_its_key(database: Database) -> None:
    await make_table(database)

    assert await database.execute_many(table.insert(), [{"id": 7}]) in (1, None)


async def test_values_may_be_sql(database: Database) -> None:
    await make_table(database)
    lower = sa.func.lower("LOWER")

    await database.execute(table.insert(), {"id": 1, "name": lower, "n": 1})
    await database.execute_many(
        table.insert(), [{"id": 2, "name": "two"}, {"id": 3, "name": lower}, {"id": 4}]
    )
    await database.execute(table.update().where(table.c.id == 1), {"n": table.c.n + 1})

    assert await seen(database) == [
        (1, "lower", 2),
        (2, "two", None),
        (3, "lower", None),
        (4, "by default", None),
    ]


def test_a_row_has_names_places_and_slices_and_says_what_it_has_not() -> None:
    row: Any = TupleRecord(RecordKeys(("a", "b")), (1, "x"))
    assert (row["b"], row[1], row[-1], row[:1], row[0:2]) == ("x", "x", "x", (1,), (1, "x"))
    assert ("a" in row, "c" in row, 0 in row) == (True, False, False)
    assert (row.get("a"), row.get("c", 5), row.get(0)) == (1, 5, None)
    for place in (2, -3):
        with pytest.raises(IndexError):
            row[place]
    unknown: list[Any] = [None, sa.column("c")]
    for key in unknown:
        with pytest.raises(KeyError):
            row[key]
    with pytest.raises(KeyError, match="c") as caught:
        row["c"]
    assert "it has ['a', 'b']" in caught.value.__notes__[0]


@pytest.mark.parametrize("query", ["text", "clause", "session", "stream"])
async def test_an_idle_connection_keeps_no_rows(any_database: Database, query: str) -> None:
    database = any_database
    rows = (
        "SELECT seq FROM seq_1000_to_6000"  # MariaDB ends a recursion after 1,000 rows
        if database.url.dialect == "mysql"
        else "WITH RECURSIVE numbers(n) AS (SELECT 1000 UNION ALL SELECT n + 1 FROM numbers WHERE n < 6000) "
        "SELECT n FROM numbers"
    )

    async def ask() -> None:
        if query == "text":
            assert len(await database.fetch_all(rows)) == 5001
        elif query == "clause":
            assert len(await database.fetch_all(sa.text(rows))) == 5001
        elif query == "session":
            async with database.session() as session:
                assert len((await session.execute(sa.text(rows))).all()) == 5001
        else:
            assert len([row async for row in database.iterate(rows)]) == 5001

    await ask()
    await database.fetch_val("SELECT 1")
    gc.collect()
    before = sys.getallocatedblocks()
    await ask()
    gc.collect()
    assert sys.getallocatedblocks() - before < 5000
    await database.disconnect()
