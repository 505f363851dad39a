"""Run a function in a child process, and have its result or its exception here.

::

    assert call_in_child(backend_pid, database) != asyncio.run(backend_pid(database))

The child inherits, or does not inherit, what its start method says: ``fork`` and ``os.fork`` copy this process
with its open sockets and loops, which is where libraries go wrong; ``forkserver`` and ``spawn`` begin afresh.
"""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from contextlib import closing
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Protocol,
    TypeVar,
    TypeVarTuple,
    cast,
    get_args,
    overload,
)

from loopsafe_db.errors import LoopsafeError, MisuseError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection

__all__ = ["START_METHODS", "ChildError", "ChildTimeout", "StartMethod", "call_in_child"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

StartMethod = Literal["fork", "forkserver", "spawn", "os.fork"]
START_METHODS: tuple[StartMethod, ...] = tuple(
    method
    for method in get_args(StartMethod)
    if method.removeprefix("os.") in multiprocessing.get_all_start_methods()
)
"""The ways to start a child that this platform has."""

_LOOK_AGAIN = 0.02  # seconds; only a death without a last word is noticed by looking


class ChildError(LoopsafeError, RuntimeError):
    """A child process has no result to give: it died, or the result cannot travel.

    Attributes:
        text: What happened.
        exit_code: As `multiprocessing.Process.exitcode`: negative for a signal; ``None`` if the child had to be
            killed, or lived.
    """

    code = "LDB501"
    text: str
    exit_code: int | None

    def __init__(self, text: str, exit_code: int | None = None) -> None:
        super().__init__(text)
        self.text, self.exit_code = text, exit_code


class ChildTimeout(ChildError, TimeoutError):
    """A child process did not end in time, and was killed."""

    code = "LDB502"


class ChildTraceback(Exception):
    """Where in the child an exception came from; the ``__cause__`` of the exception here."""

    def __str__(self) -> str:
        return f"in the child process:\n\n{self.args[0]}"


@overload
def call_in_child(
    function: Callable[[*Ts], Awaitable[T]],
    *args: *Ts,
    start_method: StartMethod = ...,
    timeout: float = ...,
) -> T: ...


@overload
def call_in_child(
    function: Callable[[*Ts], T],
    *args: *Ts,
    start_method: StartMethod = ...,
    timeout: float = ...,
) -> T: ...


def call_in_child(
    function: Callable[[*Ts], Any],
    *args: *Ts,
    start_method: StartMethod = "fork",
    timeout: float = 30.0,
) -> Any:
    """Call a function in a child process; its result.

    It blocks, and nothing of the child is left when it returns: no zombie, descriptor or thread. (What `forkserver`
    and `spawn` keep for the process's whole life, multiprocessing keeps.) Children of the child are its own affair.

    Args:
        function: Sync, or async: then it runs in an `asyncio.run` of the child.
        *args: For ``fork`` and ``os.fork`` anything; else function and arguments have to be picklable.
        start_method: A start method of `multiprocessing`; or ``os.fork``, whose child ends by ``os._exit``
            without multiprocessing's clean-up. Both forks also take lambdas and closures.
        timeout: Seconds until the child has to have ended; then it is killed.

    Raises:
        ChildError: The child was killed, or exited, before the function had returned, or failed while it ended; or
            the result cannot be pickled.
        ChildTimeout: The child did not end in time, with or without a result.
        MisuseError: Function or arguments cannot be sent to a child that starts afresh.
        BaseException: Whatever the function raised, with the child's traceback as ``__cause__``; `ChildError` in
            its stead if it cannot be pickled.
    """
    name = getattr(function, "__qualname__", repr(function))
    what = f"{name}, called in a child process by {start_method},"
    deadline = time.monotonic() + timeout
    reader, writer = multiprocessing.Pipe(duplex=False)
    with closing(reader):
        with closing(writer):
            child = _start(start_method, reader, writer, function, args)
        try:
            answer = _receive(child, reader, deadline)
            exit_code = _wait_for_end(child, deadline)
        finally:
            _bury(child)
    return _unpack(what, answer, exit_code, timeout)


class _Child(Protocol):
    """A running child process, as `multiprocessing.Process` has it."""

    @property
    def exitcode(self) -> int | None: ...
    def kill(self) -> None: ...
    def join(self) -> None: ...
    def close(self) -> None: ...


class _ForkedChild:
    """A child process of ``os.fork`` with the face of a `multiprocessing.Process`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._exit_code: int | None = None

    @property
    def exitcode(self) -> int | None:
        if self._exit_code is None:
            self._wait(os.WNOHANG)
        return self._exit_code

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def join(self) -> None:
        if self._exit_code is None:
            self._wait(0)

    def close(self) -> None: ...

    def _wait(self, options: int) -> None:
        pid, status = os.waitpid(self._pid, options)
        if pid:
            self._exit_code = os.waitstatus_to_exitcode(status)


def _start(
    start_method: StartMethod,
    reader: Connection,
    writer: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> _Child:
    if start_method == "os.fork":
        return _fork(reader, writer, function, args)
    context: Any = multiprocessing.get_context(start_method)
    process = context.Process(target=_answer, args=(writer, function, args))
    try:
        process.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise MisuseError(
            f"{function!r} and its arguments cannot be sent to a child of {start_method}: {error}\n"
            'HINT: call a function of a module, or fork: start_method="os.fork"'
        ) from error
    return cast("_Child", process)


def _fork(
    reader: Connection, writer: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> _ForkedChild:
    _flush()  # or the child would write it once more
    pid = os.fork()
    if pid:
        return _ForkedChild(pid)
    code = 1
    try:
        reader.close()
        _answer(writer, function, args)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (the caller's stack, copied by the fork, must not run on)
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _answer(writer: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """In the child: call, and send one message home."""
    with closing(writer):
        writer.send_bytes(_outcome(function, args))


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    """A pickled triple: result, exception, traceback."""
    try:
        result = _call(function, args)
    except SystemExit:
        raise  # the function wants this process to end
    except BaseException as error:  # noqa: BLE001 (it is raised again in the parent)
        return pickle.dumps((None, _portable(error), traceback.format_exc()))
    try:
        return pickle.dumps((result, None, ""))
    except Exception as error:  # noqa: BLE001 (a __reduce__ may raise anything)
        refused = ChildError(f"the result of the function cannot be pickled: {error}")
        return pickle.dumps((None, refused, traceback.format_exc()))


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    result = function(*args)
    if not inspect.isawaitable(result):
        return result

    async def wait_for() -> Any:
        return await result

    return asyncio.run(wait_for())


def _portable(error: BaseException) -> BaseException:
    """The exception, or one that tells of it where a pickle would change or refuse it."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception as reason:  # noqa: BLE001 (a __reduce__ or __init__ may raise anything)
        why = f"; it cannot be pickled: {reason}"
    else:
        why = "; a pickle makes something else of it"
    return ChildError(f"the function raised {type(error).__qualname__}: {error}{why}")


def _receive(child: _Child, reader: Connection, deadline: float) -> bytes | None:
    """The child's message; ``None`` if it ended, or the time did, without one.

    The end of the pipe alone proves nothing: a child of the child may hold it open.
    """
    while True:
        ended = child.exitcode is not None  # asked first: now the message is there or never will be
        remaining = deadline - time.monotonic()
        if reader.poll(0 if ended else max(0.0, min(_LOOK_AGAIN, remaining))):
            try:
                return reader.recv_bytes()
            except EOFError:
                return None
        if ended or remaining <= 0:
            return None


def _wait_for_end(child: _Child, deadline: float) -> int | None:
    """The exit code; ``None`` if there is none yet at the deadline."""
    pause = 0.0005
    while child.exitcode is None and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_AGAIN)
    return child.exitcode


def _bury(child: _Child) -> None:
    if child.exitcode is None:
        child.kill()
    child.join()
    child.close()


def _unpack(what: str, answer: bytes | None, exit_code: int | None, timeout: float) -> Any:
    kind = ChildTimeout if exit_code is None else ChildError
    end = _describe_end(exit_code, timeout)
    if answer is None:
        raise kind(f"{what} {end} before it had a result", exit_code)
    try:
        result, error, where = pickle.loads(answer)
    except Exception as reason:
        raise ChildError(f"the result of {what} cannot be unpickled here: {reason}") from reason
    if error is not None:
        if exit_code != 0:
            error.add_note(f"the child then {end}")
        raise error from ChildTraceback(where)
    if exit_code != 0:
        raise kind(f"{what} returned, then {end}", exit_code)
    return result


def _describe_end(exit_code: int | None, timeout: float) -> str:
    if exit_code is None:
        return f"did not end within {timeout:g} s, and was killed,"
    if exit_code < 0:
        return f"was killed by {_signal_name(-exit_code)}"
    return f"exited with code {exit_code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
