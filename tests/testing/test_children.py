"""A function called in a child process: its result and its exception come home, and nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import psutil
import pytest

from loopsafe_db import LoopKey
from loopsafe_db.errors import ForeignLoopError, MisuseError
from loopsafe_db.testing import START_METHODS, ChildError, ChildTimeout, StartMethod, call_in_child

if TYPE_CHECKING:
    from collections.abc import Callable

FORKS: tuple[StartMethod, ...] = ("fork", "os.fork")


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> StartMethod:
    method: StartMethod = request.param
    return method


@pytest.fixture(params=FORKS)
def fork(request: pytest.FixtureRequest) -> StartMethod:
    method: StartMethod = request.param
    return method


class Stubborn(Exception):
    """Survives no pickle: its arguments are not those of its constructor."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} {number}")


def parent_and_sum(first: int, second: int) -> tuple[int, int, int]:
    return os.getpid(), os.getppid(), first + second


async def add(first: int, second: int) -> int:
    await asyncio.sleep(0)
    return first + second


def refuse() -> NoReturn:
    raise ForeignLoopError("it", LoopKey(1, 2), LoopKey(3, 4))


def end_as(action: str) -> NoReturn:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "_exit":
        os._exit(0)
    sys.exit(3)


def nothing() -> None: ...


def sleep_for_ever() -> None:
    threading.Event().wait()


def leave_a_thread() -> str:
    """The interpreter waits for such a thread before it ends."""
    threading.Thread(target=sleep_for_ever).start()
    return "returned"


class Leftovers(NamedTuple):
    """Descriptors, child processes (zombies too) and threads of this process."""

    descriptors: int
    children: set[int]
    threads: set[str]

    @classmethod
    def now(cls) -> Leftovers:
        gc.collect()
        here = psutil.Process()
        children = {child.pid for child in here.children()}
        # By name: our reaper, where a handle of an earlier test has something idle, begins anew after each fork.
        return cls(here.num_fds(), children, {thread.name for thread in threading.enumerate()})

    def are_all(self) -> bool:
        """Whether there is nothing now that was not there; what an earlier test left may go meanwhile."""
        return all(now <= then for now, then in zip(Leftovers.now(), self, strict=True))  # type: ignore[operator]


def test_the_result_of_a_function_comes_home(start_method: StartMethod) -> None:
    pid, parent, total = call_in_child(parent_and_sum, 2, 3, start_method=start_method)
    assert total == 5
    assert pid != os.getpid()
    if start_method != "forkserver":  # whose children are the server's
        assert parent == os.getpid()


def test_a_coroutine_function_gets_a_loop_of_the_child(start_method: StartMethod) -> None:
    assert call_in_child(add, 2, 3, start_method=start_method) == 5


async def test_a_child_forked_inside_a_coroutine_runs_a_loop_of_its_own(fork: StartMethod) -> None:
    assert call_in_child(add, 2, 3, start_method=fork) == 5


def test_an_exception_comes_home_with_the_place_where_it_was_raised(
    start_method: StartMethod,
) -> None:
    with pytest.raises(ForeignLoopError, match="HINT") as caught:
        call_in_child(refuse, start_method=start_method)
    assert caught.value.owner == LoopKey(1, 2)
    assert "in refuse" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("action", "end", "code"),
    [("kill", "killed by SIGKILL", -9), ("_exit", "exited with code 0", 0), ("exit", "code 3", 3)],
)
def test_a_child_that_dies_says_how(
    start_method: StartMethod, action: str, end: str, code: int
) -> None:
    with pytest.raises(ChildError, match=f"end_as, .*{end} before it had a result") as caught:
        call_in_child(end_as, action, start_method=start_method)
    assert caught.value.exit_code == code


def test_a_child_that_hangs_is_killed(start_method: StartMethod) -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(ChildTimeout, match=r"did not end within 0\.2 s, and was killed") as caught:
        call_in_child(sleep_for_ever, start_method=start_method, timeout=0.2)
    assert isinstance(caught.value, TimeoutError)
    assert set(multiprocessing.active_children()) <= before


def test_a_result_does_not_hide_a_child_that_cannot_end() -> None:
    with pytest.raises(ChildTimeout, match=r"leave_a_thread, .* returned, then did not end"):
        call_in_child(leave_a_thread, timeout=2)


def test_an_exception_is_raised_though_the_child_cannot_end() -> None:
    def raise_beside_a_thread() -> NoReturn:
        leave_a_thread()
        raise KeyError("it")

    with pytest.raises(KeyError) as caught:
        call_in_child(raise_beside_a_thread, timeout=2)
    assert caught.value.__notes__ == ["the child then did not end within 2 s, and was killed,"]


def test_a_fork_takes_lambdas_and_closures(fork: StartMethod) -> None:
    held = threading.Lock()  # cannot be pickled
    assert call_in_child(lambda: held.locked(), start_method=fork) is False


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_a_fresh_child_cannot_be_given_is_refused(method: StartMethod) -> None:
    with pytest.raises(
        MisuseError, match=r"cannot be sent to a child of .*\nHINT: .*os\.fork"
    ) as caught:
        call_in_child(lambda: 1, start_method=method)
    assert caught.value.__cause__ is not None


def test_a_result_that_cannot_be_pickled_is_named(fork: StartMethod) -> None:
    with pytest.raises(ChildError, match=r"cannot be pickled: .*lock"):
        call_in_child(threading.Lock, start_method=fork)


def test_an_exception_that_cannot_be_pickled_is_told_of(fork: StartMethod) -> None:
    def raise_it() -> NoReturn:
        raise Stubborn("it", 7)

    with pytest.raises(ChildError, match=r"raised Stubborn: it 7; it cannot be pickled") as caught:
        call_in_child(raise_it, start_method=fork)
    assert "in raise_it" in str(caught.value.__cause__)


def test_what_is_no_exception_comes_home_too(fork: StartMethod) -> None:
    async def cancel() -> NoReturn:
        raise asyncio.CancelledError("it")

    with pytest.raises(asyncio.CancelledError):
        call_in_child(cancel, start_method=fork)


def test_a_result_larger_than_a_pipe_comes_home(start_method: StartMethod) -> None:
    assert call_in_child(bytes, 3_000_000, start_method=start_method) == bytes(3_000_000)


def test_a_death_is_noticed_though_a_grandchild_holds_the_pipe(fork: StartMethod) -> None:
    reading, writing = os.pipe()

    def die_beside_a_child() -> NoReturn:
        child = os.fork()
        if child == 0:
            signal.pause()
        os.write(writing, str(child).encode())
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    try:
        with pytest.raises(ChildError, match="killed by SIGKILL before it had a result"):
            call_in_child(die_beside_a_child, start_method=fork)
    finally:
        os.kill(int(os.read(reading, 20)), signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_what_is_printed_before_a_fork_is_printed_once() -> None:
    code = (
        "from loopsafe_db.testing import call_in_child; print('before');"
        "call_in_child(print, 'in the child', start_method='os.fork'); print('after')"
    )
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=buffered, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n") == ["before", "in the child", "after", ""]


@pytest.mark.parametrize("call", [nothing, refuse, lambda: end_as("kill"), sleep_for_ever])
def test_nothing_is_left_in_the_parent(fork: StartMethod, call: Callable[[], Any]) -> None:
    before, errors = Leftovers.now(), []
    for _ in range(3):
        try:
            call_in_child(call, start_method=fork, timeout=0.2 if call is sleep_for_ever else 20)
        except (ForeignLoopError, ChildError) as error:
            errors.append(error)  # its traceback keeps what nobody has closed
    assert before.are_all(), Leftovers.now()
    assert len(errors) == (0 if call is nothing else 3)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_nothing_is_left_but_what_multiprocessing_keeps(method: StartMethod) -> None:
    call_in_child(abs, 1, start_method=method)  # starts the fork server, the resource tracker
    before = Leftovers.now()
    call_in_child(abs, 1, start_method=method)
    assert before.are_all(), Leftovers.now()
