"""Under `force_rollback` what cannot be undone is refused, and what a commit checks is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database, create_async_engine
from loopsafe_db.errors import NotUndoableError, TransactionError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

COUNT = "SELECT count(*) FROM things"
INSERT = "INSERT INTO things (id) VALUES (:id)"
things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
CONTROL = [
    "COMMIT",
    "/* now */ commit;",
    "END",
    "BEGIN",
    "ROLLBACK",
    "SAVEPOINT a",
    "RELEASE SAVEPOINT a",
    "ROLLBACK TO SAVEPOINT a",
    "INSERT INTO things (id) VALUES (2); COMMIT; INSERT INTO things (id) VALUES (3)",
    "PREPARE TRANSACTION 'one'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
]


@pytest.fixture
async def undone(database: Database) -> AsyncIterator[Database]:
    """A handle whose work is undone; afterwards nothing of it is there."""
    await database.execute("CREATE TABLE things (id integer PRIMARY KEY)")
    await database.execute(
        "CREATE TABLE parts (thing integer REFERENCES things (id) DEFERRABLE INITIALLY DEFERRED)"
    )
    undone = Database(database.url, force_rollback=True)
    yield undone
    await undone.disconnect()
    for table in ("things", "parts"):
        assert await database.fetch_val(f"SELECT count(*) FROM {table}") == 0


@pytest.mark.parametrize("text", CONTROL)
async def test_what_would_end_the_transaction_is_refused_before_it_is_sent(
    undone: Database, text: str
) -> None:
    await undone.execute(INSERT, {"id": 1})
    with pytest.raises(NotUndoableError, match="LDB113"):
        await undone.execute(text)
    with pytest.raises(NotUndoableError):
        await undone.execute_many(text, [{}])
    with pytest.raises(NotUndoableError):
        await undone.fetch_all(sa.text(text))
    if "SAVEPOINT" not in text:
        async with undone.session() as session:
            with pytest.raises(NotUndoableError):
                await session.execute(sa.text(text))
        async with undone.engine.connect() as connection:
            with pytest.raises(NotUndoableError):
                await connection.exec_driver_sql(text)
    with pytest.raises(NotUndoableError):
        async for _ in undone.iterate(text.replace("SAVEPOINT a", "COMMIT")):
            pass
    assert await undone.fetch_val(COUNT) == 1


async def test_savepoints_by_text_work_in_a_transaction(undone: Database) -> None:
    async with undone.transaction():
        await undone.execute(INSERT, {"id": 1})
        await undone.execute("SAVEPOINT mine")
        await undone.execute(INSERT, {"id": 2})
        await undone.execute("ROLLBACK TO SAVEPOINT mine")
        await undone.execute("RELEASE SAVEPOINT mine")
    assert await undone.fetch_val(COUNT) == 1


async def test_scripts_of_sqlites_are_refused_for_they_commit(undone: Database) -> None:
    if undone.url.get_backend_name() != "sqlite":
        return
    async with undone.connection() as connection:
        with pytest.raises(NotUndoableError):
            await connection.raw_connection.executescript("INSERT INTO things (id) VALUES (1)")
        with pytest.raises(NotUndoableError):
            await connection.raw_connection.commit()


async def test_what_mysql_commits_by_itself_is_refused(mariadb_url: str) -> None:
    async with Database(mariadb_url) as kept:
        await kept.execute("CREATE TABLE undoable (id integer PRIMARY KEY)")
    try:
        async with Database(mariadb_url, force_rollback=True) as undone:
            await undone.execute("INSERT INTO undoable (id) VALUES (1)")
            refused = [
                "CREATE TABLE other (id integer)",
                "TRUNCATE undoable",
                "LOCK TABLES undoable READ",
            ]
            for text in (
                *refused,
                "SET autocommit = 1",
                "SET NAMES utf8mb4, autocommit = 0",
                "COMMIT",
            ):
                with pytest.raises(NotUndoableError):
                    await undone.execute(text)
                with pytest.raises(NotUndoableError):
                    await undone.execute(sa.text(text))
            with pytest.raises(TransactionError, match="read-only"):
                await undone.transaction(readonly=True)
            with pytest.raises(TransactionError, match="SERIALIZABLE"):
                await undone.transaction(isolation="serializable")
            await undone.execute("CREATE TEMPORARY TABLE mine (id integer)")
            assert await undone.fetch_val("SELECT count(*) FROM undoable") == 1
    finally:
        async with Database(mariadb_url) as kept:
            assert await kept.fetch_val("SELECT count(*) FROM undoable") == 0
            await kept.execute("DROP TABLE undoable")


async def test_what_only_looks_like_it_is_sent(undone: Database) -> None:
    await undone.execute("INSERT INTO things (id) VALUES (1) -- COMMIT")
    assert await undone.fetch_val("SELECT 'a; COMMIT' || :x", {"x": "; END"}) == "a; COMMIT; END"
    assert await undone.fetch_val("SELECT id AS end_ FROM things") == 1


async def test_what_cannot_run_in_a_transaction_leaves_the_rest_as_it_was(
    undone: Database,
) -> None:
    await undone.execute(INSERT, {"id": 1})
    with pytest.raises(Exception, match=r"VACUUM"):
        await undone.execute("VACUUM")
    assert await undone.fetch_val(COUNT) == 1


async def test_a_read_only_transaction_refuses_writes(undone: Database) -> None:
    for _ in range(2):
        await undone.execute("DELETE FROM things")
        with pytest.raises(Exception, match=r"(?i)read-?only"):  # noqa: PT012
            async with undone.transaction(readonly=True):
                async with undone.transaction(readonly=True):
                    assert await undone.fetch_val(COUNT) == 0
                await undone.execute(INSERT, {"id": 1})
        async with undone.transaction(readonly=True):
            assert await undone.fetch_val(COUNT) == 0
        await undone.execute(INSERT, {"id": 2})
        assert await undone.fetch_val(COUNT) == 1
    forgotten = await undone.transaction(readonly=True)
    await undone.disconnect()
    await undone.execute(INSERT, {"id": 2})
    del forgotten  # it went with the connection


async def test_an_isolation_level_is_that_of_the_transaction_or_refused(undone: Database) -> None:
    present: Any = (
        "read_committed" if undone.url.get_backend_name() == "postgresql" else "serializable"
    )
    async with undone.transaction(isolation=present):
        await undone.execute(INSERT, {"id": 1})
    engine = undone.engine.execution_options(isolation_level=present.replace("_", " ").upper())
    async with engine.connect() as connection:
        assert await connection.scalar(sa.text(COUNT)) == 1
    if present == "serializable":
        return
    with pytest.raises(TransactionError, match="SERIALIZABLE"):
        await undone.transaction(isolation="serializable")
    with pytest.raises(TransactionError, match="SERIALIZABLE"):
        async with undone.engine.connect() as connection:
            await connection.execution_options(isolation_level="SERIALIZABLE")
    assert await undone.fetch_val(COUNT) == 1


async def store(undone: Database, how: str) -> None:
    """Store a part without its thing."""
    part: Any = "INSERT INTO parts (thing) VALUES (7)"
    if how == "text":
        await undone.execute(part)
    elif how == "clause":
        await undone.execute(sa.text(part))
    elif how == "many":
        await undone.execute_many("INSERT INTO parts (thing) VALUES (:n)", [{"n": 7}, {"n": 8}])
    elif how == "transaction":
        async with undone.transaction(), undone.transaction():
            await undone.execute(part)
    else:
        async with undone.session.begin() as session:
            await session.execute(sa.text(part))


@pytest.mark.parametrize("how", ["text", "clause", "many", "transaction", "session"])
async def test_deferred_constraints_are_checked_where_a_commit_would_check_them(
    undone: Database, how: str
) -> None:
    await undone.execute(INSERT, {"id": 1})
    for _ in range(2):
        with pytest.raises(Exception, match=r"(?i)foreign key"):
            await store(undone, how)
        async with undone.transaction():
            await undone.execute("INSERT INTO parts (thing) VALUES (7)")
            await undone.execute(INSERT, {"id": 7})
        await undone.execute("DELETE FROM parts")
        await undone.execute("DELETE FROM things WHERE id = 7")
    assert await undone.fetch_val(COUNT) == 1


async def test_a_constraint_that_was_made_in_the_test_is_checked(undone: Database) -> None:
    await undone.execute("DROP TABLE parts")
    await undone.execute(INSERT, {"id": 1})
    async with undone.transaction(force_rollback=True):
        await undone.execute(
            "CREATE TABLE parts (thing integer REFERENCES things (id) DEFERRABLE INITIALLY DEFERRED)"
        )
    await undone.execute(INSERT, {"id": 2})
    await undone.execute(
        "CREATE TABLE parts (thing integer REFERENCES things (id) DEFERRABLE INITIALLY DEFERRED)"
    )
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        await store(undone, "transaction")


async def test_an_error_that_is_swallowed_leaves_the_test_usable(undone: Database) -> None:
    postgresql = undone.url.get_backend_name() == "postgresql"
    failed = False
    try:
        async with undone.transaction():
            await undone.execute(INSERT, {"id": 1})
            with pytest.raises(Exception, match="nothing"):
                await undone.execute("SELECT nothing")
    except TransactionError:
        failed = True
    assert failed == postgresql
    assert await undone.fetch_val(COUNT) == (0 if postgresql else 1)
    async with undone.session.begin() as session:
        await session.execute(things.insert().values(id=9))
    assert await undone.fetch_val(COUNT) == (1 if postgresql else 2)


@pytest.mark.parametrize("how", ["an engine's", "a session's", "that of the handle's engine"])
async def test_autocommit_is_a_savepoint_and_undone(any_database: Database, how: str) -> None:
    await any_database.execute("CREATE TABLE things (id integer PRIMARY KEY)")
    async with Database(
        engine=create_async_engine(any_database.url, isolation_level="AUTOCOMMIT")
    ) as made:
        handle = made if how.startswith("that") else any_database
        with handle.force_rollback():
            engine = handle.engine.execution_options(isolation_level="AUTOCOMMIT")
            for _ in range(2):
                async with handle.session(bind=engine) as session:
                    await session.execute(things.insert().values(id=1))
                assert await handle.fetch_val(COUNT) == 0
            if how.startswith("a session's"):
                async with handle.session.begin(bind=engine) as session:
                    await session.execute(things.insert().values(id=1))
            else:
                async with (engine if handle is any_database else handle.engine).begin() as one:
                    await one.execute(things.insert().values(id=1))
            await handle.execute(INSERT, {"id": 2})
            async with handle.transaction():
                await handle.execute(INSERT, {"id": 3})
            assert await handle.fetch_val(COUNT) == 3
        assert await handle.fetch_val(COUNT) == 0
    assert await any_database.fetch_val(COUNT) == 0
    await any_database.disconnect()
