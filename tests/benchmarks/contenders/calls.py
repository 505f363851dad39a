"""The calls of `databases`, as both libraries take them: the same lines, with the `Database` of one or of the other."""

from __future__ import annotations

import os
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tests.benchmarks.harness import (
    LAST_ROW,
    MANY,
    NAMED,
    ROWS,
    SERIES,
    Child,
    Outcome,
    in_one_loop,
)

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = [dict(zip("abc", row, strict=True)) for row in MANY[:1000]]
STREAMED = 10_000


def calls_of(open_database: Callable[[Child], Any]) -> dict[str, Callable[[Child], Any]]:
    """Give the cases of a library, by how it is opened."""

    def case(call: Callable[[Child, Any], Any]) -> Callable[[Child], Any]:
        return lambda child: call(child, open_database(child))

    return {f"call {name}": case(call) for name, call in _CALLS.items()}


def fetch_all(child: Child, database: Any) -> Any:
    return in_one_loop(child, lambda n: _read_all(database, ROWS, n))


def fetch_one(child: Child, database: Any) -> Any:
    async def job(n: int) -> Any:
        row = await database.fetch_one("SELECT CAST(:n AS int) AS n, 'x' AS x", {"n": n})
        return row["n"] if row["x"] == "x" else row

    return in_one_loop(child, job)


def fetch_val(child: Child, database: Any) -> Any:
    return in_one_loop(child, lambda n: database.fetch_val(NAMED, {"n": n}))


def execute(child: Child, database: Any) -> Any:
    table = _make_table(child, database).name
    child.long_loop.run(database.execute(f"INSERT INTO {table} (a) VALUES (0)"))
    update = f"UPDATE {table} SET a = :n RETURNING a"
    return in_one_loop(child, lambda n: database.execute(update, {"n": n}))


def connection_block(child: Child, database: Any) -> Any:
    async def job(n: int) -> Any:
        async with database.connection() as connection:
            first = await connection.fetch_val(NAMED, {"n": n})
            return first if await connection.fetch_val(NAMED, {"n": n}) == n else None

    return in_one_loop(child, job)


def transaction_block(child: Child, database: Any) -> Any:
    async def job(n: int) -> Any:
        async with database.transaction():
            first = await database.fetch_val(NAMED, {"n": n})
            return first if await database.fetch_val(NAMED, {"n": n}) == n else None

    return in_one_loop(child, job)


def core_select(child: Child, database: Any) -> Any:
    table = _make_table(child, database)
    insert = f"INSERT INTO {table.name} (a, b, c) SELECT a, c, b FROM ({ROWS}) AS rows"
    child.long_loop.run(database.execute(insert))
    query = table.select().with_only_columns(table.c.a, table.c.c.label("b"), table.c.b.label("c"))
    query = query.order_by(table.c.a)
    return in_one_loop(child, lambda n: _read_all(database, query.where(table.c.a > 0), n))


def core_one(child: Child, database: Any) -> Any:
    table = _make_table(child, database)
    fill = f"INSERT INTO {table.name} (a) SELECT i * 2 FROM generate_series(1, 1000) AS i"
    child.long_loop.run(database.execute(fill))

    async def job(n: int) -> Any:
        row = await database.fetch_one(table.select().where(table.c.id == n % 1000 + 1))
        return n if row["a"] == (n % 1000 + 1) * 2 else row

    return in_one_loop(child, job)


def core_insert(child: Child, database: Any) -> Any:
    table = _make_table(child, database)

    async def job(n: int) -> Any:
        key = await database.execute(table.insert().values(a=n, b="name", c=n / 7))
        return n if key > 0 else key

    return in_one_loop(child, job)


def execute_many(child: Child, database: Any) -> Any:
    table = _make_table(child, database)
    insert = f"INSERT INTO {table.name} (a, b, c) VALUES (:a, :b, :c)"
    return _insert_many(child, database, table.name, insert)


def core_execute_many(child: Child, database: Any) -> Any:
    table = _make_table(child, database)
    return _insert_many(child, database, table.name, table.insert())


def iterate(child: Child, database: Any) -> Any:
    async def job(n: int) -> Any:
        seen = 0
        async for row in database.iterate(SERIES.format(":n"), {"n": STREAMED}):
            seen += row[1] - row[0]
        return n if seen == STREAMED else seen

    return in_one_loop(child, job)


_CALLS = {
    "fetch_all": fetch_all,
    "fetch_one": fetch_one,
    "fetch_val": fetch_val,
    "execute": execute,
    "connection": connection_block,
    "transaction": transaction_block,
    "core select": core_select,
    "core insert": core_insert,
    "core one": core_one,
    "execute_many": execute_many,
    "core execute_many": core_execute_many,
    "iterate": iterate,
}


async def _read_all(database: Any, query: Any, n: int) -> Any:
    found = [(row["a"], row["b"], row["c"]) for row in await database.fetch_all(query)]
    return n if len(found) == LAST_ROW[0] and found[-1] == LAST_ROW else found


def _insert_many(child: Child, database: Any, table: str, insert: Any) -> Any:
    async def measure(count: int) -> Outcome:
        seconds, ok = 0.0, True
        for _ in range(count):
            await database.execute(f"TRUNCATE {table}")
            start = perf_counter()
            await database.execute_many(insert, BATCH)
            seconds += perf_counter() - start
            ok &= await database.fetch_val(f"SELECT count(*) FROM {table}") == len(BATCH)
        return Outcome(seconds, ok)

    return lambda count: child.long_loop.run(measure(count))


def _make_table(child: Child, database: Any) -> Any:
    """A table of this process."""
    name = f"bench_calls_{os.getpid()}"
    columns = "id serial PRIMARY KEY, a int, b text, c double precision"
    child.long_loop.run(database.execute(f"CREATE UNLOGGED TABLE {name} ({columns})"))
    return table_of(name)


def table_of(name: str) -> Any:
    """Describe it for SQLAlchemy."""
    import sqlalchemy as sa  # what asks for text alone does without

    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("a", sa.Integer),
        sa.Column("b", sa.String),
        sa.Column("c", sa.Float),
    )
