"""Whose configuration a handle works with: that of the newest block that overrides it, else its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import async_sessionmaker

from loopsafe_db import Database, configure, get_database
from loopsafe_db.testing.rollback import RolledBack
from loopsafe_db.testing.schemas import configured
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNT = "SELECT count(*) FROM things"
INSERT = "INSERT INTO things (id) VALUES (:id)"
things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))


@pytest.fixture
def written(any_database: Database) -> Database:
    """A handle whose table is there, and empty."""
    asyncio.run(any_database.execute("CREATE TABLE things (id integer PRIMARY KEY)"))
    return any_database


@pytest.fixture
def other(tmp_path: Path) -> Database:
    """Another database, with the same table."""
    other = Database(f"sqlite:///{tmp_path}/other.db", scope=SCOPE)
    asyncio.run(other.execute("CREATE TABLE things (id integer PRIMARY KEY)"))
    return other


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A name that no other test asks for."""
    name = request.node.name
    with ExitStack() as stack:
        yield name
        stack.enter_context(configured("sqlite://", name))


def insert(database: Database, number: int) -> None:
    asyncio.run(database.execute(INSERT, {"id": number}))


def kept(database: Database) -> list[Any]:
    """What is really there, as another handle sees it."""

    async def read() -> list[Any]:
        async with Database(database.url, scope="loop") as apart:
            return [row[0] for row in await apart.fetch_all("SELECT id FROM things ORDER BY id")]

    return asyncio.run(read())


@pytest.mark.parametrize("left_first", [0, 1])
def test_blocks_that_overlap_may_end_in_any_order(written: Database, left_first: int) -> None:
    blocks = [written.force_rollback(), written.force_rollback()]
    for block in blocks:
        block.__enter__()
    insert(written, 1)
    blocks.pop(left_first).__exit__(None, None, None)
    insert(written, 2)
    blocks.pop().__exit__(None, None, None)
    insert(written, 3)
    assert kept(written) == [3]


def test_blocks_of_threads_and_tasks_overlap_and_all_end(written: Database) -> None:
    threads, tasks, turns = 4, 3, 10
    start = threading.Barrier(threads)

    async def one() -> None:
        for _ in range(turns):
            with written.force_rollback():
                await asyncio.sleep(0)
                await written.fetch_val(COUNT)

    async def several() -> None:
        await asyncio.gather(*(one() for _ in range(tasks)))

    def in_thread() -> None:
        start.wait(20)
        asyncio.run(several())

    running = [threading.Thread(target=in_thread) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    insert(written, 1)
    assert kept(written) == [1]


def test_who_configures_in_a_block_changes_what_comes_after_it(
    written: Database, other: Database, name: str
) -> None:
    handle = configure(written.url, name=name, scope=SCOPE)
    with handle.force_rollback():
        configure(other.url, name=name, scope=SCOPE)
        insert(handle, 1)
        assert (kept(written), kept(other)) == ([], [])
        assert asyncio.run(get_database(name).fetch_val(COUNT)) == 1
    insert(handle, 2)
    assert (kept(written), kept(other)) == ([], [2])


def test_who_configures_in_a_test_is_undone_with_it(
    written: Database, other: Database, name: str
) -> None:
    url = str(written.url)
    with configured(url, name) as handle:
        rolled_back = RolledBack(handle)
        for number in range(2):
            with rolled_back:
                configure(other.url, name=name, scope=SCOPE)
                insert(get_database(name), number)
                assert asyncio.run(handle.fetch_val(COUNT)) == 1
        rolled_back.close()
        insert(handle, 7)
    assert (kept(written), kept(other)) == ([7], [])


def test_a_block_that_is_left_late_does_not_disturb_a_test(written: Database) -> None:
    rolled_back = RolledBack(written)
    block = written.force_rollback()
    with rolled_back:
        block.__enter__()
    with rolled_back:
        block.__exit__(None, None, None)
        insert(written, 1)
        assert rolled_back.statements
    rolled_back.close()
    insert(written, 2)
    assert kept(written) == [2]


def test_what_is_kept_from_before_a_block_works_in_it(written: Database) -> None:
    engine, maker = written.engine, written.session
    with_options = engine.execution_options(logging_token="kept")
    sessions = async_sessionmaker(engine)

    async def write(first: int) -> None:
        async with engine.begin() as connection:
            await connection.execute(things.insert().values(id=first))
        async with with_options.begin() as connection:
            await connection.execute(things.insert().values(id=first + 1))
        for number, session in enumerate((sessions(), maker()), 2):
            async with session.begin():
                await session.execute(things.insert().values(id=first + number))
            await session.close()
        assert await written.fetch_val(COUNT) == 4

    with written.force_rollback():
        asyncio.run(write(0))
    assert kept(written) == []
    asyncio.run(write(10))
    assert kept(written) == [10, 11, 12, 13]


def test_reading_in_a_block_sees_what_the_block_wrote(written: Database, other: Database) -> None:
    handle = Database(written.url, replicas=[other.url], scope=SCOPE)
    insert(other, 9)
    with handle.force_rollback():
        insert(handle, 1)
        insert(handle, 2)
        assert asyncio.run(handle.read().fetch_val(COUNT)) == 2
    assert asyncio.run(handle.read().fetch_val(COUNT)) == 1
    assert kept(other) == [9]


def test_a_block_leaves_no_connection_behind(written: Database) -> None:
    with written.force_rollback():
        asyncio.run(written.fetch_val(COUNT))
        stats = written.stats
        assert stats().idle == 1
        pool = written._pool()  # noqa: SLF001
    assert (pool.stats().idle, pool.stats().in_use) == (0, 0)


def test_an_application_that_configures_at_start_up(
    written: Database, other: Database, name: str
) -> None:
    """As `configure` in a lifespan does, in a thread of its own, while the test goes on."""
    handle = configure(written.url, name=name, scope=SCOPE)
    with handle.force_rollback():
        thread = threading.Thread(target=partial(configure, other.url, name=name, scope=SCOPE))
        thread.start()
        thread.join()
        insert(get_database(name), 1)
    assert (kept(written), kept(other)) == ([], [])


def test_a_block_in_a_block_sees_what_was_done_and_undoes_its_own(written: Database) -> None:
    def count() -> int:
        return int(asyncio.run(written.fetch_val(COUNT)))

    counts = []
    with written.force_rollback():
        insert(written, 1)
        with written.force_rollback():
            insert(written, 2)
            with written.force_rollback():
                pass
            with written.force_rollback():
                insert(written, 3)
                counts.append(count())
            counts.append(count())
        counts.append(count())
        insert(written, 3)
        counts.append(count())
    assert (counts, kept(written)) == ([3, 2, 1, 2], [])


def test_a_block_in_a_test_undoes_its_own(written: Database) -> None:
    rolled_back = RolledBack(written)
    for _ in range(2):
        with rolled_back:
            insert(written, 1)
            with written.force_rollback():
                insert(written, 2)
            assert asyncio.run(written.fetch_val(COUNT)) == 1
    rolled_back.close()
    assert kept(written) == []
