"""A process is told from its parent, whoever forked it, and where no page of memory tells them apart."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db._runtime import pids
from loopsafe_db.errors import ForkedFileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopsafe_db import Database

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def fork_in_c() -> int:
    """Fork as uWSGI does: Python learns nothing of it. Threads come to rest first: none may ask for the GIL then."""
    time.sleep(0.1)
    return ctypes.PyDLL(None).fork()  # type: ignore[no-any-return]


def in_thread(work: Callable[[], bool]) -> bool:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found == [True]


@pytest.mark.parametrize("fork", [os.fork, fork_in_c])
def test_a_child_and_its_child_are_told_from_their_parents(fork: Callable[[], int]) -> None:
    def is_told(forks: int) -> bool:
        seen = pids.getpid() == os.getpid()
        if not forks:
            return seen
        child = fork()
        if child == 0:
            os._exit(0 if is_told(forks - 1) else 9)
        return os.waitpid(child, 0)[1] == 0 and seen and pids.getpid() == os.getpid()

    assert is_told(2)
    if fork is os.fork:
        assert in_thread(lambda: is_told(2))


def test_a_child_forked_in_c_uses_no_connection_of_its_parent(database: Database) -> None:
    is_sqlite = database.url.dialect == "sqlite"

    async def session() -> Any:
        return await database.fetch_val("SELECT 7" if is_sqlite else "SELECT pg_backend_pid()")

    def is_another(before: int) -> bool:
        try:
            return bool(asyncio.run(session()) != before)
        except ForkedFileError:
            return is_sqlite  # nobody has closed it before such a fork

    with asyncio.Runner() as runner:
        before = runner.run(session())
        child = fork_in_c()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # on its parent's connection, it may wait for ever
            os._exit(0 if is_another(before) else 9)
        assert os.waitpid(child, 0)[1] == 0
        assert runner.run(session()) == before
        runner.run(database.disconnect())


class Kernel:
    """A page of one that knows no such advice, or says yes to any: old ones, and emulators."""

    def __init__(self, answer: type[OSError] | None) -> None:
        self.answer = answer

    def madvise(self, _: int) -> None:
        if self.answer:
            raise self.answer


@pytest.mark.parametrize("answer", [OSError, None])
def test_without_such_a_page_the_system_is_asked(
    monkeypatch: pytest.MonkeyPatch, answer: type[OSError] | None
) -> None:
    monkeypatch.setattr(mmap, "mmap", lambda *_, **__: Kernel(answer))

    assert pids.ask(pids.make_page()) is os.getpid
