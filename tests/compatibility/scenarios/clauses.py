# ruff: noqa: SLF001 (`_mapping` is public: it is SQLAlchemy's name)
"""Queries as SQLAlchemy Core clauses, and what `execute` gives back for each kind of statement."""

from __future__ import annotations

import importlib
from typing import Any

import sqlalchemy as sa

from tests.compatibility.scenarios.tables import keyless, notes, pairs, people, with_keys, words
from tests.compatibility.world import World, attempt, only, rows_of

THREE = [
    {"text": "example1", "completed": True},
    {"text": "example2", "completed": False},
    {"text": "example3", "completed": True},
]
ALL = notes.select().order_by(notes.c.id)


def _insert(world: World, table: sa.Table) -> Any:
    """The dialect's own insert, which has on_conflict."""
    return importlib.import_module(f"sqlalchemy.dialects.{world.dialect}").insert(table)


async def insert_with_values_inside_and_beside(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(notes.insert().values(text="inside", completed=True))
        await database.execute(notes.insert(), {"text": "beside", "completed": False})
        await database.execute(query=notes.insert(), values={"text": "named"})
        await database.execute(notes.insert().values(text="kept"), {"completed": True})
        await database.execute(notes.insert().values(text="lost"), {"text": "won"})
        return await rows_of(database, ALL)


async def insert_many_mappings(world: World) -> Any:
    async with world.database(notes) as database:
        outcome = await database.execute_many(notes.insert(), THREE)
        return outcome, await rows_of(database, ALL)


async def insert_many_with_other_keys_per_row(world: World) -> Any:
    async with world.database(notes) as database:
        rows = [{"text": "a", "completed": True}, {"text": "b"}, {"completed": False}]
        await database.execute_many(notes.insert(), rows)
        return await rows_of(database, ALL)


async def insert_many_with_other_keys_per_row_fails_half_way(world: World) -> Any:
    async with world.database(notes) as database:
        rows = [{"id": 1, "text": "a"}, {"id": 2}, {"id": 1, "text": "c"}]
        outcome = await attempt(database.execute_many(notes.insert(), rows))
        return outcome, [row.id for row in await database.fetch_all(ALL)]


async def update_many_with_other_keys_per_row(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        rows = [{"text": "first"}, {"completed": None}, {"text": "last"}]
        await database.execute_many(notes.update().where(notes.c.id > 1), rows)
        return await rows_of(database, ALL)


async def insert_and_update_with_sql_among_the_values(world: World) -> Any:
    async with world.database(notes) as database:
        lower = sa.func.lower("LOWER")
        await database.execute(notes.insert(), {"text": lower, "completed": True})
        await database.execute_many(notes.insert(), [{"text": "two"}, {"text": lower}])
        where = notes.update().where(notes.c.id == 2)
        await database.execute(where, {"text": notes.c.text + "!", "completed": sa.null()})
        return await rows_of(database, ALL)


async def insert_many_fails_half_way(world: World) -> Any:
    async with world.database(notes) as database:
        rows = [{"id": n} for n in (1, 2, 1, 3)]
        outcome = await attempt(database.execute_many(notes.insert(), rows))
        return outcome, [row.id for row in await database.fetch_all(ALL)]


async def insert_many_rows_in_one_statement(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(notes.insert().values(THREE))
        return await rows_of(database, ALL)


async def update_with_values_inside_and_beside(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        await database.execute(notes.update().where(notes.c.id == 1).values(text="one"))
        await database.execute(notes.update().where(notes.c.id == 2), {"text": "two"})
        await database.execute(
            notes.update().where(notes.c.id == 3).values(text=notes.c.text + "!")
        )
        return await rows_of(database, ALL)


async def update_many_mappings_hits_every_row_each_time(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        update = notes.update().where(notes.c.id > 1)
        await database.execute_many(update, [{"text": "first"}, {"text": "last"}])
        return await rows_of(database, ALL)


async def delete_some_and_all(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        await database.execute(notes.delete().where(notes.c.id == 1))
        left = len(await database.fetch_all(ALL))
        await database.execute(notes.delete())
        return left, len(await database.fetch_all(ALL))


async def select_in_the_ways_of_fetching(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        one = notes.select().where(notes.c.id == 2)
        return (
            [dict(row) for row in await database.fetch_all(query=ALL)],
            dict(await database.fetch_one(query=one)),
            await database.fetch_val(query=one),
            await database.fetch_val(one, column=1),
            await database.fetch_val(one, column="text"),
            await database.fetch_val(sa.select(notes.c.text).where(notes.c.id == 9)),
            await database.fetch_one(notes.select().where(notes.c.id == 9)),
            [dict(row) async for row in database.iterate(query=ALL)],
        )


async def select_a_column_by_the_column_itself(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        return await database.fetch_val(ALL, column=notes.c.text)


async def select_with_values_beside(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        query = notes.select().where(notes.c.id == sa.bindparam("wanted"))
        return await attempt(database.fetch_val(query, {"wanted": 2}))


async def select_with_bound_parameters(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        query = notes.select().where(notes.c.id == sa.bindparam("wanted")).params(wanted=2)
        return await database.fetch_val(query, column="text")


async def select_with_a_parameter_that_has_no_value(world: World) -> Any:
    async with world.database(notes) as database:
        query = notes.select().where(notes.c.id == sa.bindparam("wanted"))
        return await attempt(database.fetch_val(query))


async def select_in_a_list_and_in_no_list(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        return [
            [row.id for row in await database.fetch_all(ALL.where(where))]
            for where in (
                notes.c.id.in_([2, 3, 9]),
                notes.c.id.in_([]),
                notes.c.text.notin_(["example1"]),
                sa.tuple_(notes.c.id, notes.c.text).in_([(1, "example1")]),
            )
        ]


async def select_joins_labels_and_aggregates(world: World) -> Any:
    async with world.database(notes, people) as database:
        await database.execute_many(notes.insert(), THREE)
        rows = [{"email": f"{n}@x", "note_id": 1 + n % 2, "age": n} for n in range(4)]
        await database.execute_many(people.insert(), rows)
        count = sa.func.count(people.c.id).label("readers")
        query = (
            sa.select(notes.c.text.label("title"), count, sa.func.max(people.c.age))
            .select_from(notes.outerjoin(people, people.c.note_id == notes.c.id))
            .group_by(notes.c.text)
            .order_by(notes.c.text)
        )
        found = await database.fetch_all(query)
        return [(row["title"], row.readers, row[2], list(row.keys())) for row in found]


async def select_from_subqueries_unions_and_ctes(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        inner = sa.select(notes.c.id, notes.c.text).where(notes.c.completed).subquery("inner_notes")
        cte = sa.select(sa.func.max(notes.c.id).label("top")).cte("c")
        union = sa.union_all(sa.select(notes.c.id), sa.select(notes.c.id + 10)).order_by("id")
        return (
            await rows_of(database, sa.select(inner).order_by(inner.c.id)),
            await database.fetch_val(sa.select(cte.c.top)),
            [row.id for row in await database.fetch_all(union)],
            await database.fetch_val(sa.select(sa.exists().where(notes.c.id == 1))),
            await database.fetch_val(sa.select(sa.case((notes.c.id == 1, "one"), else_="more"))),
            await database.fetch_val(
                sa.select(notes.c.id).order_by(notes.c.id.desc()).limit(1).offset(1)
            ),
        )


async def select_functions_and_literals(world: World) -> Any:
    async with world.database() as database:
        return (
            await database.fetch_val(sa.select(sa.literal("x").label("y")), column="y"),
            await database.fetch_val(sa.select(sa.func.lower("ABC"))),
            await database.fetch_val(sa.select(sa.null())),
            await database.fetch_val(sa.select(sa.cast(sa.literal_column("'5'"), sa.Integer) + 1)),
        )


async def select_a_number_that_is_bound(world: World) -> Any:
    async with world.database() as database:
        return await attempt(database.fetch_val(sa.select(sa.literal(5))))


@only("postgresql")
async def select_for_update(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        async with database.transaction():
            query = ALL.with_for_update(skip_locked=True).limit(1)
            return dict(await database.fetch_one(query))


async def text_clauses(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        clause = sa.text("SELECT id, text FROM notes WHERE id = :id")
        return (
            dict(await database.fetch_one(clause.bindparams(id=2))),
            await attempt(database.fetch_one(clause, {"id": 2})),
            await database.fetch_val(sa.text("SELECT count(*) FROM notes")),
        )


async def text_clauses_with_columns(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        clause = sa.text("SELECT id, text FROM notes ORDER BY id").columns(notes.c.id, notes.c.text)
        row = await database.fetch_one(clause)
        return row["text"], row[notes.c.text]


async def insert_from_select(world: World) -> Any:
    async with world.database(notes, keyless) as database:
        await database.execute_many(notes.insert(), THREE)
        await database.execute(keyless.insert().from_select(["x"], sa.select(notes.c.id)))
        return [row.x for row in await database.fetch_all(keyless.select().order_by("x"))]


async def ddl_clauses(world: World) -> Any:
    async with world.database() as database:
        seen = [await database.execute(sa.schema.CreateTable(notes))]
        seen.append(await database.execute(sa.schema.CreateTable(notes, if_not_exists=True)))
        index = sa.Index(
            "notes_text", sa.Table(*("notes", sa.MetaData()), sa.Column("text")).c.text
        )
        seen.append(await database.execute(sa.schema.CreateIndex(index)))
        seen.append(await database.execute(sa.schema.DropTable(notes)))
        return len(seen), await attempt(database.fetch_all("SELECT * FROM notes"))


async def ddl_compiled_to_text_as_the_documentation_has_it(world: World) -> Any:
    dialect = importlib.import_module(f"sqlalchemy.dialects.{world.dialect}").dialect()
    async with world.database() as database:
        for table in (notes, people):
            schema = sa.schema.CreateTable(table, if_not_exists=True)
            await database.execute(query=str(schema.compile(dialect=dialect)))
        return await database.fetch_val(sa.select(sa.func.count()).select_from(people))


async def ddl_in_a_transaction_is_rolled_back(world: World) -> Any:
    async with world.database() as database:
        async with database.transaction(force_rollback=True):
            await database.execute(sa.schema.CreateTable(notes))
            await database.execute(notes.insert(), THREE[0])
        return await attempt(database.fetch_all(ALL))


async def execute_gives_the_key_of_an_insert(world: World) -> Any:
    async with world.database(notes) as database:
        return (
            await database.execute(notes.insert().values(text="a")),
            await database.execute(notes.insert(), {"text": "b"}),
            await database.execute(notes.insert().values(id=7, text="c")),
            await database.execute(notes.insert().values(text=sa.func.lower("D"), id=8)),
        )


async def execute_gives_the_key_of_an_insert_without_values(world: World) -> Any:
    async with world.database(notes) as database:
        return await attempt(database.execute(notes.insert()))


async def execute_gives_for_an_insert_of_many_rows(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(notes.insert().values(text="before"))
        return await database.execute(notes.insert().values(THREE))


async def execute_gives_for_an_insert_as_text(world: World) -> Any:
    async with world.database(notes) as database:
        insert = "INSERT INTO notes (text) VALUES ('x')"
        return [await database.execute(insert) for _ in range(3)]


async def execute_gives_for_an_insert_as_text_with_returning(world: World) -> Any:
    async with world.database(notes) as database:
        return await database.execute("INSERT INTO notes (text) VALUES ('x') RETURNING id, text")


async def execute_gives_the_first_column_of_returning(world: World) -> Any:
    async with world.database(notes) as database:
        return await database.execute(
            notes.insert().values(text="x", completed=True).returning(notes.c.text, notes.c.id)
        )


async def execute_gives_for_a_composite_key(world: World) -> Any:
    async with world.database(pairs) as database:
        return await database.execute(pairs.insert().values(a=5, b=6, text="x"))


async def execute_gives_for_a_key_of_text(world: World) -> Any:
    async with world.database(words) as database:
        return await database.execute(words.insert().values(word="w", count=1))


async def execute_gives_for_a_key_by_default(world: World) -> Any:
    async with world.database(with_keys) as database:
        given = await attempt(database.execute(with_keys.insert().values(name="n")))
        return given, await database.fetch_val(with_keys.select())


async def execute_gives_for_an_insert_without_a_key(world: World) -> Any:
    async with world.database(keyless) as database:
        return await database.execute(keyless.insert().values(x=5))


async def execute_gives_for_update_and_delete(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        return (
            await database.execute(notes.update().values(text="x")),
            await database.execute("UPDATE notes SET text = 'y' WHERE id > 1"),
            await database.execute(notes.delete().where(notes.c.id == 1)),
            await database.execute("DELETE FROM notes WHERE id = 2"),
        )


async def execute_of_an_update_or_delete_gives_none_or_an_int(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        given = (
            await database.execute(notes.update().values(text="x")),
            await database.execute(notes.delete().where(notes.c.id == 1)),
            await database.execute("DELETE FROM notes"),
        )
        return all(one is None or isinstance(one, int) for one in given)


async def execute_gives_for_update_and_delete_of_no_row(world: World) -> Any:
    async with world.database(notes) as database:
        return (
            await database.execute(notes.update().values(text="x")),
            await database.execute(notes.delete()),
        )


async def execute_gives_for_update_after_insert_on_one_connection(world: World) -> Any:
    async with world.database(notes) as database, database.connection() as connection:
        await connection.execute(notes.insert().values(id=41, text="x"))
        return await connection.execute(notes.update().values(text="y"))


async def execute_gives_for_update_and_delete_with_returning(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        one = notes.c.id == 1
        return (
            await database.execute(
                notes.update().where(one).values(text="x").returning(notes.c.text)
            ),
            await database.execute(notes.delete().where(one).returning(notes.c.text)),
            await database.execute(notes.delete().where(one).returning(notes.c.text)),
        )


async def execute_gives_for_a_select(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(notes.insert().values(text="x"))
        return (
            await database.execute(sa.select(notes.c.text)),
            await database.execute("SELECT text FROM notes"),
        )


async def execute_gives_for_ddl(world: World) -> Any:
    async with world.database() as database:
        return (
            await database.execute("CREATE TABLE t (x INTEGER)"),
            await database.execute(sa.schema.CreateTable(notes)),
        )


async def fetch_one_of_an_insert_with_returning(world: World) -> Any:
    async with world.database(notes) as database:
        query = notes.insert().values(text="x").returning(notes)
        row = await database.fetch_one(query)
        values = await database.fetch_val(query, column="text")
        rows = await database.fetch_all(notes.update().values(text="y").returning(notes.c.id))
        return dict(row), values, [row.id for row in rows]


async def fetch_one_of_an_insert_as_text_with_returning(world: World) -> Any:
    async with world.database(notes) as database:
        query = "INSERT INTO notes (text) VALUES (:text) RETURNING id, text"
        return dict(await database.fetch_one(query, {"text": "x"})), len(
            await database.fetch_all(ALL)
        )


async def on_conflict_do_nothing(world: World) -> Any:
    async with world.database(words) as database:
        query = _insert(world, words).on_conflict_do_nothing(index_elements=["word"])
        await database.execute(query.values(word="w", count=1))
        await database.execute(query.values(word="w", count=2))
        await database.execute(query, {"word": "v", "count": 3})
        await database.execute_many(query, [{"word": "v", "count": 4}, {"word": "u", "count": 5}])
        return await rows_of(database, words.select().order_by("count"))


async def on_conflict_do_update(world: World) -> Any:
    async with world.database(words) as database:
        insert = _insert(world, words)
        query = insert.on_conflict_do_update(
            index_elements=[words.c.word], set_={"count": words.c.count + insert.excluded.count}
        )
        await database.execute(query.values(word="w", count=1))
        await database.execute(query.values([{"word": "w", "count": 2}]))
        await database.execute_many(query, [{"word": "w", "count": 4}])
        return await rows_of(database, words.select())


async def execute_gives_for_on_conflict_do_nothing(world: World) -> Any:
    async with world.database(notes) as database:
        query = _insert(world, notes).on_conflict_do_nothing().values(id=5, text="w")
        return await database.execute(query), await database.execute(query)


async def execute_gives_for_on_conflict_with_returning(world: World) -> Any:
    async with world.database(words) as database:
        query = _insert(world, words).values(word="w", count=1)
        update = query.on_conflict_do_update(index_elements=["word"], set_={"count": 9})
        nothing = query.on_conflict_do_nothing().returning(words.c.count)
        return (
            await database.execute(update.returning(words.c.count)),
            await database.execute(update.returning(words.c.count)),
            await database.execute(nothing),
        )


async def idioms_of_sqlalchemy_two_that_1_4_has_too(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute_many(notes.insert(), THREE)
        first = notes.select().where(notes.c.id == 1)
        return (
            await rows_of(
                database, sa.select(notes).where(sa.and_(notes.c.id > 0, notes.c.id < 2))
            ),
            await rows_of(database, sa.select(notes.c.id, notes.c.text).filter_by(id=2)),
            dict((await database.fetch_one(first))._mapping),
            await database.fetch_val(sa.select(sa.func.count()).select_from(notes)),
            await database.fetch_val(sa.select(notes.c.text).where(notes.c.completed.is_(False))),
        )


async def idioms_of_sqlalchemy_1_3_are_gone(world: World) -> Any:
    select: Any = sa.select
    case: Any = sa.case
    table: Any = notes
    return [
        type(error).__name__
        for use in (
            lambda: select([notes.c.id]),
            lambda: case([(notes.c.id == 1, 1)]),
            lambda: table.select(whereclause=notes.c.id == 1),
            lambda: table.insert(values={"text": "x"}),
            lambda: select(notes.c.id).execute(),
        )
        if (error := _error_of(use)) is not None
    ]


def _error_of(use: Any) -> Exception | None:
    try:
        use()
    except Exception as error:  # noqa: BLE001 (which one is the outcome)
        return error
    return None
