# ruff: noqa: SLF001 (`_mapping` is public: it is SQLAlchemy's name)
"""Rows: what can be done with what `fetch_*` and `iterate` give."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tests.compatibility.scenarios.tables import Colour, notes, one_column, people
from tests.compatibility.world import World, attempt_call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TEXT = "SELECT id, text, completed FROM notes"


@asynccontextmanager
async def _rows(world: World) -> AsyncIterator[tuple[Any, Any]]:
    """One row, of a text and of a clause."""
    async with world.database(notes) as database:
        await database.execute(notes.insert().values(text="example", completed=True))
        yield await database.fetch_one(TEXT), await database.fetch_one(notes.select())


async def row_by_name_position_and_attribute(world: World) -> Any:
    async with _rows(world) as rows:
        return [(row["text"], row[1], row.text, row[-1] in (True, 1)) for row in rows[:1]]


async def row_of_a_clause_by_name_position_and_attribute(world: World) -> Any:
    async with _rows(world) as (_, row):
        return row["text"], row[1], row.text, row["completed"], row.completed, row[2]


async def row_of_a_clause_by_a_position_from_the_end(world: World) -> Any:
    async with _rows(world) as (_, row):
        return attempt_call(lambda: row[-1])


async def row_by_column(world: World) -> Any:
    async with _rows(world) as (_, row):
        return row[notes.c.text], row[notes.c.id], row[notes.c.completed]


async def row_of_a_text_by_column(world: World) -> Any:
    async with _rows(world) as (row, _):
        return attempt_call(lambda: row[notes.c.text])


async def row_by_slice(world: World) -> Any:
    async with _rows(world) as rows:
        return [attempt_call(lambda row=row: tuple(row[0:2])) for row in rows]


async def row_by_the_columns_of_two_tables_with_equal_names(world: World) -> Any:
    async with world.database(notes, people) as database:
        await database.execute(notes.insert().values(id=1, text="x"))
        await database.execute(people.insert().values(id=5, email="e", note_id=1))
        query = sa.select(notes, people).select_from(notes.join(people))
        row = await database.fetch_one(query)
        return row[notes.c.id], row[people.c.id], row[people.c.email], row[notes.c.text]


async def row_by_a_labelled_column(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(notes.insert().values(id=1, text="x"))
        label = notes.c.text.label("title")
        row = await database.fetch_one(sa.select(label, notes.c.id))
        return row["title"], row.title, row[0], row[notes.c.id]


async def row_by_the_column_behind_a_label(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(notes.insert().values(id=1, text="x"))
        query = sa.select(notes.c.text.label("title"), notes.c.id.label("number"))
        row = await database.fetch_one(query)
        streamed = [row[notes.c.text] async for row in database.iterate(query)]
        return row[notes.c.text], row[notes.c.id], streamed


async def row_by_the_label_itself(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(notes.insert().values(id=1, text="x"))
        label = notes.c.text.label("title")
        row = await database.fetch_one(sa.select(label))
        return attempt_call(lambda: row[label])


async def row_by_the_column_of_a_table_that_is_defined_twice(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(notes.insert().values(id=1, text="x"))
        again = notes.to_metadata(sa.MetaData())
        row = await database.fetch_one(notes.select())
        return row[again.c.text], row[again.c.id]


async def row_without_such_a_column(world: World) -> Any:
    async with _rows(world) as rows:
        return [
            (
                attempt_call(lambda row=row: row["missing"]),
                attempt_call(lambda row=row: row.missing),
                attempt_call(lambda row=row: row[9]),
                getattr(row, "missing", "by default"),
                hasattr(row, "missing"),
            )
            for row in rows[:1]
        ]


async def row_of_a_clause_without_such_a_column(world: World) -> Any:
    async with _rows(world) as (_, row):
        return (
            attempt_call(lambda: row["missing"]),
            attempt_call(lambda: row[people.c.email]),
            getattr(row, "missing", "by default"),
        )


async def row_of_a_clause_without_such_a_position(world: World) -> Any:
    async with _rows(world) as (_, row):
        return attempt_call(lambda: row[9])


async def row_as_dict(world: World) -> Any:
    async with _rows(world) as rows:
        return [dict(row) for row in rows]


async def row_as_keyword_arguments(world: World) -> Any:
    async with _rows(world) as rows:
        return [dict(**row) for row in rows], {**rows[1], "more": 1}


async def row_mapping(world: World) -> Any:
    async with _rows(world) as rows:
        return [
            (
                dict(row._mapping),
                row._mapping["text"],
                list(row._mapping.keys()),
                len(row._mapping),
            )
            for row in rows
        ]


async def row_mapping_get(world: World) -> Any:
    async with _rows(world) as rows:
        return [attempt_call(lambda row=row: row._mapping.get("missing", 5)) for row in rows]


async def row_mapping_contains_names(world: World) -> Any:
    async with _rows(world) as rows:
        return ["text" in row._mapping for row in rows], "missing" in rows[0]._mapping


async def row_mapping_as_keyword_arguments(world: World) -> Any:
    async with _rows(world) as rows:
        return [dict(**row._mapping) for row in rows]


async def row_keys_and_values(world: World) -> Any:
    async with _rows(world) as rows:
        return [(list(row.keys()), list(row.values())) for row in rows[1:]]


async def row_items(world: World) -> Any:
    async with _rows(world) as (_, row):
        return attempt_call(lambda: list(row.items()))


async def row_get(world: World) -> Any:
    async with _rows(world) as (_, row):
        return attempt_call(lambda: (row.get("text"), row.get("missing", 5)))


async def row_length(world: World) -> Any:
    async with _rows(world) as rows:
        return [len(row) for row in rows]


async def row_is_true(world: World) -> Any:
    async with _rows(world) as rows:
        return [bool(row) for row in rows]


async def row_iterates(world: World) -> Any:
    async with _rows(world) as rows:
        return [list(row) for row in rows]


async def row_unpacks(world: World) -> Any:
    async with _rows(world) as rows:
        number, text, completed = rows[1]
        return number, text, completed


async def row_contains(world: World) -> Any:
    async with _rows(world) as (_, row):
        return "text" in row, "example" in row, "missing" in row


async def row_equality(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(notes.insert().values(text="x"))
        one, two = [await database.fetch_one(notes.select()) for _ in range(2)]
        return one == two, one == dict(two), one == tuple(two._mapping.values())


async def row_equals_itself_and_can_be_compared(world: World) -> Any:
    async with _rows(world) as (_, row):
        same = row
        return row == same, row != same, row is None, row == 5, row in [row]


async def row_pickles(world: World) -> Any:
    async with _rows(world) as rows:
        return [attempt_call(lambda row=row: dict(pickle.loads(pickle.dumps(row)))) for row in rows]


async def row_copies(world: World) -> Any:
    async with _rows(world) as (_, row):
        return attempt_call(lambda: dict(copy.copy(row)))


async def row_hashes(world: World) -> Any:
    async with _rows(world) as (_, row):
        return attempt_call(lambda: isinstance(hash(row), int))


async def row_type(world: World) -> Any:
    async with _rows(world) as rows:
        return [type(row).__name__ for row in rows]


async def row_is_a_sequence_or_a_mapping(world: World) -> Any:
    async with _rows(world) as (_, row):
        return isinstance(row, Sequence), isinstance(row, Mapping)


async def row_is_read_only(world: World) -> Any:
    def set_item(row: Any) -> None:
        row["text"] = "y"

    async with _rows(world) as (_, row):
        return attempt_call(set_item, row)


async def row_becomes_json_as_a_dict(world: World) -> Any:
    async with _rows(world) as (_, row):
        return json.loads(json.dumps(dict(row))), json.loads(json.dumps(dict(row._mapping)))


async def row_sorts_by_a_column(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(notes.insert().values([{"text": "b"}, {"text": "a"}]))
        rows = await database.fetch_all(notes.select())
        return [row["text"] for row in sorted(rows, key=lambda row: row["text"])]


async def row_with_duplicate_names_has_each_value(world: World) -> Any:
    async with world.database() as database:
        row = await database.fetch_one("SELECT 1 AS id, 2 AS id")
        return row[0], row[1], len(row)


async def row_with_duplicate_names_has_them_in_its_mapping(world: World) -> Any:
    async with world.database() as database:
        row = await database.fetch_one("SELECT 1 AS id, 2 AS id")
        return list(row._mapping.keys()), list(row._mapping.values())


async def row_with_duplicate_names_by_name(world: World) -> Any:
    async with world.database() as database:
        row = await database.fetch_one("SELECT 1 AS id, 2 AS id")
        return attempt_call(lambda: row["id"]), attempt_call(lambda: dict(row))


async def row_with_duplicate_columns_of_a_clause_by_name(world: World) -> Any:
    async with world.database(notes, people) as database:
        await database.execute(notes.insert().values(id=1, text="x"))
        await database.execute(people.insert().values(id=5, email="e", note_id=1))
        query = sa.select(notes, people).select_from(notes.join(people))
        row = await database.fetch_one(query)
        return attempt_call(lambda: row["id"]), attempt_call(lambda: row.id)


async def row_with_columns_called_like_methods(world: World) -> Any:
    async with world.database() as database:
        row = await database.fetch_one('SELECT 1 AS "keys", 2 AS "count", 3 AS "index"')
        return row["keys"], row["count"], row["index"], callable(row.keys)


async def row_with_columns_called_like_methods_by_attribute(world: World) -> Any:
    async with world.database() as database:
        row = await database.fetch_one(
            'SELECT 2 AS "count", 3 AS "index", 4 AS "items", 5 AS "get"'
        )
        return [
            value if isinstance(value := getattr(row, name), int) else "a method"
            for name in ("count", "index", "items", "get")
        ]


async def row_with_columns_without_a_name(world: World) -> Any:
    async with world.database() as database:
        row = await database.fetch_one(sa.select(sa.func.lower("A"), sa.func.upper("b")))
        return row[0], row[1], len(row)


async def row_with_names_in_capitals(world: World) -> Any:
    async with world.database() as database:
        row = await database.fetch_one('SELECT 1 AS "Mixed Case", 2 AS plain')
        return row["Mixed Case"], row.plain, list(row.keys())


async def row_in_the_prefix_style_of_use_labels(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(notes.insert().values(text="x"))
        query = notes.select().set_label_style(sa.LABEL_STYLE_TABLENAME_PLUS_COL)
        row = await database.fetch_one(query)
        return list(row.keys()), row["notes_text"]


async def row_of_an_enum_is_decoded_alike_by_every_access(world: World) -> Any:
    table = one_column(sa.Enum(Colour, native_enum=False, length=10))
    async with world.database(table) as database:
        await database.execute(table.insert().values(x=Colour.RED))
        row = await database.fetch_one(table.select())
        return row["x"], row.x, row[1], row[table.c.x], dict(row)["x"], dict(**row)["x"]


async def row_of_json_is_decoded_alike_by_every_access(world: World) -> Any:
    table = one_column(sa.JSON)
    async with world.database(table) as database:
        await database.execute(table.insert().values(x={"a": [1]}))
        row = await database.fetch_one(table.select())
        return row["x"], row.x, row[1], row[table.c.x], dict(row)["x"], dict(**row)["x"]


async def row_of_json_is_decoded_in_its_mapping_and_values(world: World) -> Any:
    table = one_column(sa.JSON)
    async with world.database(table) as database:
        await database.execute(table.insert().values(x={"a": [1]}))
        row = await database.fetch_one(table.select())
        return row._mapping["x"], list(row.values())[1]


async def row_after_its_connection_is_gone(world: World) -> Any:
    async with _rows(world) as rows:
        kept = rows
    return [dict(row) for row in kept]
