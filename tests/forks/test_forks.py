"""A fork at any moment: every answer belongs to its asker, and the parent never notices its child."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import loading, session

from loopsafe_db import Database, register_driver
from loopsafe_db.drivers.aiosqlite import AiosqliteDriver
from loopsafe_db.errors import ForeignLoopError
from tests.forks.staged_step import StagedStep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
MANY_FILES = 1024  # more than a test run has open


async def token(database: Database, text: str) -> str:
    return str(await database.fetch_val("SELECT CAST(:t AS text)", {"t": text}))


def ask(database: Database) -> None:
    for number in range(20):
        assert asyncio.run(token(database, f"child-{number}")) == f"child-{number}"


def queries(database: Database) -> None:
    ask(database)


def does_not(database: Database) -> None:
    pass


def exits(database: Database) -> None:
    sys.exit(0)


def is_killed(database: Database) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forks_again(database: Database) -> None:
    ask(database)
    child = os.fork()
    if child == 0:
        leave(queries, database)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ask(database)


def leave(action: Callable[[Database], None], database: Database) -> None:
    """End a forked child as its action says; a failure is exit code 9, not a second test run."""
    try:
        action(database)
    except SystemExit:
        raise
    except BaseException:  # noqa: BLE001 (it has to end here)
        sys.excepthook(*sys.exc_info())
        os._exit(9)
    os._exit(0)


ACTIONS = {
    "queries": (queries, 0),
    "does not": (does_not, 0),
    "is killed": (is_killed, -signal.SIGKILL),
    "forks again": (forks_again, 0),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_fork_inside_a_coroutine_while_the_parent_keeps_querying(
    database: Database, name: str
) -> None:
    action, expected = ACTIONS[name]
    if database.url.dialect == "sqlite" and expected == 0:
        pytest.skip("a file that is in use at a fork is refused in the child: test_sqlite")

    async def main() -> int:
        async with database.connection() as held:
            before = held.raw_connection
            assert await held.fetch_val("SELECT 1") == 1
            await token(database, "an idle connection, too")
            child = os.fork()
            if child == 0:
                leave(action, database)
            for number in range(200):
                assert await token(database, f"parent-{number}") == f"parent-{number}"
                assert await held.fetch_val("SELECT CAST(:n AS int)", {"n": number}) == number
            code = await asyncio.to_thread(
                lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            )
            # after the child's end: the sessions are there, and the selector still tells of them
            async with asyncio.timeout(5):
                assert await held.fetch_val("SELECT 5") == 5
            assert held.raw_connection is before
            return code

    assert asyncio.run(main()) == expected


@pytest.mark.parametrize("moment", ["before connect", "after connect"])
def test_fork_outside_a_loop(database: Database, moment: str) -> None:
    with asyncio.Runner() as runner:
        if moment == "after connect":
            assert runner.run(token(database, "x")) == "x"
        child = os.fork()
        if child == 0:
            leave(queries, database)
        for number in range(50):
            assert runner.run(token(database, f"p{number}")) == f"p{number}"
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert runner.run(token(database, "y")) == "y"


def test_fork_while_an_answer_is_under_way(postgres_url: str) -> None:
    database = Database(postgres_url)

    async def main() -> None:
        slow = [
            asyncio.create_task(database.fetch_val(f"SELECT {n} FROM pg_sleep(0.2)"))
            for n in range(3)
        ]
        while database.stats().opened < 3:  # noqa: ASYNC110 (no event tells of it)
            await asyncio.sleep(0)
        child = os.fork()
        if child == 0:
            leave(queries, database)
        assert await asyncio.gather(*slow) == [0, 1, 2]
        code = await asyncio.to_thread(lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert code == 0
        assert await token(database, "after") == "after"

    asyncio.run(main())
    assert database.stats().opened == 3


def test_an_engine_kept_over_a_fork_connects_anew_in_the_child(postgres_url: str) -> None:
    database = Database(postgres_url)

    async def ask_engine(engine: AsyncEngine) -> int:
        async with engine.connect() as connection:
            return int((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())

    def ask_in_child(_: Database) -> None:
        assert asyncio.run(ask_engine(kept)) == asyncio.run(ask_engine(database.engine)) != pid

    kept = database.engine
    pid = asyncio.run(ask_engine(kept))
    child = os.fork()
    if child == 0:
        leave(ask_in_child, database)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asyncio.run(ask_engine(kept)) == pid


def test_what_listens_to_an_engine_is_called_in_a_child_and_its_child(database: Database) -> None:
    heard: list[str] = []
    engine = database.engine.sync_engine
    for target, name in (
        (engine, "connect"),
        (engine, "checkout"),
        (engine, "begin"),
        (engine, "before_cursor_execute"),
        (engine, "handle_error"),
        (engine.dialect, "do_execute_no_params"),
    ):
        event.listen(target, name, lambda *_, name=name: heard.append(name))

    async def use() -> list[str]:
        heard.clear()
        async with database.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            with pytest.raises(DBAPIError):
                await connection.execute(text("SELECT no_such_column"))
        return sorted(heard)

    def use_in_child(_: Database) -> None:
        assert asyncio.run(use()) == expected
        child = os.fork()
        if child == 0:
            leave(use_in_its_child, database)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def use_in_its_child(_: Database) -> None:
        assert asyncio.run(use()) == expected

    expected = asyncio.run(use())
    assert expected.count("connect") == 1
    child = os.fork()
    if child == 0:
        leave(use_in_child, database)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_while_other_threads_query(postgres_url: str) -> None:
    # Not SQLite: its C library's own mutexes may be held by another thread at the fork, for good.
    database = Database(postgres_url)
    stop, failures = threading.Event(), []

    async def keep_asking() -> None:
        while not stop.is_set():
            name = threading.current_thread().name
            if await token(database, name) != name:
                failures.append(name)

    threads = [threading.Thread(target=lambda: asyncio.run(keep_asking())) for _ in range(3)]
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(5):
        child = os.fork()
        if child == 0:
            leave(queries, database)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for thread in threads:
        thread.join()
    assert (codes, failures) == ([0] * 5, [])


FORK_OF_C = """
import asyncio, ctypes, os
from loopsafe_db import get_database

db = get_database()
BACKEND = "SELECT pg_backend_pid()"
own = asyncio.run(db.fetch_val(BACKEND))
child = ctypes.PyDLL(None).fork()
if child == 0:
    code = 9
    try:
        seen = {asyncio.run(db.fetch_val(BACKEND)) for _ in range(5)}
        code = len(seen) + (own in seen)
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
assert asyncio.run(db.fetch_val(BACKEND)) == own
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's fork is called")
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_fork_that_runs_no_hook_of_pythons_is_noticed_too(
    driver: str, postgres_url: str, tmp_path: Path
) -> None:
    assert run_alone(["-c", FORK_OF_C], driver, postgres_url, tmp_path) == (0, "")


WARM = """
import asyncio, os
from loopsafe_db import get_database

db, importer = get_database(), os.getpid()

def backend():
    return asyncio.run(db.fetch_val("SELECT pg_backend_pid()"))

own = backend()

def work():
    assert os.getpid() != importer
    assert own != backend() == backend()
"""
PRELOAD = """
import multiprocessing

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    import warm

    children = [context.Process(target=warm.work) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert warm.own == warm.backend()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no forkserver")
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_workers_of_a_forkserver_that_has_queried_have_connections_of_their_own(
    driver: str, postgres_url: str, tmp_path: Path
) -> None:
    (tmp_path / "warm.py").write_text(WARM, encoding="utf-8")
    (tmp_path / "run.py").write_text(PRELOAD, encoding="utf-8")
    assert run_alone(["run.py"], driver, postgres_url, tmp_path) == (0, "")


def run_alone(arguments: list[str], driver: str, url: str, folder: Path) -> tuple[int, str]:
    """Run Python with warm connections, whatever this run is about; give its exit code, and what it wrote to stderr."""
    address = make_url(url).set(drivername=f"postgresql+{driver}")
    done = subprocess.run(
        [sys.executable, "-W", "always", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "LOOPSAFE_DB_SCOPE": "auto",
            "LOOPSAFE_DB_URL": address.render_as_string(hide_password=False),
            "PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing_children_use_the_handle_they_are_given(
    database: Database, method: str
) -> None:
    async def main() -> int | None:
        assert await token(database, "x") == "x"
        context: Any = multiprocessing.get_context(method)
        process = context.Process(target=ask, args=(database,))
        process.start()
        await asyncio.to_thread(process.join)
        assert await token(database, "y") == "y"
        return int(process.exitcode)

    assert asyncio.run(main()) == 0


def test_a_connection_used_in_a_child_names_both_processes(database: Database) -> None:
    async def main() -> int:
        async with database.connection() as held:
            child = os.fork()
            if child == 0:
                leave(lambda _: refused(held), database)
            code = await asyncio.to_thread(
                lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            )
            assert await held.fetch_val("SELECT 1") == 1
            return code

    def refused(held: Any) -> None:
        with pytest.raises(ForeignLoopError, match=f"process {os.getppid()}"):
            asyncio.run(held.fetch_val("SELECT 1"))

    assert asyncio.run(main()) == 0


def test_a_session_used_in_a_child_names_both_processes(database: Database) -> None:
    async def main() -> int:
        async with AsyncSession(database.engine) as session:
            assert (await session.execute(text("SELECT 1"))).scalar_one() == 1
            child = os.fork()
            if child == 0:
                leave(lambda _: refused(session), database)
            code = await asyncio.to_thread(
                lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            )
            assert (await session.execute(text("SELECT 2"))).scalar_one() == 2
            return code

    def refused(session: AsyncSession) -> None:
        with pytest.raises(
            (ForeignLoopError, StatementError), match=f"LDB101.*process {os.getppid()}"
        ):
            asyncio.run(session.execute(text("SELECT 1")))

    assert asyncio.run(main()) == 0


def test_a_child_does_not_keep_its_dead_parents_session(postgres_url: str) -> None:
    """The grandchild lives on; its parent, which had the session, is killed."""
    database, witness = Database(postgres_url), Database(postgres_url)
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:

        async def main() -> None:
            pid = await database.fetch_val("SELECT pg_backend_pid()")
            if os.fork() == 0:
                os.write(writing, f"{pid} {os.getpid()}".encode())
                signal.pause()
            signal.pause()

        leave(lambda _: asyncio.run(main()), database)
    backend, grandchild = map(int, os.read(reading, 100).split())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)

    async def gone() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"
        deadline = time.monotonic() + 10
        while await witness.fetch_val(query, {"pid": backend}):
            if time.monotonic() > deadline:
                return False
        return True

    try:
        assert asyncio.run(gone())
    finally:
        os.kill(grandchild, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_a_fork_waits_for_the_step_in_which_another_thread_opens_a_connection(
    tmp_path: Path,
) -> None:
    """What a C library has locked in that step would be locked in the child for ever."""
    step = StagedStep()

    class LockingDriver(AiosqliteDriver):
        async def connect(self, options: Any) -> Any:
            await asyncio.sleep(0)
            step.take()
            return await super().connect(options)

    register_driver("sqlite+locking", LockingDriver())
    database = Database(f"sqlite+locking:///{tmp_path}/test.db")

    assert step.is_whole_in_a_child(lambda: asyncio.run(token(database, "x")))


@pytest.mark.parametrize(
    "seconds", [0.1, 3.0], ids=["for a moment", "for longer than a fork waits"]
)
@pytest.mark.parametrize("counter", [session._new_sessionid, loading._new_runid])  # noqa: SLF001
def test_what_sqlalchemy_counts_under_a_lock_can_be_counted_in_a_child(
    counter: Callable[[], int], seconds: float, tmp_path: Path
) -> None:
    """A lock that another thread has at the fork would be locked in the child for ever."""
    closure: Any = counter.__closure__
    (lock,) = (cell.cell_contents for cell in closure if hasattr(cell.cell_contents, "acquire"))
    assert Database(f"sqlite:///{tmp_path}/test.db").engine is not None  # forks wait from now on
    lock.acquire()
    other = threading.Timer(seconds, lock.release)
    other.start()

    child = os.fork()
    if child == 0:
        signal.alarm(10)
        os._exit(counter() <= 0)
    other.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert counter() > 0


class Heard:
    """A socket that a loop listens on: whether it still hears of it tells whether a child has interfered."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.loop, self.event = runner.get_loop(), asyncio.Event()
        self.reader, self.writer = socket.socketpair()
        self.loop.add_reader(self.reader, self.event.set)

    def forget(self) -> None:
        """Do in a child what running the loop down would: on a shared epoll that is the parent's, too."""
        self.loop.remove_reader(self.reader)

    async def __call__(self) -> bool:
        with self.reader, self.writer:
            self.writer.send(b"x")
            try:
                async with asyncio.timeout(5):
                    await self.event.wait()
            finally:
                self.forget()
        return True


def test_a_fork_at_any_moment_of_a_loops_end_parts_the_others_from_the_parent(
    postgres_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    database = Database(postgres_url)
    codes: list[int] = []

    def fork_at_lines(frame: FrameType, happened: str, _: object) -> Any:
        if happened == "line":
            child = os.fork()
            if child == 0:
                heard.forget()
                os._exit(0)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return fork_at_lines

    def trace(frame: FrameType, _: str, __: object) -> Any:
        code = frame.f_code
        closes = code.co_name in ("close", "_close_self_pipe") and "asyncio" in code.co_filename
        return fork_at_lines if closes else None

    ending, going_on = (asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) for _ in range(2))
    with going_on:
        for runner in (ending, going_on):
            assert runner.run(token(database, "x")) == "x"
        heard, before = Heard(going_on), sys.gettrace()
        sys.settrace(trace)
        try:
            ending.close()
        finally:
            sys.settrace(before)
        assert len(codes) > 20
        assert set(codes) == {0}
        assert going_on.run(heard())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_a_fork_where_no_file_may_be_opened_lets_go_of_sockets_and_loops_all_the_same(
    database: Database, loop_factory: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        before, heard = sockets(), Heard(runner)
        assert runner.run(token(database, "x")) == "x"
        inherited = sockets() - before - {os.fstat(heard.reader.fileno()).st_ino}
        with no_free_descriptor():
            child = os.fork()
            if child == 0:
                heard.forget()
                os._exit(len(sockets() & inherited) - 1)  # the other end of `heard` stays
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert runner.run(heard())
        assert runner.run(token(database, "y")) == "y"
    assert capfd.readouterr().err == ""


def sockets() -> set[int]:
    """Give the inodes of the sockets that this process has, opening nothing."""
    found = set()
    for fd in range(MANY_FILES):
        with suppress(OSError):
            status = os.fstat(fd)
            if stat.S_ISSOCK(status.st_mode):
                found.add(status.st_ino)
    return found


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    import resource

    limits, opened = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (MANY_FILES, limits[1]))
    try:
        with suppress(OSError):
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
