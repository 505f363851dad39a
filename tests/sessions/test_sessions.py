"""Sessions of SQLAlchemy: real transactions, in every loop, joined to the transaction of their task."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from loopsafe_db import Database
from loopsafe_db.errors import ForeignLoopError
from loopsafe_db.testing.conformance import SLOW
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Titles = Callable[[], Awaitable[set[str]]]


class Base(AsyncAttrs, DeclarativeBase):
    pass


class Meeting(Base):
    __tablename__ = "meetings"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(unique=True)
    turns: Mapped[list[Turn]] = relationship(back_populates="meeting")


class Turn(Base):
    __tablename__ = "turns"
    id: Mapped[int] = mapped_column(primary_key=True)
    speaker: Mapped[str]
    meeting_id: Mapped[int] = mapped_column(sa.ForeignKey("meetings.id"))
    meeting: Mapped[Meeting] = relationship(back_populates="turns")


async def create_tables(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


@pytest.fixture
async def titles(database: Database) -> Titles:
    """Give what another handle sees of the meetings: only what is committed."""
    await create_tables(database)
    other = Database(database.url, scope=SCOPE)

    async def look() -> set[str]:
        return {row.title for row in await other.fetch_all("SELECT title FROM meetings")}

    return look


async def test_a_session_commits_what_it_is_told_to(database: Database, titles: Titles) -> None:
    async with database.session() as session:
        session.add(Meeting(title="kept"))
        await session.commit()
        session.add(Meeting(title="dropped"))
        await session.flush()

    assert await titles() == {"kept"}
    assert database.stats().in_use == 0


async def test_a_session_s_block_is_all_or_nothing(database: Database, titles: Titles) -> None:
    async with database.session.begin() as session:
        session.add(Meeting(title="kept"))
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with database.session.begin() as session:
            session.add(Meeting(title="dropped"))
            await session.flush()
            raise ZeroDivisionError

    assert await titles() == {"kept"}
    assert database.stats().in_use == 0


async def test_objects_stay_readable_after_a_commit(database: Database, titles: Titles) -> None:
    async with database.session() as session:
        session.add(meeting := Meeting(title="standup"))
        await session.commit()

    assert (meeting.id, meeting.title) == (1, "standup")


async def test_attributes_and_streams_are_awaited(database: Database, titles: Titles) -> None:
    async with database.session.begin() as session:
        turns = [Turn(speaker=name) for name in ("Ada", "Bo")]
        session.add(Meeting(title="standup", turns=turns))
    async with database.session() as session:
        meeting = await session.scalar(sa.select(Meeting))
        assert meeting is not None
        assert {turn.speaker for turn in await meeting.awaitable_attrs.turns} == {"Ada", "Bo"}
        result = await session.stream(sa.select(Turn.speaker).order_by(Turn.speaker))
        assert [row.speaker async for row in result] == ["Ada", "Bo"]


async def test_sessions_of_one_gather_have_a_connection_each(
    database: Database, titles: Titles
) -> None:
    async def add(title: str) -> None:
        async with database.session.begin() as session:
            await session.execute(sa.text("SELECT 1"))
            session.add(Meeting(title=title))

    await asyncio.gather(*(add(f"meeting {n}") for n in range(5)))

    assert len(await titles()) == 5


def test_sessions_work_in_loop_after_loop(database: Database) -> None:
    asyncio.run(create_tables(database))

    async def add(n: int) -> int:
        async with database.session.begin() as session:
            session.add(Meeting(title=f"meeting {n}"))
        async with database.session() as session:
            return await session.scalar(sa.select(sa.func.count(Meeting.id))) or 0

    assert [asyncio.run(add(n)) for n in range(5)] == [1, 2, 3, 4, 5]
    opened = database.stats().opened
    assert opened == 1 if SCOPE != "loop" else opened >= 5


async def test_a_session_takes_the_options_of_sqlalchemy(database: Database) -> None:
    class Loud(AsyncSession):
        pass

    class LoudSync(Session):
        pass

    async with database.session(
        class_=Loud, sync_session_class=LoudSync, autoflush=False, info={"why": "test"}
    ) as session:
        assert isinstance(session, Loud)
        assert isinstance(session.sync_session, LoudSync)
        assert (session.autoflush, session.info) == (False, {"why": "test"})


async def test_events_of_engine_and_session_are_heard(database: Database, titles: Titles) -> None:
    heard = []
    engine = database.engine.sync_engine

    def before(*args: object) -> None:
        heard.append("statement")

    sa.event.listen(engine, "before_cursor_execute", before)
    try:
        async with database.session() as session:
            sa.event.listen(session.sync_session, "after_commit", lambda _: heard.append("commit"))
            await session.execute(sa.text("SELECT 1"))
            await session.commit()
    finally:
        sa.event.remove(engine, "before_cursor_execute", before)

    assert heard == ["statement", "commit"]


# -- joined to a transaction


async def test_a_session_in_a_transaction_is_part_of_it(database: Database, titles: Titles) -> None:
    async with database.transaction():
        async with database.session.begin() as session:
            session.add(Meeting(title="by session"))
        assert await database.fetch_val("SELECT title FROM meetings") == "by session"
        await database.execute("INSERT INTO meetings (title) VALUES ('by text')")
        async with database.session() as session:
            assert set(await session.scalars(sa.select(Meeting.title))) == {"by session", "by text"}
        assert await titles() == set()

    assert await titles() == {"by session", "by text"}


async def test_what_a_joined_session_committed_goes_with_its_transaction(
    database: Database, titles: Titles
) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with database.transaction():
            async with database.session() as session:
                session.add(Meeting(title="dropped"))
                await session.commit()
            raise ZeroDivisionError

    assert await titles() == set()
    await database.execute("INSERT INTO meetings (title) VALUES ('later')")
    assert await titles() == {"later"}


async def test_a_joined_session_that_fails_undoes_itself_alone(
    database: Database, titles: Titles
) -> None:
    async with database.transaction():
        await database.execute("INSERT INTO meetings (title) VALUES ('kept')")
        with pytest.raises(sa.exc.IntegrityError):  # noqa: PT012
            async with database.session.begin() as session:
                session.add(Meeting(title="dropped"))
                await session.flush()
                session.add(Meeting(title="kept"))
        await database.execute("INSERT INTO meetings (title) VALUES ('kept, too')")

    assert await titles() == {"kept", "kept, too"}


async def test_a_session_of_another_task_does_not_join(database: Database, titles: Titles) -> None:
    # in SQLite only what says that it reads does not wait for the transaction
    elsewhere = {"isolation_level": "DEFERRED"} if database.url.drivername == "sqlite" else {}

    async def count(**options: Any) -> int | None:
        async with database.session(**options) as session:
            found: int | None = await session.scalar(sa.select(sa.func.count(Meeting.id)))
            return found

    async with database.transaction():
        await database.execute(sa.insert(Meeting).values(title="not yet"))
        engine = database.engine.execution_options(**elsewhere)
        assert await asyncio.create_task(count(bind=engine)) == 0
        assert await count() == 1


async def test_a_session_that_outlives_its_transaction_is_refused(
    database: Database, titles: Titles
) -> None:
    async with database.transaction():
        session = database.session()

    with pytest.raises(sa.exc.ResourceClosedError):
        await session.execute(sa.text("SELECT 1"))
    await session.close()
    assert database.stats().in_use == 0


async def test_a_cancelled_session_leaves_nothing_behind(
    database: Database, titles: Titles
) -> None:
    async def add(*, joined: bool) -> None:
        async with database.session.begin() as session:
            session.add(Meeting(title=f"dropped {joined}"))
            await session.flush()
            await asyncio.sleep(60)

    async def add_in_transaction() -> None:
        async with database.transaction():
            await add(joined=True)

    for job in (add(joined=False), add_in_transaction()):
        task = asyncio.create_task(job)
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert await titles() == set()
    assert database.stats().in_use == 0
    await database.execute("INSERT INTO meetings (title) VALUES ('later')")


@pytest.mark.skipif(sa.__version__.startswith("2.0."), reason="2.1 waits for its end")
async def test_a_session_that_is_cut_off_in_a_transaction_undoes_its_own_work(
    database: Database, titles: Titles
) -> None:
    async with database.transaction():
        await database.execute("INSERT INTO meetings (title) VALUES ('before')")
        with pytest.raises(TimeoutError):  # noqa: PT012
            async with asyncio.timeout(0.2), database.session() as session:
                session.add(Meeting(title="dropped"))
                await session.flush()
                await session.execute(sa.text(SLOW[database.url.get_backend_name()]))
        await database.execute("INSERT INTO meetings (title) VALUES ('after')")
    assert await titles() == {"before", "after"}


async def test_sessions_that_are_cut_off_at_whatever_moment_lose_nothing(
    database: Database, titles: Titles
) -> None:
    kept = set()

    async def add(number: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(number % 40 / 1000):
                async with database.session.begin() as session:
                    session.add(Meeting(title=str(number)))
                    await session.flush()
                kept.add(str(number))

    await asyncio.gather(*map(add, range(120)))
    assert kept <= await titles()
    assert database.stats().in_use == 0


# -- where it does not belong


def test_a_session_in_use_is_refused_in_another_loop(database: Database) -> None:
    async def begin() -> tuple[AsyncSession, Meeting]:
        await create_tables(database)
        async with database.session.begin() as session:
            session.add(Meeting(title="standup"))
        session = database.session()
        return session, (await session.scalars(sa.select(Meeting))).one()

    async def load(meeting: Meeting) -> None:
        await meeting.awaitable_attrs.turns

    first, second = asyncio.Runner(), asyncio.Runner()
    with first, second:
        session, meeting = first.run(begin())
        with pytest.raises(ForeignLoopError):
            second.run(load(meeting))
        first.run(session.close())
        assert first.run(database.fetch_val("SELECT 1")) == 1


@pytest.mark.filterwarnings("ignore:a connection was not given back:ResourceWarning")
@pytest.mark.parametrize("kind", ["session", "connection"])
def test_what_is_kept_until_its_loop_is_closed_is_refused_in_the_next(
    database: Database, kind: str
) -> None:
    async def keep() -> AsyncSession | AsyncConnection:
        kept = database.session() if kind == "session" else database.engine.connect()
        if isinstance(kept, AsyncConnection):
            await kept.start()
        await kept.execute(sa.text("SELECT 1"))
        return kept

    async def use(kept: AsyncSession | AsyncConnection) -> None:
        await kept.execute(sa.text("SELECT 2"))

    with pytest.raises(ForeignLoopError, match=r"LDB101.*loop \d+ of process") as caught:
        asyncio.run(use(asyncio.run(keep())))
    assert caught.value.owner != caught.value.caller
    assert asyncio.run(database.fetch_val("SELECT 3")) == 3


def test_a_session_in_use_is_refused_in_a_forked_child(database: Database) -> None:
    async def main() -> int:
        await create_tables(database)
        async with database.session() as session:
            await session.execute(sa.text("SELECT 1"))
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    await session.execute(sa.text("SELECT 2"))
                except ForeignLoopError:
                    code = 0
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1])
            assert await session.scalar(sa.text("SELECT 3")) == 3
            return code

    assert asyncio.run(main()) == 0
