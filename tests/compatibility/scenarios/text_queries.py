"""Queries as text, with ``:name`` parameters."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.compatibility.scenarios.tables import notes
from tests.compatibility.world import World, attempt, only, rows_of

INSERT = "INSERT INTO notes(text, completed) VALUES (:text, :completed)"
SELECT = "SELECT * FROM notes ORDER BY id"
THREE = [
    {"text": "example1", "completed": True},
    {"text": "example2", "completed": False},
    {"text": "example3", "completed": None},
]


async def execute_with_values_by_position_and_by_keyword(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(INSERT, THREE[0])
        await database.execute(query=INSERT, values=THREE[1])
        return await rows_of(database, SELECT)


async def execute_many_by_position_and_by_keyword(world: World) -> Any:
    async with world.database(notes) as database:
        seen = [await database.execute_many(INSERT, THREE[:1])]
        seen.append(await database.execute_many(query=INSERT, values=THREE[1:]))
        return seen, await rows_of(database, SELECT)


async def execute_many_with_no_rows_at_all(world: World) -> Any:
    async with world.database(notes) as database:
        return await attempt(database.execute_many(INSERT, [])), await rows_of(database, SELECT)


async def execute_many_takes_any_sequence(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(INSERT, tuple(THREE))
        return len(await database.fetch_all(SELECT))


async def execute_many_takes_a_generator(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(INSERT, (row for row in THREE))
        return len(await database.fetch_all(SELECT))


async def execute_many_updates_and_deletes(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(INSERT, THREE)
        await database.execute_many(
            "UPDATE notes SET text = :text WHERE id = :id",
            [{"id": 1, "text": "one"}, {"id": 2, "text": "two"}],
        )
        await database.execute_many("DELETE FROM notes WHERE id = :id", [{"id": 1}, {"id": 9}])
        return await rows_of(database, SELECT)


async def execute_many_that_fails_half_way(world: World) -> Any:
    async with world.database(notes) as database:
        insert = "INSERT INTO notes(id, text) VALUES (:id, :text)"
        rows = [{"id": n, "text": "x"} for n in (1, 2, 1, 3)]
        outcome = await attempt(database.execute_many(insert, rows))
        return outcome, [row["id"] for row in await database.fetch_all(SELECT)]


async def fetch_all_gives_a_list(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(INSERT, THREE)
        rows = await database.fetch_all(query=SELECT)
        none = await database.fetch_all("SELECT * FROM notes WHERE id > :id", {"id": 10})
        return type(rows).__name__, [dict(row) for row in rows], none


async def fetch_one_gives_the_first_row_or_none(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(INSERT, THREE)
        query = "SELECT text FROM notes WHERE id >= :id ORDER BY id"
        row = await database.fetch_one(query=query, values={"id": 2})
        return dict(row), await database.fetch_one(query, {"id": 9})


async def fetch_val_gives_a_column_of_the_first_row(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(INSERT, THREE)
        return (
            await database.fetch_val(query=SELECT),
            await database.fetch_val(SELECT, column=1),
            await database.fetch_val(SELECT, None, "text"),
            await database.fetch_val("SELECT text FROM notes WHERE id = :id", {"id": 2}),
            await database.fetch_val("SELECT text FROM notes WHERE id = 9"),
            await database.fetch_val("SELECT completed FROM notes WHERE id = 3"),
            await database.fetch_val("SELECT 0"),
        )


async def fetch_val_of_a_column_that_is_not_there(world: World) -> Any:
    async with world.database() as database:
        return (
            await attempt(database.fetch_val("SELECT 1 AS a", column="b")),
            await attempt(database.fetch_val("SELECT 1 AS a", column=5)),
        )


async def iterate_gives_every_row(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(INSERT, THREE)
        query = "SELECT * FROM notes WHERE id > :id ORDER BY id"
        return (
            [dict(row) async for row in database.iterate(query=SELECT)],
            [row.text async for row in database.iterate(query, {"id": 1})],
            [row.text async for row in database.iterate(query=query, values={"id": 2})],
        )


async def iterate_over_values_without_a_table(world: World) -> Any:
    async with world.database() as database:
        query = "SELECT * FROM (VALUES (1), (2), (3), (4), (5)) AS t"
        return [row[0] async for row in database.iterate(query)]


async def iterate_left_early(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(INSERT, THREE)
        stream = database.iterate(SELECT)
        first = (await stream.__anext__())["text"]
        await stream.aclose()
        return first, await database.fetch_val("SELECT count(*) FROM notes")


async def iterate_and_write_at_once(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(INSERT, THREE)
        async with asyncio.timeout(2), database.transaction():
            async for row in database.iterate(SELECT):
                await database.execute(
                    "UPDATE notes SET text = :text WHERE id = :id",
                    {"text": row["text"] + "!", "id": row["id"]},
                )
        return [row.text for row in await database.fetch_all(SELECT)]


async def iterate_and_fetch_at_once(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(INSERT, THREE)
        query = "SELECT text FROM notes WHERE id = :id"

        async def both() -> Any:
            return [
                (row.id, await database.fetch_val(query, {"id": row.id}))
                async for row in database.iterate(SELECT)
            ]

        return await attempt(both(), timeout=2)


async def iterate_of_a_query_that_fails(world: World) -> Any:
    async with world.database() as database:

        async def read() -> list[Any]:
            return [row async for row in database.iterate("SELECT * FROM missing")]

        return await attempt(read()), await database.fetch_val("SELECT 1")


async def one_parameter_several_times_and_in_any_order(world: World) -> Any:
    async with world.database() as database:
        query = "SELECT CAST(:z AS int) + CAST(:a AS int) * CAST(:z AS int) AS n"
        return await database.fetch_val(query, {"a": 3, "z": 2})


async def a_parameter_of_null(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(INSERT, {"text": None, "completed": None})
        return await rows_of(database, SELECT)


async def a_parameter_without_a_value(world: World) -> Any:
    async with world.database(notes) as database:
        return [
            await attempt(database.execute(INSERT, {"text": "x"})),
            await attempt(database.execute(INSERT)),
        ]


async def a_value_without_a_parameter(world: World) -> Any:
    async with world.database() as database:
        return await attempt(database.fetch_val("SELECT 1", {"x": 1}))


async def values_that_are_empty(world: World) -> Any:
    async with world.database() as database:
        return await database.fetch_val("SELECT 1", {}), await database.fetch_val("SELECT 1", None)


async def values_that_are_no_mapping(world: World) -> Any:
    async with world.database(notes) as database:
        return [
            await attempt(database.execute(INSERT, [("text", "x")])),
            await attempt(database.execute(INSERT, ("x", True))),
        ]


async def percent_signs_are_text(world: World) -> Any:
    async with world.database() as database:
        return (
            await attempt(database.fetch_val("SELECT '100%'")),
            await attempt(database.fetch_val("SELECT 'a' LIKE '%a%'")) in (True, 1),
            await attempt(database.fetch_val("SELECT '50%' || CAST(:x AS text)", {"x": "%s"})),
        )


async def question_marks_are_text(world: World) -> Any:
    async with world.database() as database:
        return (
            await database.fetch_val("SELECT 'why?'"),
            await database.fetch_val("SELECT '?' || CAST(:x AS text)", {"x": "?"}),
        )


async def colons_that_are_no_parameters(world: World) -> Any:
    async with world.database() as database:
        return (
            await database.fetch_val("SELECT 'at 12:30'"),
            await database.fetch_val(r"SELECT 'a \:b'"),
        )


async def comments_in_a_query(world: World) -> Any:
    async with world.database() as database:
        return await database.fetch_val("-- the answer\nSELECT /* not 41 */ 42")


@only("postgresql")
async def casts_of_postgresql(world: World) -> Any:
    async with world.database() as database:
        return (
            await database.fetch_val("SELECT '5'::int"),
            await database.fetch_val("SELECT (:x)::int + 1", {"x": 1}),
        )


@only("postgresql")
async def casts_of_postgresql_right_behind_a_parameter(world: World) -> Any:
    async with world.database() as database:
        return await attempt(database.fetch_val("SELECT :x::text", {"x": "y"}))


@only("postgresql")
async def operators_of_postgresql(world: World) -> Any:
    async with world.database() as database:
        return (
            await database.fetch_val("""SELECT '{"a": 1}'::jsonb ? 'a'"""),
            await database.fetch_val("""SELECT '{"a": 1}'::jsonb @> '{"a": 1}'"""),
            await database.fetch_val("""SELECT '{"a": 1}'::jsonb ->> 'a'"""),
            await database.fetch_val("SELECT 2 = ANY(:ids)", {"ids": [1, 2]}),
            await database.fetch_val("SELECT (ARRAY[1, 2, 3])[1\\:2]"),
        )


@only("postgresql")
async def a_value_of_another_type_than_the_column(world: World) -> Any:
    async with world.database(notes) as database:
        query = "SELECT * FROM notes WHERE id = :id"
        return await attempt(database.fetch_all(query, {"id": "1"}))


async def several_statements_in_one_text(world: World) -> Any:
    async with world.database() as database:
        return await attempt(database.execute("SELECT 1; SELECT 2"))


async def a_semicolon_at_the_end(world: World) -> Any:
    async with world.database() as database:
        return await database.fetch_val("SELECT 1;")


@only("postgresql")
async def a_temporary_table_between_two_calls(world: World) -> Any:
    async with world.database() as database:
        await database.execute("CREATE TEMPORARY TABLE scratch (num INTEGER)")
        return await attempt(database.fetch_val("SELECT count(*) FROM scratch"))


@only("postgresql")
async def parameters_whose_names_sort_otherwise(world: World) -> Any:
    async with world.database() as database:
        query = (
            "SELECT CAST(:b AS text) || CAST(:a AS text) || CAST(:c AS text) || CAST(:B AS text)"
        )
        return await database.fetch_val(query, {"a": "a", "b": "b", "c": "c", "B": "B"})


async def what_is_no_query(world: World) -> Any:
    async with world.database() as database:
        return [await attempt(database.fetch_all(query)) for query in (5, None, b"SELECT 1")]


async def a_connection_has_all_of_it_too(world: World) -> Any:
    async with world.database(notes) as database, database.connection() as connection:
        await connection.execute(query=INSERT, values=THREE[0])
        await connection.execute_many(query=INSERT, values=THREE[1:])
        query = "SELECT text FROM notes WHERE id = :id"
        return (
            [dict(row) for row in await connection.fetch_all(query=SELECT)],
            dict(await connection.fetch_one(query=query, values={"id": 1})),
            await connection.fetch_val(query=query, values={"id": 2}, column=0),
            [row.id async for row in connection.iterate(query=SELECT)],
        )
