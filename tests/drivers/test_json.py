"""JSON: encoded once and decoded once, by text, Core and model, by the codec that the user has said."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from loopsafe_db import Database
from loopsafe_db.errors import ConnectionLost
from loopsafe_db.testing import call_in_child
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

dumps = partial(json.dumps, default=str)
loads = partial(json.loads, parse_float=Decimal)
EITHER = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
DOCUMENTS = [{"n": 1}, [1, "two"], "text", '{"text": 1}', 3, True, None]
TYPE_OF = {
    "postgresql": "jsonb_typeof(body)",
    "sqlite": "json_type(body)",
    "mysql": "JSON_TYPE(body)",
}


class Base(DeclarativeBase):
    pass


class Document(Base):
    __tablename__ = "document"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    body: Mapped[Any] = mapped_column(EITHER)


BODY = Document.__table__.c.body


async def set_codecs(connection: Any) -> None:
    """Set codecs by `init`, as the page on URLs has it, that tell who encoded and who decoded."""
    for typename in ("json", "jsonb"):
        await connection.set_type_codec(
            typename, schema="pg_catalog", encoder=wrapped, decoder=unwrapped
        )


def wrapped(value: Any) -> str:
    return json.dumps({"mine": value}, default=str)


def unwrapped(text: str) -> Any:
    return json.loads(text)["mine"]


async def create(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


def with_options(database: Database, **options: Any) -> Database:
    return Database(database.url, scope=SCOPE, max_size=1, **options)


@pytest.fixture
async def asyncpg_database(postgres_url: str) -> AsyncIterator[Database]:
    database = Database(postgres_url, scope=SCOPE, max_size=1, init=set_codecs)
    yield database
    await database.disconnect()


async def stored_ways(database: Database, body: Any) -> list[Any]:
    """Store it by clause, by many, and by model; give what text, clause and model read of each."""
    await database.execute("DELETE FROM document")
    await database.execute(sa.insert(Document), {"id": 1, "body": body})
    await database.execute_many(sa.insert(Document), [{"id": n, "body": body} for n in (2, 3)])
    async with database.session.begin() as session:
        session.add(Document(id=4, body=body))
    read = [row[0] for row in await database.fetch_all(sa.select(BODY))]
    async with database.session() as session:
        read += list(await session.scalars(sa.select(Document.body)))
    return read


@pytest.mark.parametrize("body", [*DOCUMENTS, {"price": Decimal("1.5")}], ids=str)
async def test_a_codec_of_the_users_is_the_only_one(asyncpg_database: Database, body: Any) -> None:
    database = asyncpg_database
    await create(database)
    expected = json.loads(json.dumps(body, default=str))

    assert await stored_ways(database, body) == [expected] * 8
    await database.execute("INSERT INTO document VALUES (5, :body)", {"body": body or 0})
    rows = await database.fetch_all("SELECT body, body::json FROM document WHERE id < 5")
    assert [tuple(row) for row in rows] == [(expected, expected)] * 4
    assert (
        await database.fetch_val(
            "SELECT count(*) FROM document WHERE body::text LIKE '{\"mine\": %'"
        )
        == 5
    )


async def test_a_codec_of_a_connect_listener_is_the_only_one(postgres_url: str) -> None:
    database = Database(postgres_url, scope=SCOPE, max_size=1)

    @sa.event.listens_for(database.engine.sync_engine, "connect")
    def connected(adapted: Any, _record: object) -> None:
        adapted.run_async(set_codecs)

    await create(database)
    assert await stored_ways(database, {"price": Decimal("1.5")}) == [{"price": "1.5"}] * 8
    mine = "SELECT count(*) FROM document WHERE body::text LIKE '{\"mine\": %'"
    assert await database.fetch_val(mine) == 4
    await database.disconnect()


async def test_a_codec_of_the_users_has_lists_of_json_too(asyncpg_database: Database) -> None:
    lists = sa.table("lists", sa.column("it", postgresql.ARRAY(postgresql.JSONB)))
    await asyncpg_database.execute("CREATE TABLE lists (it jsonb[])")

    await asyncpg_database.execute(lists.insert(), {"it": [{"n": 1}, [2]]})

    assert await asyncpg_database.fetch_val(sa.select(lists.c.it)) == [{"n": 1}, [2]]
    assert await asyncpg_database.fetch_val("SELECT it FROM lists") == [{"n": 1}, [2]]


@pytest.mark.parametrize("functions", [{}, {"json_serializer": dumps, "json_deserializer": loads}])
@pytest.mark.parametrize("body", DOCUMENTS, ids=str)
async def test_json_is_encoded_once(database: Database, body: Any, functions: Any) -> None:
    database = with_options(database, **functions)
    await create(database)

    assert await stored_ways(database, body) == [body] * 8
    type_of = TYPE_OF[database.url.get_backend_name()]
    plain = await database.fetch_all(f"SELECT DISTINCT {type_of} FROM document")
    once = await database.fetch_all(
        f"SELECT {type_of} FROM (SELECT {literal(database, body)} AS body) AS it"
    )
    assert plain == once
    await database.disconnect()


def literal(database: Database, body: Any) -> str:
    text = json.dumps(body)
    return (
        f"CAST('{text}' AS jsonb)"
        if database.url.get_backend_name() == "postgresql"
        else f"'{text}'"
    )


async def test_functions_for_json_are_everybodys(database: Database) -> None:
    database = with_options(database, json_serializer=dumps, json_deserializer=loads)
    await create(database)

    assert await stored_ways(database, {"price": Decimal("1.5")}) == [{"price": "1.5"}] * 8
    assert await stored_ways(database, {"price": 1.5}) == [{"price": Decimal("1.5")}] * 8
    await database.disconnect()


async def test_a_serializer_may_give_bytes_and_a_deserializer_has_a_text(
    database: Database,
) -> None:
    database = with_options(
        database, json_serializer=lambda value: dumps(value).encode(), json_deserializer=str.upper
    )
    await create(database)
    body = {"name": "ann"}
    if database.url.get_backend_name() == "postgresql":
        assert await database.fetch_val("SELECT CAST(:body AS json)", {"body": body}) == (
            '{"NAME": "ANN"}'
        )
    await database.execute(sa.insert(Document).values(id=1, body=body))
    assert await database.fetch_val(sa.select(BODY)) == '{"NAME": "ANN"}'
    assert await database.fetch_val(sa.select(BODY["name"].as_string())) == "ann"
    await database.disconnect()


async def test_a_text_has_them_too_on_postgresql(database: Database) -> None:
    if database.url.get_backend_name() != "postgresql":
        pytest.skip("SQLite has no type for JSON: a text gets what is stored")
    database = with_options(database, json_serializer=dumps, json_deserializer=loads)
    for kind in ("json", "jsonb"):
        query = f"SELECT CAST(:it AS {kind}), CAST('[1.5]' AS {kind})"
        row = await database.fetch_one(query, {"it": {"price": Decimal("2.50"), "n": 2.5}})
        assert row is not None
        assert tuple(row) == ({"price": "2.50", "n": Decimal("2.5")}, [Decimal("1.5")])
    await database.disconnect()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_each_database_has_functions_of_its_own_though_their_code_is_one(
    postgres_url: str, driver: str
) -> None:
    url = sa.make_url(postgres_url).set(drivername=f"postgresql+{driver}")
    for name in ("a", "b"):
        dumps, loads = (Named(name).dumps, Named(name).loads)
        mine = Database(url, scope=SCOPE, json_serializer=dumps, json_deserializer=loads)
        value = sa.literal({}, postgresql.JSONB())
        assert await mine.fetch_val("SELECT CAST(:body AS jsonb) ->> 0", {"body": {}}) == name
        assert await mine.fetch_val(sa.select(value[0].astext)) == name
        assert await mine.fetch_val("SELECT CAST('{}' AS jsonb)") == name
        assert await mine.fetch_val(sa.select(sa.cast("{}", postgresql.JSONB))) == name
        await mine.disconnect()


class Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def dumps(self, _: Any) -> str:
        return json.dumps([self.name])

    def loads(self, _: Any) -> str:
        return self.name


async def test_what_a_text_gets_does_not_depend_on_who_opened_the_connection(
    database: Database,
) -> None:
    text = "SELECT CAST('{\"a\": 1}' AS jsonb)"
    if database.url.get_backend_name() == "sqlite":
        text = "SELECT '{\"a\": 1}'"
    first = with_options(database)
    fresh = await first.fetch_val(text)
    await first.fetch_val(sa.text("SELECT 1"))
    after = await first.fetch_val(text)
    second = with_options(database)
    async with second.session() as session:
        await session.execute(sa.text("SELECT 1"))

    assert fresh == after == await second.fetch_val(text)
    await first.disconnect()
    await second.disconnect()


async def test_mariadb_columns_have_the_functions(mariadb_url: str) -> None:
    database = Database(mariadb_url, json_serializer=dumps, json_deserializer=loads)
    await create(database)
    try:
        assert await stored_ways(database, {"price": 1.5}) == [{"price": Decimal("1.5")}] * 8
        assert await database.fetch_val("SELECT DISTINCT JSON_TYPE(body) FROM document") == "OBJECT"
    finally:
        await database.execute("DROP TABLE document")
        await database.disconnect()


async def reads_a_price(database: Database) -> Any:
    await database.execute("DELETE FROM document")
    await database.execute(sa.insert(Document), {"id": 1, "body": {"price": 1.5}})
    return await database.fetch_val(sa.select(BODY))


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_child_has_the_functions(
    database: Database, start_method: Literal["fork", "spawn"]
) -> None:
    database = with_options(database, json_serializer=dumps, json_deserializer=loads)
    asyncio.run(create(database))

    assert call_in_child(reads_a_price, database, start_method=start_method) == {
        "price": Decimal("1.5")
    }


def unreadable(_: Any) -> Any:
    raise LookupError("no JSON of ours")


async def read(query: str, handle: Database) -> None:
    await handle.fetch_all(query)


async def read_in_a_session(query: str, handle: Database) -> None:
    async with handle.session() as session:
        await session.execute(sa.text(query))


async def stream(query: str, handle: Database) -> None:
    async for _ in handle.iterate(query):
        pass


async def write(handle: Database) -> None:
    await handle.fetch_val("SELECT CAST(:body AS json)", {"body": {"odd": object()}})


async def write_a_clause(handle: Database) -> None:
    await handle.fetch_val(sa.select(sa.literal({"odd": object()}, postgresql.JSON())))


async def write_many(handle: Database) -> None:
    bodies: list[dict[str, Any]] = [{"body": {"n": 1}}, {"body": {"odd": object()}}]
    await handle.execute_many("SELECT CAST(:body AS json)", bodies)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(
    "way",
    [
        *(
            partial(way, f"SELECT CAST('{value}' AS {kind})")
            for way in (read, read_in_a_session, stream)
            for value, kind in (("{}", "json"), ("0044-03-15 BC", "date"))
        ),
        write,
        write_a_clause,
        write_many,
    ],
    ids=lambda way: way.func.__name__ if isinstance(way, partial) else way.__name__,
)
async def test_a_value_that_cannot_be_made_costs_neither_the_connection_nor_the_transaction(
    postgres_url: str, driver: str, way: Any
) -> None:
    url = sa.make_url(postgres_url).set(drivername=f"postgresql+{driver}")
    functions: Any = {"json_serializer": json.dumps, "json_deserializer": unreadable}
    async with Database(url, scope=SCOPE, max_size=1, **functions) as mine:
        await refused(way, mine)
        async with mine.transaction():
            await mine.execute("CREATE TEMPORARY TABLE kept (n int) ON COMMIT DROP")
            await refused(way, mine)
            assert await mine.fetch_val("SELECT count(*) FROM kept") == 0
        assert mine.stats().opened == 1


async def refused(way: Any, handle: Database) -> None:
    with pytest.raises(Exception, match=r"ours|ordinal|before year 1|serializable") as told:
        await way(handle)
    assert not isinstance(told.value, ConnectionLost)
