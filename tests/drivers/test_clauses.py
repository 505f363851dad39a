"""Clauses by the driver's own calls, and by SQLAlchemy's cursor: the same comes of both."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite

from loopsafe_db import Database, PoolLimits
from loopsafe_db.engines import compiled_clause
from loopsafe_db.engines.clauses import know_null_types
from loopsafe_db.engines.listeners import hand_on
from loopsafe_db.errors import StatementTimeout
from loopsafe_db.testing import assert_queries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    Clause = Any  # or a tuple of one and its values


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Reversed(sa.TypeDecorator[str]):
    """A type of the user's, with both processors."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value[::-1]

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value[::-1]


DATA = sa.MetaData()
THINGS = sa.Table(
    "things",
    DATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(20)),
    sa.Column("ratio", sa.Float),
    sa.Column("price", sa.Numeric(10, 2)),
    sa.Column("is_good", sa.Boolean),
    sa.Column("day", sa.Date),
    sa.Column("at", sa.DateTime),
    sa.Column("span", sa.Interval),
    sa.Column("raw", sa.LargeBinary),
    sa.Column("data", sa.JSON),
    sa.Column("colour", sa.Enum(Colour, native_enum=False)),
    sa.Column("code", sa.Uuid),
    sa.Column("word", Reversed),
    sa.Column("with %(odd) : name", sa.Integer, key="odd"),
)
DEFAULTS = sa.Table(
    "defaults",
    DATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("scalar", sa.Integer, default=7),
    sa.Column("called", sa.String(40), default=lambda: "made"),
    sa.Column("in_context", sa.String(40)),
    sa.Column("of_server", sa.Integer, server_default="9"),
    sa.Column("touched", sa.Integer, default=0, onupdate=1),
    sa.Column("sql", sa.Integer, default=sa.literal_column("1 + 1")),
)
IN_CONTEXT = sa.Table(
    "defaults",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("scalar", sa.Integer),
    sa.Column(
        "in_context",
        sa.String(40),
        default=lambda context: str(context.get_current_parameters()["scalar"]),
    ),
)
NAMED = sa.Table(
    "named",
    DATA,
    sa.Column("first", sa.String(10), primary_key=True),
    sa.Column("second", sa.Integer, primary_key=True, autoincrement=False),
)
HALF_GIVEN = sa.Table(
    "half_given",
    DATA,
    sa.Column("first", sa.String(10), primary_key=True),
    sa.Column("second", sa.Integer, primary_key=True, autoincrement=False, server_default="5"),
)
ROW: dict[str, Any] = {
    "name": "a % b",
    "ratio": 0.5,
    "price": Decimal("1.50"),
    "is_good": True,
    "day": dt.date(2024, 2, 29),
    "at": dt.datetime(2024, 2, 29, 12, 30),
    "span": dt.timedelta(days=1, seconds=2),
    "raw": b"\x00\xff",
    "data": {"a": [1, None, "x"]},
    "colour": Colour.BLUE,
    "code": uuid.UUID(int=5),
    "word": "drow",
    "odd": 3,
}
c = THINGS.c
other = THINGS.alias("other")


def select_things() -> Any:
    return sa.select(THINGS).order_by(c.id)


TWIN = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("name", sa.String))


def twin() -> Any:
    """A select of another `Table` of the same name: its columns are other objects."""
    return sa.select(TWIN.c.id, TWIN.c.name.label("called")).order_by(TWIN.c.id)


def upsert(database: Database) -> Any:
    return (sqlite if database.url.get_backend_name() == "sqlite" else postgresql).insert


# Each gives a clause anew, as programs do; with values, where they are given beside it.
READS: dict[str, Callable[[], Clause]] = {
    "all columns": select_things,
    "some, one of them labelled": lambda: sa.select(c.id, c.name.label("n"), c.price).order_by(c.id),
    "of another Table object": twin,
    "an expression": lambda: sa.select(c.id + 1, (c.ratio * 2).label("double")).order_by(c.id),
    "two columns of one name": lambda: sa.select(c.id, other.c.id).join(other, c.id == other.c.id).order_by(c.id),
    "labels of tables": lambda: select_things().set_label_style(sa.LABEL_STYLE_TABLENAME_PLUS_COL),
    "by a value": lambda: select_things().where(c.name == "a % b", c.odd > 1),
    "by a parameter": lambda: (select_things().where(c.id >= sa.bindparam("from")), {"from": 2}),
    "by one twice": lambda: (
        select_things().where(sa.or_(c.id == sa.bindparam("n", type_=sa.Integer), c.odd == sa.bindparam("n"))),
        {"n": 3},
    ),
    "by a called parameter": lambda: select_things().where(c.id == sa.bindparam("x", callable_=lambda: 2)),
    "by a default of a parameter": lambda: select_things().where(c.id == sa.bindparam("x", 2)),
    "by every type": lambda: select_things().where(
        *(THINGS.c[name] == value for name, value in ROW.items() if name != "data")
    ),
    "in a list": lambda: select_things().where(c.id.in_([1, 3])),
    "in a list of a type": lambda: select_things().where(c.word.in_(["drow", "x"]), c.name == "a % b"),
    "in no list": lambda: select_things().where(c.id.in_([])),
    "not in": lambda: select_things().where(c.id.not_in([1])),
    "in pairs": lambda: select_things().where(sa.tuple_(c.id, c.odd).in_([(1, 3), (2, 3)])),
    "literally": lambda: select_things().where(c.id == sa.bindparam("x", 2, literal_execute=True)),
    "like": lambda: select_things().where(c.name.like("a %")).with_only_columns(c.name, sa.literal("100%")),
    "a limit": lambda: select_things().limit(1).offset(1),
    "nothing": lambda: select_things().where(c.id < 0),
    "aggregates": lambda: sa.select(sa.func.count(), sa.func.max(c.price).label("most"), sa.func.min(c.at)),
    "grouped": lambda: sa.select(c.name, sa.func.count().label("n")).group_by(c.name).order_by(c.name),
    "a union": lambda: sa.union_all(sa.select(c.id), sa.select(c.odd)).order_by("id"),
    "a subquery": lambda: sa.select(sa.select(c.id, c.name).subquery()),
    "a common table": lambda: sa.select(sa.select(c.id, c.at).cte("found")),
    "exists": lambda: sa.select(sa.exists().where(c.id == 1)),
    "a case": lambda: sa.select(sa.case((c.id > 1, "more"), else_="less").label("x")).order_by(c.id),
    "a cast": lambda: sa.select(sa.cast(c.price, sa.String), sa.type_coerce(c.name, Reversed)).order_by(c.id),
    "part of a JSON": lambda: sa.select(c.data["a"]).order_by(c.id),
    "null": lambda: sa.select(sa.null(), sa.true(), sa.literal(None)),
    "a literal column": lambda: sa.select(sa.literal_column("1").label("one"), sa.text("2 AS two")),
    "every column of a text": lambda: sa.select(sa.text("*")).select_from(THINGS),
    "a text": lambda: (sa.text("SELECT id, name FROM things WHERE id > :n ORDER BY id"), {"n": 1}),
    "a text with columns": lambda: sa.text("SELECT id, word FROM things ORDER BY id").columns(c.id, c.word),
    "a text with columns by name": lambda: sa.text("SELECT word, id FROM things ORDER BY id").columns(
        id=sa.Integer, word=Reversed
    ),
    "a function": lambda: sa.func.upper("x"),
    "with options": lambda: select_things().execution_options(logging_token="x"),
    "an error": lambda: sa.select(c.id).where(sa.literal_column("nowhere") == 1),
    "an error of a type": lambda: select_things().where(c.span == "no span"),
    "an error of a value": lambda: select_things().where(c.id == sa.bindparam("x", "no number")),
    "an error without a value": lambda: select_things().where(c.id == sa.bindparam("x")),
    "an error of the server": lambda: sa.select(sa.cast("x" + c.name, sa.Integer) / 0, sa.func.nothing()),
    "more values than parameters": lambda: (select_things(), {"x": 1}),
}  # fmt: skip
WRITES: dict[str, Callable[[Database], Clause]] = {
    "an insert": lambda _: THINGS.insert().values(**ROW),
    "an insert with values beside it": lambda _: (THINGS.insert(), ROW),
    "an insert with SQL among the values": lambda _: (
        THINGS.insert(),
        {"name": sa.func.upper("x"), "odd": 4},
    ),
    "an insert with its key": lambda _: (THINGS.insert(), {"id": 77, "name": "x"}),
    "an insert of nothing": lambda _: DEFAULTS.insert(),
    "an insert that returns": lambda _: THINGS.insert().values(**ROW).returning(THINGS),
    "an insert that returns one value": lambda _: THINGS.insert().values(**ROW).returning(c.word),
    "an insert of several": lambda _: DEFAULTS.insert().values([{"scalar": 1}, {"scalar": 2}]),
    "an insert of what was selected": lambda _: THINGS.insert().from_select(
        ["name", "odd"], sa.select(c.name, c.odd)
    ),
    "an insert with defaults": lambda _: DEFAULTS.insert().values(of_server=3),
    "an insert with a default in context": lambda _: IN_CONTEXT.insert().values(scalar=5),
    "an insert with a key of two": lambda _: NAMED.insert().values(first="b", second=2),
    "an insert with a key of which half is given": lambda _: HALF_GIVEN.insert().values(first="b"),
    "an insert that is there": lambda _: NAMED.insert().values(first="a", second=1),
    "an upsert that does nothing": lambda database: (
        upsert(database)(NAMED).values(first="a", second=1).on_conflict_do_nothing()
    ),
    "an upsert that does nothing and returns": lambda database: (
        upsert(database)(NAMED)
        .values(first="a", second=1)
        .on_conflict_do_nothing()
        .returning(NAMED.c.first)
    ),
    "an upsert that inserts": lambda database: (
        upsert(database)(THINGS).values(id=78, name="new").on_conflict_do_nothing()
    ),
    "an upsert that updates": lambda database: (
        upsert(database)(THINGS)
        .values(id=1, name="old")
        .on_conflict_do_update(index_elements=["id"], set_={"name": "newer"})
    ),
    "an update": lambda _: THINGS.update().where(c.id > 1).values(name="x"),
    "an update with values beside it": lambda _: (
        THINGS.update().where(c.id == sa.bindparam("which")),
        {"which": 1, "data": [1], "colour": Colour.RED},
    ),
    "an update of nothing": lambda _: THINGS.update().where(c.id < 0).values(name="x"),
    "an update with a default": lambda _: DEFAULTS.update().values(scalar=DEFAULTS.c.scalar + 1),
    "an update that returns": lambda _: (
        THINGS.update().values(odd=c.odd + 1).returning(c.id, c.odd)
    ),
    "an update that returns nothing": lambda _: (
        THINGS.update().where(c.id < 0).values(odd=1).returning(c.id)
    ),
    "a delete": lambda _: THINGS.delete().where(c.id.in_([1, 2])),
    "a delete that returns": lambda _: THINGS.delete().where(c.id == 1).returning(c.id, c.price),
    "a text that writes": lambda _: (sa.text("UPDATE things SET odd = :n"), {"n": 8}),
    "an error of a constraint": lambda _: (THINGS.insert(), {"id": 1}),
    "an unknown column": lambda _: (THINGS.insert(), {"nowhere": 1}),
}
# Those that always take the long way: their SQL is not cached, nor what rows come; or they need SQLAlchemy's context.
LONG = {
    *("every column of a text", "a text", "a text with columns by name", "a function", "with options"),
    *("an insert of several", "an insert with a default in context", "a text that writes"),
}  # fmt: skip


async def make(database: Database) -> None:
    for table in DATA.sorted_tables:
        await database.execute(f"DROP TABLE IF EXISTS {table.name}")
    async with database.engine.begin() as connection:
        await connection.run_sync(DATA.create_all)
    for n in range(3):
        await database.execute(THINGS.insert().values({**ROW, "data": {"a": n}} if n else ROW))
    await database.execute(DEFAULTS.insert().values(scalar=1))
    await database.execute(NAMED.insert().values(first="a", second=1))


async def outcome(call: Callable[..., Awaitable[Any]], clause: Clause) -> Any:
    """Give all that a program can see of a result, or of an error."""
    query, values = clause if isinstance(clause, tuple) else (clause, None)
    try:
        result = await call(query, values)
    except Exception as error:  # noqa: BLE001 (they are compared)
        return type(error), str(error).splitlines()[0], getattr(error, "__notes__", None)
    if not isinstance(result, list):
        return type(result), result if result is None else seen(result, query)
    return [seen(row, query) for row in result]


def seen(row: Any, query: Any) -> Any:
    if not hasattr(row, "keys"):
        return row
    columns = [*getattr(query, "selected_columns", ()), *THINGS.c, *other.c, sa.column("id")]
    return (
        type(row),
        row.keys(),
        row.values(),
        list(map(type, row)),
        [(name, row[name], row.get(name)) for name in row.keys()],  # noqa: SIM118
        [looked_up(row, column) for column in columns],
        row[:1],
        row[-1],
        hash(str(row)),
        dict(row._mapping),  # noqa: SLF001 (public, as SQLAlchemy has it)
    )


def looked_up(row: Any, column: Any) -> Any:
    try:
        return row[column]
    except Exception as error:  # noqa: BLE001 (they are compared)
        return type(error), str(error)


def listen(database: Database) -> Database:
    """Give a handle on the same database whose clauses go by SQLAlchemy's cursor: somebody listens to it."""
    twin = Database(database.url)
    event.listen(twin.engine.sync_engine, "before_execute", lambda *_: None)
    return twin


def is_direct(database: Database, clause: Clause) -> bool:
    """Tell whether the next run of a clause goes to the driver."""
    query, values = clause if isinstance(clause, tuple) else (clause, None)
    clauses = database._pool().clauses  # noqa: SLF001
    assert clauses is not None
    return clauses.ready(query, values) is not None


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


def calls(database: Database) -> Mapping[str, Callable[..., Awaitable[Any]]]:
    return {
        "fetch_all": database.fetch_all,
        "fetch_one": database.fetch_one,
        "fetch_val": database.fetch_val,
        "execute": database.execute,
    }


def test_every_read_gives_the_same_on_both_ways(database: Database, runner: asyncio.Runner) -> None:
    long = listen(database)

    async def work() -> None:
        await make(database)
        for name, clause in READS.items():
            for call in calls(database):
                expected = await outcome(calls(long)[call], clause())
                for turn in range(3):
                    direct = is_direct(database, clause())
                    got = await outcome(calls(database)[call], clause())
                    assert got == expected, (name, call, turn, direct)
            assert not is_direct(long, clause())
        long_ones = {name for name in READS if not is_direct(database, READS[name]())}
        assert {name for name in long_ones if "error" not in name} == LONG & READS.keys()

    runner.run(work())


def test_every_write_gives_the_same_on_both_ways(
    database: Database, runner: asyncio.Runner
) -> None:
    long = listen(database)

    async def work() -> None:
        for name, clause in WRITES.items():
            found = []
            for handle in (long, database, database):
                for call in ("execute", "fetch_all"):
                    await make(database)
                    answer = await outcome(calls(handle)[call], clause(database))
                    tables = [
                        await outcome(long.fetch_all, sa.select(table))
                        for table in DATA.sorted_tables
                    ]
                    found.append((answer, tables))
            assert found[:2] == found[2:4] == found[4:], name
        long_ones = {name for name in WRITES if not is_direct(database, WRITES[name](database))}
        if sa.__version__.startswith("2.0."):  # it caches no upsert
            long_ones -= {name for name in WRITES if "upsert" in name}
        assert long_ones == LONG & WRITES.keys()

    runner.run(work())


def test_values_know_of_their_types_what_sqlalchemy_would_find_out() -> None:
    def clauses() -> Iterator[Any]:
        yield THINGS.insert().values(**ROW, id=sa.func.random())
        yield THINGS.update().where(c.id == 1).values(name=sa.bindparam("n", type_=sa.Text), odd=2)
        yield THINGS.insert()

    for known, alike in zip(clauses(), clauses(), strict=True):
        know_null_types(known)
        keys = [clause._generate_cache_key().key for clause in (known, alike)]  # noqa: SLF001
        assert keys[0] == keys[1]


async def make_ready(database: Database, clause: Callable[[], Any]) -> None:
    """Run a clause until it is one for the driver."""
    while not is_direct(database, clause()):
        await database.fetch_all(clause())


def test_who_listens_later_hears_of_each_clause(
    database: Database, runner: asyncio.Runner, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def hear(_: Any, __: Any, statement: str, *___: Any) -> None:
        heard.append(statement)

    async def work() -> None:
        await make(database)
        await make_ready(database, select_things)
        event.listen(database.engine.sync_engine, "before_cursor_execute", hear)
        await database.fetch_all(select_things())
        event.remove(database.engine.sync_engine, "before_cursor_execute", hear)
        assert is_direct(database, select_things())
        event.listen(sa.Engine, "before_cursor_execute", hear)
        try:
            await database.fetch_all(select_things())
        finally:
            event.remove(sa.Engine, "before_cursor_execute", hear)
        with caplog.at_level("INFO", "sqlalchemy.engine"):
            await database.fetch_all(select_things())
        with assert_queries(1, database=database):
            await database.fetch_all(select_things())

    runner.run(work())
    assert len(heard) == 2
    assert any("FROM things" in record.getMessage() for record in caplog.records)


def test_no_clause_goes_past_who_listens_to_all_connections(
    database: Database, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hear(*_: Any) -> None:
        pass

    async def work() -> None:
        await make(database)
        await make_ready(database, select_things)
        monkeypatch.setattr(sa.Connection, "_has_events", False, raising=False)
        event.listen(sa.Connection, "before_cursor_execute", hear)
        assert not is_direct(database, select_things())
        event.remove(sa.Connection, "before_cursor_execute", hear)

    runner.run(work())


def test_who_listened_to_the_engine_before_hears_of_errors_of_the_next_ones_clauses(
    database: Database, runner: asyncio.Runner
) -> None:
    former = Database(database.url)
    event.listen(former.engine.sync_engine, "handle_error", lambda _: None)

    async def work() -> None:
        await make(database)
        await make_ready(database, select_things)
        hand_on(former._pool().engine, database._pool().engine)  # noqa: SLF001
        assert not is_direct(database, select_things())

    runner.run(work())


def test_a_clause_is_in_the_transaction_of_its_task(
    database: Database, runner: asyncio.Runner
) -> None:
    def insert() -> Any:
        return NAMED.insert().values(first="new", second=2)

    async def work() -> None:
        await make(database)
        async with database.transaction(force_rollback=True):
            await database.execute(insert())
            await make_ready(database, lambda: sa.select(NAMED))
        assert is_direct(database, insert())
        async with database.transaction(force_rollback=True) as transaction:
            assert await database.execute(insert()) == "new"
            assert len(await transaction.connection.fetch_all(sa.select(NAMED))) == 2
        assert len(await database.fetch_all(sa.select(NAMED))) == 1

    runner.run(work())


def test_clauses_are_undone_with_everything_else(
    database: Database, runner: asyncio.Runner
) -> None:
    def insert(first: str) -> Any:
        return NAMED.insert().values(first=first, second=2)

    async def work() -> None:
        await make(database)
        with database.force_rollback():
            for name in ("x", "y"):
                assert await database.execute(insert(name)) == name
            assert is_direct(database, insert("z"))
            with pytest.raises(Exception, match=r"(?i)unique"):
                await database.execute(insert("x"))
            assert await database.execute(insert("z")) == "z"
            assert len(await database.fetch_all(sa.select(NAMED))) == 4
            await database.disconnect()
        assert len(await database.fetch_all(sa.select(NAMED))) == 1

    runner.run(work())


def test_a_clause_is_the_same_in_each_loop_and_thread(database: Database) -> None:
    async def read() -> Any:
        rows = [await database.fetch_all(select_things()) for _ in range(3)]
        assert is_direct(database, select_things())
        return [[tuple(row) for row in one] for one in rows]

    asyncio.run(make(database))
    with ThreadPoolExecutor(4) as threads:
        found = [
            one
            for work in [threads.submit(asyncio.run, read()) for _ in range(4)]
            for one in work.result()
        ]
    assert all(one == found[0] for one in found)


def test_a_clause_fails_in_its_transaction_as_it_does_alone(
    database: Database, runner: asyncio.Runner
) -> None:
    def insert() -> Any:
        return NAMED.insert().values(first="a", second=1)

    async def work() -> None:
        await make(database)
        kinds = []
        for _ in range(3):
            with pytest.raises(Exception) as caught:  # noqa: PT011 (of the driver's own)
                async with database.transaction():
                    await database.execute(insert())
            kinds.append(caught.type)
            kinds.append((await outcome(database.execute, insert()))[0])
        assert is_direct(database, insert())
        assert len(set(kinds)) == 1
        assert len(await database.fetch_all(sa.select(NAMED))) == 1

    runner.run(work())


def test_a_clause_that_takes_too_long_is_stopped(
    database: Database, runner: asyncio.Runner
) -> None:
    numbers = sa.select(sa.literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(
        sa.select(numbers.c.n + 1).where(numbers.c.n < sa.bindparam("last"))
    )
    query = sa.select(sa.func.count()).select_from(numbers)

    async def work() -> None:
        for _ in range(3):
            assert await database.fetch_val(query, {"last": 5}) == 5
        assert is_direct(database, (query, {"last": 5}))
        with pytest.raises(StatementTimeout):
            await database.fetch_val(query, {"last": 1_000_000_000}, timeout=0.2)
        assert await database.fetch_val(query, {"last": 5}) == 5

    runner.run(work())


def test_a_clause_survives_an_altered_table(database: Database, runner: asyncio.Runner) -> None:
    def rows() -> Any:
        return sa.select(TWIN).order_by(TWIN.c.id)

    async def work() -> None:
        await make(database)
        for _ in range(8):  # psycopg prepares late
            await database.fetch_all(rows())
        await database.execute("ALTER TABLE things ADD COLUMN more int")
        assert len(await database.fetch_all(rows())) == 3
        if database.url.get_backend_name() == "postgresql":
            await database.execute("ALTER TABLE things ALTER COLUMN name TYPE text")
        assert [row["name"] for row in await database.fetch_all(rows())] == ["a % b"] * 3

    runner.run(work())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_what_a_clause_sets_is_reset_for_the_next_user(
    postgres_url: str, driver: str, runner: asyncio.Runner
) -> None:
    url = sa.make_url(postgres_url).set(drivername=f"postgresql+{driver}")
    database = Database(url, pool=PoolLimits(1))

    def setting() -> Any:
        return sa.select(sa.func.set_config("work_mem", sa.bindparam("x", "77MB"), sa.false()))

    async def work() -> None:
        before = await database.fetch_val("SHOW work_mem")
        for _ in range(3):
            assert await database.fetch_val(setting()) == "77MB"
            assert await database.fetch_val("SHOW work_mem") == before
        assert is_direct(database, setting())
        async with database.connection() as connection:
            await connection.fetch_val(setting())
        assert await database.fetch_val("SHOW work_mem") == before

    runner.run(work())


def test_what_is_private_to_sqlalchemy_is_still_there() -> None:
    for owner, name in compiled_clause.LEANS_ON:
        assert hasattr(owner, name), f"SQLAlchemy has no {owner.__name__}.{name} any more"
