"""Types of columns, in both directions, and defaults of columns."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from tests.compatibility.scenarios.tables import (
    Colour,
    DaysSinceEpoch,
    LocalTime,
    Shouted,
    notes,
    one_column,
    with_defaults,
)
from tests.compatibility.world import World, attempt, only, rows_of

UTC = datetime.UTC
MOMENT = datetime.datetime(2024, 5, 6, 7, 8, 9, 123456)
JSON = {"text": "hello", "boolean": True, "int": 1, "list": [1, None], "nested": {"ü": 1.5}}
NUMBER = uuid.UUID(int=5)


async def _there_and_back(world: World, kind: Any, *values: Any) -> Any:
    """Store values in a column of that type; give what comes back."""
    table = one_column(kind)
    async with world.database(table) as database:
        for value in values:
            await database.execute(table.insert(), {"x": value})
        rows = await database.fetch_all(table.select().order_by(table.c.id))
        await database.execute(sa.schema.DropTable(table))
        return [row["x"] for row in rows]


async def _found(world: World, kind: Any, value: Any) -> Any:
    """Store a value; look for it."""
    table = one_column(kind)
    async with world.database(table) as database:
        await database.execute(table.insert().values(x=value))
        found = await database.fetch_val(sa.select(table.c.id).where(table.c.x == value))
        await database.execute(sa.schema.DropTable(table))
        return found


async def texts(world: World) -> Any:
    return await _there_and_back(world, sa.String, "ü 'x' % :y ?", "", None)


async def integers(world: World) -> Any:
    return await _there_and_back(world, sa.BigInteger, 2**40, -1, 0, None)


async def floats(world: World) -> Any:
    return await _there_and_back(world, sa.Float, 1.5, -2.25, None)


async def booleans(world: World) -> Any:
    return await _there_and_back(world, sa.Boolean, True, False, None)  # noqa: FBT003


async def booleans_of_a_text(world: World) -> Any:
    async with world.database(notes) as database:
        await database.execute(notes.insert().values(completed=True))
        return await database.fetch_val("SELECT completed FROM notes")


async def bytes_there_and_back(world: World) -> Any:
    return await _there_and_back(world, sa.LargeBinary, b"\x00\xff", b"", None)


async def decimals(world: World) -> Any:
    return await _there_and_back(world, sa.Numeric(10, 2), decimal.Decimal("12.50"), None)


@only("postgresql")
async def decimals_of_many_digits(world: World) -> Any:
    return await _there_and_back(world, sa.Numeric(30, 20), decimal.Decimal("0.700000000000001"))


async def decimals_as_floats(world: World) -> Any:
    return await _there_and_back(world, sa.Numeric(10, 2, asdecimal=False), 12.5)


async def dates(world: World) -> Any:
    return await _there_and_back(world, sa.Date, MOMENT.date(), None)


async def times(world: World) -> Any:
    return await _there_and_back(world, sa.Time, MOMENT.time(), None)


async def datetimes(world: World) -> Any:
    return await _there_and_back(world, sa.DateTime, MOMENT, None)


@only("postgresql")
async def datetimes_with_a_zone(world: World) -> Any:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    moments = MOMENT.replace(tzinfo=UTC), MOMENT.replace(tzinfo=zone)
    return await _there_and_back(world, sa.DateTime(timezone=True), *moments)


@only("postgresql")
async def datetimes_with_a_zone_in_a_column_without(world: World) -> Any:
    return await attempt(_there_and_back(world, sa.DateTime, MOMENT.replace(tzinfo=UTC)))


@only("sqlite")
async def datetimes_of_a_text_in_sqlite(world: World) -> Any:
    table = one_column(sa.DateTime)
    async with world.database(table) as database:
        await database.execute(table.insert().values(x=MOMENT))
        return await database.fetch_val("SELECT x FROM typed")


async def intervals(world: World) -> Any:
    return await _there_and_back(world, sa.Interval, datetime.timedelta(days=1, seconds=2))


async def dates_are_found(world: World) -> Any:
    return await _found(world, sa.DateTime, MOMENT), await _found(world, sa.Date, MOMENT.date())


async def json(world: World) -> Any:
    values: tuple[Any, ...] = JSON, [1, 2], "text", 5, True, {}
    return await _there_and_back(world, sa.JSON, *values)


async def json_null(world: World) -> Any:
    table = one_column(sa.JSON)
    async with world.database(table) as database:
        for value in (None, sa.null(), sa.JSON.NULL):
            await database.execute(table.insert().values(x=value))
        query = "SELECT count(*) FROM typed WHERE x IS NULL"
        rows = await database.fetch_all(table.select())
        return [row["x"] for row in rows], await database.fetch_val(query)


async def json_by_its_parts(world: World) -> Any:
    table = one_column(sa.JSON)
    async with world.database(table) as database:
        await database.execute(table.insert().values(x=JSON))
        text = table.c.x["text"].as_string()
        where = table.select().where(table.c.x["int"].as_integer() == 1)
        return await database.fetch_val(sa.select(text)), len(await database.fetch_all(where))


async def json_by_fetch_val_and_iterate(world: World) -> Any:
    table = one_column(sa.JSON)
    async with world.database(table) as database:
        await database.execute_many(table.insert(), [{"x": JSON}])
        streamed = [row["x"] async for row in database.iterate(table.select())]
        return await database.fetch_val(sa.select(table.c.x)), streamed


async def json_of_a_text(world: World) -> Any:
    table = one_column(sa.JSON)
    async with world.database(table) as database:
        await database.execute(table.insert().values(x={"a": 1}))
        return await database.fetch_val("SELECT x FROM typed")


@only("postgresql")
async def json_as_a_parameter_of_a_text(world: World) -> Any:
    table = one_column(postgresql.JSONB)
    async with world.database(table) as database:
        insert = "INSERT INTO typed (x) VALUES (:x)"
        await attempt(database.execute(insert, {"x": '{"a": 1}'}))
        refused = await attempt(database.execute(insert, {"x": {"a": 1}}))
        return refused, await rows_of(database, "SELECT x ->> 'a' AS a FROM typed")


@only("postgresql")
async def jsonb(world: World) -> Any:
    table = one_column(postgresql.JSONB)
    async with world.database(table) as database:
        await database.execute(table.insert().values(x=JSON))
        contains = table.select().where(table.c.x.contains({"int": 1}))
        has_key = table.select().where(table.c.x.has_key("text"))
        row = await database.fetch_one(contains)
        await database.execute(table.update().values(x={"new": 1}))
        return (
            row["x"],
            len(await database.fetch_all(has_key)),
            await rows_of(database, table.select()),
        )


@only("postgresql")
async def arrays(world: World) -> Any:
    return (
        await _there_and_back(world, sa.ARRAY(sa.Integer), [1, 2], [], None),
        await _there_and_back(world, postgresql.ARRAY(sa.String), ["a", "b'"]),
        await _there_and_back(world, postgresql.ARRAY(sa.Integer, dimensions=2), [[1], [2]]),
    )


@only("postgresql")
async def arrays_in_conditions(world: World) -> Any:
    table = one_column(postgresql.ARRAY(sa.Integer))
    async with world.database(table) as database:
        await database.execute(table.insert().values(x=[1, 2, 3]))
        two = sa.literal(2, sa.Integer) == sa.any_(table.c.x)
        conditions = two, table.c.x.contains([1, 3]), table.c.x[1] == 1
        return [len(await database.fetch_all(table.select().where(one))) for one in conditions]


async def enums(world: World) -> Any:
    kind = sa.Enum(Colour, native_enum=False, length=10)
    return await _there_and_back(world, kind, Colour.RED, Colour.BLUE, None)


async def enums_by_value(world: World) -> Any:
    def values_of(colours: Any) -> list[str]:
        return [colour.value for colour in colours]

    kind = sa.Enum(Colour, native_enum=False, length=10, values_callable=values_of)
    return await _there_and_back(world, kind, Colour.RED)


async def enums_of_texts(world: World) -> Any:
    return await _there_and_back(world, sa.Enum("a", "b", native_enum=False, length=5), "a", None)


async def enums_are_found(world: World) -> Any:
    return await _found(world, sa.Enum(Colour, native_enum=False, length=10), Colour.BLUE)


async def enums_that_are_not_in_the_enum(world: World) -> Any:
    kind = sa.Enum(Colour, native_enum=False, length=10)
    return await attempt(_there_and_back(world, kind, "GREEN"))


@only("postgresql")
async def enums_of_the_server(world: World) -> Any:
    table = one_column(sa.Enum(Colour, name="colour"))
    async with world.database() as database:
        await database.execute("CREATE TYPE colour AS ENUM ('RED', 'BLUE')")
        await database.execute(sa.schema.CreateTable(table))
        await database.execute(table.insert().values(x=Colour.RED))
        await database.execute_many(table.insert(), [{"x": Colour.BLUE}])
        await database.execute(table.update().where(table.c.id == 1).values(x=Colour.BLUE))
        return [row["x"] for row in await database.fetch_all(table.select())], len(
            await database.fetch_all(table.select().where(table.c.x == Colour.BLUE))
        )


async def uuids(world: World) -> Any:
    values = await _there_and_back(world, sa.Uuid, NUMBER, None)
    return [str(value) for value in values], [isinstance(value, uuid.UUID) for value in values]


async def uuids_as_texts(world: World) -> Any:
    return await _there_and_back(world, sa.Uuid(as_uuid=False), str(NUMBER))


async def uuids_are_found(world: World) -> Any:
    return await _found(world, sa.Uuid, NUMBER)


@only("postgresql")
async def uuids_of_postgresql(world: World) -> Any:
    kind = postgresql.UUID(as_uuid=True)
    values = await _there_and_back(world, kind, NUMBER)
    return [str(value) for value in values], isinstance(values[0], uuid.UUID)


@only("postgresql")
async def uuids_of_postgresql_as_texts(world: World) -> Any:
    return await _there_and_back(world, postgresql.UUID(as_uuid=False), str(NUMBER))


@only("postgresql")
async def uuids_of_a_text_query(world: World) -> Any:
    table = one_column(postgresql.UUID(as_uuid=True))
    async with world.database(table) as database:
        await database.execute("INSERT INTO typed (x) VALUES (:x)", {"x": NUMBER})
        found = await database.fetch_val("SELECT x FROM typed WHERE x = :x", {"x": str(NUMBER)})
        return str(found), isinstance(found, uuid.UUID)


@only("postgresql")
async def ranges_and_addresses_of_postgresql(world: World) -> Any:
    async with world.database() as database:
        return (
            await database.fetch_val("SELECT CAST('127.0.0.1' AS inet)"),
            await database.fetch_val("SELECT int4range(1, 5)"),
            await database.fetch_val("SELECT ROW(1, 'x')"),
        )


async def decorated_types(world: World) -> Any:
    return (
        await _there_and_back(world, DaysSinceEpoch, MOMENT.date(), None),
        await _there_and_back(world, Shouted, "Hello"),
    )


async def decorated_types_are_found(world: World) -> Any:
    return await _found(world, DaysSinceEpoch, MOMENT.date()), await _found(world, Shouted, "HeLLo")


async def decorated_types_over_what_the_driver_decodes(world: World) -> Any:
    return await _there_and_back(world, LocalTime, "2024-05-06T07:08:09")


async def pickled_values(world: World) -> Any:
    return await attempt(_there_and_back(world, sa.PickleType, {"a": (1, 2)}))


async def null_of_every_type(world: World) -> Any:
    kinds = (sa.Integer, sa.Float, sa.Numeric, sa.DateTime, sa.Date, sa.Time, sa.Uuid, sa.String)
    return [await _there_and_back(world, kind, None) for kind in kinds]


async def functions_have_types(world: World) -> Any:
    table = one_column(sa.DateTime)
    async with world.database(table) as database:
        await database.execute(table.insert().values(x=MOMENT))
        latest = sa.func.max(table.c.x)
        return await database.fetch_val(sa.select(latest)), await database.fetch_val(
            sa.select(latest.label("latest")), column="latest"
        )


async def defaults_that_are_constants_and_callables(world: World) -> Any:
    async with world.database(with_defaults) as database:
        await database.execute(with_defaults.insert(), {"name": "n"})
        row = await database.fetch_one(with_defaults.select())
        return row["constant"], row["called"], row["changed"], row["name"]


async def defaults_of_the_server(world: World) -> Any:
    async with world.database(with_defaults) as database:
        await database.execute(with_defaults.insert().values(name="n"))
        return await database.fetch_val(sa.select(with_defaults.c.by_server))


async def defaults_in_sql(world: World) -> Any:
    async with world.database(with_defaults) as database:
        await database.execute(with_defaults.insert().values(name="n"))
        return await database.fetch_val(sa.select(with_defaults.c.in_sql))


async def defaults_that_ask_for_the_context(world: World) -> Any:
    async with world.database(with_defaults) as database:
        await database.execute(with_defaults.insert().values(name="n"))
        return await database.fetch_val(sa.select(with_defaults.c.from_context))


async def defaults_of_each_of_many_rows(world: World) -> Any:
    async with world.database(with_defaults) as database:
        await database.execute_many(with_defaults.insert(), [{"name": "a"}, {"name": "b"}])
        rows = await rows_of(database, with_defaults.select())
        return [row["called"] for row in rows], len({row["token"] for row in rows})


async def defaults_of_many_rows_in_one_statement(world: World) -> Any:
    async with world.database(with_defaults) as database:
        await database.execute(with_defaults.insert().values([{"name": "a"}, {"name": "b"}]))
        rows = await rows_of(database, with_defaults.select())
        return [(row["constant"], row["called"], row["by_server"]) for row in rows]


async def defaults_give_way_to_values(world: World) -> Any:
    async with world.database(with_defaults) as database:
        await database.execute(with_defaults.insert().values(constant="mine", called=None))
        return await rows_of(database, sa.select(with_defaults.c.constant, with_defaults.c.called))


async def onupdate_is_set_by_an_update(world: World) -> Any:
    async with world.database(with_defaults) as database:
        await database.execute(with_defaults.insert().values(name="n"))
        await database.execute(with_defaults.update().values(name="m"))
        changed = await database.fetch_val(sa.select(with_defaults.c.changed))
        await database.execute(with_defaults.update(), {"name": "m", "changed": "by hand"})
        return changed, await database.fetch_val(sa.select(with_defaults.c.changed))


async def onupdate_is_left_alone_by_a_text(world: World) -> Any:
    async with world.database(with_defaults) as database:
        await database.execute(with_defaults.insert().values(name="n", changed="new"))
        await database.execute("UPDATE with_defaults SET name = 'm'")
        return await database.fetch_val(sa.select(with_defaults.c.changed))
