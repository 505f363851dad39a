"""Advanced Alchemy's repositories, services and configuration on the handle, as its page shows them."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db import Database, PoolLimits, configure
from tests.conftest import SCOPE
from tests.integrations.pages import module_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    # Advanced Alchemy on SQLAlchemy 2.1, at its first import.
    pytest.mark.filterwarnings("ignore:The declarative_mixin decorator:DeprecationWarning"),
    # Advanced Alchemy 1.10, the last for SQLAlchemy 2.0.38, of itself.
    pytest.mark.filterwarnings("ignore:.*function 'set_async_context':DeprecationWarning"),
]


@pytest.fixture
def page(database: Database) -> Iterator[Any]:
    """The page's module, on an empty database behind `get_database`, its tables made."""
    db = configure(database.url, pool=PoolLimits(max_connections=4), scope=SCOPE)
    module = module_of("advanced-alchemy")
    asyncio.run(module.create_tables())
    yield module
    assert (db.stats().in_use, db.stats().waiting) == (0, 0)
    asyncio.run(db.disconnect())


def test_a_repository_works_in_loop_after_loop(page: Any) -> None:
    assert [asyncio.run(page.spoke("Ada")) for _ in range(4)] == [1, 2, 3, 4]
    if SCOPE != "loop":
        assert page.get_database().stats().opened == 1


def test_repositories_of_threads_and_tasks_share_the_connections(page: Any) -> None:
    async def several(number: int) -> list[int]:
        return list(await asyncio.gather(*(page.spoke(f"{number}-{n}") for n in range(6))))

    with ThreadPoolExecutor(4) as threads:
        counts = list(threads.map(lambda n: asyncio.run(several(n)), range(4)))

    assert counts == [[1] * 6] * 4
    assert len(asyncio.run(page.names())) == 24


async def test_a_repository_in_a_transaction_is_undone_with_it(page: Any) -> None:
    db = page.get_database()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with db.transaction():
            await db.execute("INSERT INTO demo_speaker (name, turns) VALUES ('by text', 0)")
            async with db.session.begin() as session:
                service = page.SpeakerService(session=session)
                await service.create_many([{"name": "Ada"}, {"name": "Bo"}])
                assert await service.count() == 3
            raise ZeroDivisionError

    assert await page.names() == []


async def test_an_error_of_a_repository_undoes_its_session_alone(page: Any) -> None:
    from advanced_alchemy.exceptions import IntegrityError

    db = page.get_database()
    async with db.transaction():
        await db.execute("INSERT INTO demo_speaker (name, turns) VALUES ('Ada', 0)")
        with pytest.raises(IntegrityError):
            async with db.session.begin() as session:
                await page.SpeakerService(session=session).create({"name": "Ada"})

    assert await page.names() == ["Ada"]


@pytest.mark.parametrize("given", ["session_maker", "engine_instance"])
def test_a_configuration_works_in_loop_after_loop(page: Any, given: str) -> None:
    from advanced_alchemy.config import SQLAlchemyAsyncConfig

    db = page.get_database()
    value = db.session if given == "session_maker" else db.engine
    config = SQLAlchemyAsyncConfig(**{given: value})

    async def add(number: int) -> int:
        async with config.get_session() as session:
            service = page.SpeakerService(session=session)
            await service.create({"name": f"{number}"}, auto_commit=True)
            return int(await service.count())

    assert [asyncio.run(add(n)) for n in range(4)] == [1, 2, 3, 4]
    if SCOPE != "loop":
        assert db.stats().opened == 1


@pytest.mark.parametrize("given", ["session_maker", "engine_instance"])
def test_session_maker_and_engine_go_through_a_fork(page: Any, given: str) -> None:
    from advanced_alchemy.config import SQLAlchemyAsyncConfig

    db = page.get_database()
    config = SQLAlchemyAsyncConfig(session_maker=db.session)
    if given == "engine_instance":
        config = SQLAlchemyAsyncConfig(engine_instance=db.engine)

    async def count() -> int:
        async with config.get_session() as session:
            return int(await page.Speakers(session=session).count())

    def in_child() -> None:
        assert asyncio.run(count()) == 1

    asyncio.run(page.spoke("Ada"))
    assert asyncio.run(count()) == 1
    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    child.join()

    assert child.exitcode == 0
    assert asyncio.run(count()) == 1
