"""What callers of each library meet when something fails: ``python -m tests.faults.reliability`` writes the table.

It stands in ``docs/explanation/reliability.md``. Each cell is a process of its own, ended after its bound:
``python -m tests.faults.reliability FAULT LIBRARY URL`` prints, as JSON, what the caller saw, whether the next call
worked, and what was left; line by line, so that one who never comes back has told the rest.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from tests.faults.peers import PEERS
from tests.faults.wire import Wire, nothing, told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.faults.peers import Peer

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/explanation/reliability.md"
BEGIN, END = "<!-- written by python -m tests.faults.reliability -->\n", "<!-- end -->"
PATIENCE = 10.0  # seconds for what has limits of 2, 3 and 4 s; then it is cancelled
BOUND = 60.0  # seconds for a process
_SOON = 0.5  # seconds, after which a caller cancels, or a server is there again
_LONG = "x" * (1 << 25)
_MARK = b"struck"
_STRUCK = "SELECT repeat('struck', 100)"
_READY = b"Z\0\0\0\5I"  # what a server says when it has let somebody in


async def _ask(peer: Peer) -> object:
    return await peer.ask(_STRUCK)


async def _ask_and_cancel(peer: Peer) -> object:
    async with asyncio.timeout(_SOON):
        return await peer.ask(_STRUCK)


async def _send_and_cancel(peer: Peer) -> object:
    async with asyncio.timeout(_SOON):
        return await peer.send(_LONG)


async def _commit(peer: Peer) -> None:
    await peer.commit("SELECT 1")


async def _roll_back(peer: Peer) -> None:
    await peer.commit("SELECT 1", fails=True)


async def _close(peer: Peer) -> None:
    await peer.close()


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: What happens.
        promise: What we promise of it.
        strike: Has it happen, or has it happen with the next query.
        operate: What the caller does meanwhile.
        warm: Whether a connection was used before.
    """

    name: str
    promise: str
    strike: Callable[[Wire], object]
    operate: Callable[[Peer], Awaitable[object]] = _ask
    warm: bool = True


def _at_the_query(strike: Callable[[Wire], object]) -> Callable[[Wire], None]:
    """Strike when the query is on its way; the server does not get it."""

    def wait(wire: Wire) -> None:
        def hush(data: bytes) -> bool:
            if _MARK not in data:
                return False
            strike(wire)
            return True

        wire.hush = hush

    return wait


def _hush(word: bytes) -> Callable[[Wire], None]:
    def strike(wire: Wire) -> None:
        wire.hush = lambda data: word in data

    return strike


def _hush_after_login(wire: Wire) -> None:
    wire.hush_after = lambda data: _READY in data


def _hush_all(wire: Wire) -> None:
    wire.hush = lambda _: True


def _clog(wire: Wire) -> None:
    wire.clogs = lambda data: b"xxxx" in data


def _slow(wire: Wire) -> None:
    wire.pause = _SOON


def _trickle(wire: Wire) -> None:
    wire.trickle = 0.1


def _restart(wire: Wire) -> None:
    wire.refuse()
    wire.cut()
    threading.Timer(_SOON, wire.serve).start()
    time.sleep(0.1)  # until it has come here


def _terminate_idle(wire: Wire) -> None:
    with psycopg.connect(wire.direct, autocommit=True) as plain:
        plain.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    time.sleep(0.2)  # until it has come through the wire


def _refuse_for_a_while(sqlstate: str, message: str) -> Callable[[Wire], None]:
    def strike(wire: Wire) -> None:
        wire.refusal = told(sqlstate, message)
        threading.Timer(_SOON, setattr, (wire, "refusal", b"")).start()

    return strike


FAULTS = (
    Fault("answers take 0.5 s", "The answer.", _slow),
    Fault(
        "the connection is closed in mid-query",
        "`ConnectionLost`, at once.",
        _at_the_query(Wire.cut),
    ),
    Fault(
        "it is reset in mid-query",
        "The same.",
        _at_the_query(Wire.reset),
    ),
    Fault(
        "only the server's half of it is closed",
        "The same.",
        _at_the_query(Wire.half_close),
    ),
    Fault(
        "a query gets no answer",
        "`StatementTimeout` after `statement`, and 2 s in which the server may stop it.",
        _hush(_MARK),
    ),
    Fault(
        "its answer comes byte by byte",
        "The same: it is a limit of the whole answer.",
        _trickle,
    ),
    Fault(
        "the server is silent after the login",
        "`ConnectTimeout` after twice `connect`, at most.",
        _hush_after_login,
        warm=False,
    ),
    Fault(
        "an idle connection was ended by the server",
        "The answer: what has ended while it was idle is not lent.",
        _terminate_idle,
    ),
    Fault(
        "the server restarts in 0.5 s",
        "The answer, as soon as it is there again, within `connect`.",
        _restart,
    ),
    Fault(
        "it has too many clients for 0.5 s",
        "The same.",
        _refuse_for_a_while("53300", "sorry, too many clients already"),
        warm=False,
    ),
    Fault(
        "it is starting up for 0.5 s",
        "The same.",
        _refuse_for_a_while("57P03", "the database system is starting up"),
        warm=False,
    ),
    Fault(
        "the server is not there",
        "`ConnectError` after `connect`, for it may be starting.",
        Wire.refuse,
        warm=False,
    ),
    Fault(
        "a COMMIT gets no answer",
        "`CommitUnknown`, in the time of a query that gets none: nothing retries it.",
        _hush(b"COMMIT"),
        _commit,
    ),
    Fault(
        "a ROLLBACK gets no answer",
        "The error of the block, after 2 s, when the connection is ended: then the server rolls back.",
        _hush(b"ROLLBACK"),
        _roll_back,
    ),
    Fault(
        "a query without an answer is cancelled after 0.5 s",
        "The cancellation, 2 s later at most.",
        _hush(_MARK),
        _ask_and_cancel,
    ),
    Fault(
        "what is still being sent is cancelled after 0.5 s",
        "The same.",
        _clog,
        _send_and_cancel,
    ),
    Fault(
        "the pool is closed while the server is silent",
        "It is closed, 0.1 s later at most: what is idle needs no answer to its farewell.",
        _hush_all,
        _close,
    ),
)


# -- one cell


async def _meet(fault: Fault, peer: Peer, wire: Wire) -> None:
    if fault.warm:
        await peer.ask("SELECT 1")
    await asyncio.to_thread(fault.strike, wire)
    _tell("sees", *await _seen(fault.operate(peer)))
    await asyncio.to_thread(_heal, wire)
    if fault.operate is not _close:
        _tell("next", *await _seen(peer.ask("SELECT 2")))
        _tell("places", await _places(peer))
        _tell("closing", *await _seen(peer.close()))
    _tell("sockets", _sockets(wire.port))


async def _places(peer: Peer) -> int:
    """Count the places that are still taken after a second, in which some pools open another connection."""
    give_up = time.monotonic() + 1
    while (found := peer.in_use()) and time.monotonic() < give_up:  # noqa: ASYNC110 (no event tells of it)
        await asyncio.sleep(0.05)
    return found


async def _seen(work: Awaitable[object]) -> tuple[str, float]:
    """Give what the caller sees, and after how long."""
    began = time.monotonic()
    task = asyncio.ensure_future(work)
    await asyncio.wait([task], timeout=PATIENCE)
    seconds = time.monotonic() - began
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=PATIENCE)
        return "hangs" if task.done() else "hangs, and cannot be cancelled", seconds
    if task.cancelled():
        return "CancelledError", seconds
    error = task.exception()
    return "" if error is None else type(error).__name__, seconds


def _heal(wire: Wire) -> None:
    wire.hush = wire.hush_after = wire.clogs = nothing
    wire.pause, wire.trickle, wire.refusal = 0.0, 0.0, b""
    if not wire.serves:
        time.sleep(_SOON)
    if not wire.serves:
        wire.serve()


def _sockets(port: int) -> int:
    """Count this process's open sockets to a port; those that only the kernel still has do not count."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()}
    return sum(
        int(far.partition(":")[2], 16) == port and f"socket:[{inode}]" in mine
        for _, _, far, *_, inode in (line[:10] for line in lines)
    )


def _descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")]


def _tell(name: str, *told: object) -> None:
    print(json.dumps([name, *told]), flush=True)


def _one(name: str, library: str, url: str) -> None:
    for package in (
        "asyncpg",
        "psycopg_pool",
        "sqlalchemy.ext.asyncio",
        "loopsafe_db.engines.factory",
    ):
        with suppress(ImportError):  # `databases` stands alone
            importlib.import_module(package)  # else the first call would take the time of it
    fault = next(fault for fault in FAULTS if fault.name == name)
    with Wire(url) as wire:
        made = PEERS[library](wire.url.render_as_string(hide_password=False))
        asyncio.run(_meet(fault, made, wire))
    os._exit(0)  # threads of peers, and what is left in loops, are not waited for


# -- the table


@dataclass(frozen=True)
class Outcome:
    """One cell."""

    sees: str = "the process hangs"
    seconds: float = BOUND
    next: str = "hangs"
    places: int = 0
    sockets: int = 0
    closing: str = ""

    @property
    def holds(self) -> tuple[str, ...]:
        """What does not depend on how busy the machine is."""
        rest = []
        if self.next:
            rest.append(f"next call: {_code(self.next)}")
        if self.closing:
            rest.append(f"closing: {_code(self.closing)}")
        if self.places:
            rest.append(f"{self.places} {'place' if self.places == 1 else 'places'} left")
        if self.sockets:
            rest.append(f"{self.sockets} {'socket' if self.sockets == 1 else 'sockets'} left")
        return (_code(self.sees) if self.sees else "**works**", *rest)

    @property
    def cell(self) -> str:
        """What the table shows."""
        seen, *rest = self.holds
        if not self.sees.startswith(("hangs", "the process")):
            half = round(self.seconds * 2) / 2
            seen += f", {half:g} s" if half else ", at once"
        return "; ".join((seen, *rest))


def _code(name: str) -> str:
    return f"`{name}`" if name.isidentifier() and name != "hangs" else name


def outcome(fault: Fault, library: str, url: str, python: str) -> Outcome:
    """Run one cell in a process of its own."""
    command = (python, "-W", "ignore", "-m", "tests.faults.reliability", fault.name, library, url)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told, errors = process.communicate(timeout=BOUND)
    except subprocess.TimeoutExpired:
        process.kill()
        told, errors = process.communicate()
    found: dict[str, Any] = {}
    for name, *values in map(json.loads, told.splitlines()):
        found[name] = values[0]
        if name == "sees":
            found["seconds"] = values[1]
    if not found:
        raise RuntimeError(f"{fault.name}, {library}: nothing was told\n{errors[-2000:]}")
    if fault.operate is _close:
        found["next"] = ""
    return Outcome(**found)


def table(outcomes: dict[tuple[str, str], Outcome]) -> str:
    """Give the table."""
    lines = [f"| | {' | '.join(PEERS)} |", f"|---|{'---|' * len(PEERS)}"]
    for fault in FAULTS:
        cells = [outcomes[fault.name, library].cell for library in PEERS]
        lines.append(f"| {fault.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def promises() -> str:
    """Give what we promise, row by row."""
    lines = ["| what happens | what we promise |", "|---|---|"]
    lines += [f"| {fault.name} | {fault.promise} |" for fault in FAULTS]
    return "\n".join(lines)


def interpreter(library: str) -> str:
    """Give a Python that has a library."""
    from tests.compatibility.environment import DATABASES, python_with

    if library != "databases":
        return sys.executable
    return str(python_with("databases-and-faults", (*DATABASES, "psycopg[binary]")))


def write() -> None:
    """Write the table into the page."""
    from loopsafe_db.testing.postgres import EmbeddedPostgres

    pythons = {library: interpreter(library) for library in PEERS}
    with EmbeddedPostgres(max_connections=200) as server, ThreadPoolExecutor(4) as workers:

        def run(fault: Fault, library: str) -> Outcome:
            url = server.create_database()
            found = outcome(fault, library, url, pythons[library])
            print(f"{fault.name} · {library}: {found.cell}", flush=True)
            return found

        pairs = [(fault, library) for fault in FAULTS for library in PEERS]
        cells = list(workers.map(lambda pair: run(*pair), pairs))
    keys = [(fault.name, library) for fault, library in pairs]
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    found = table(dict(zip(keys, cells, strict=True)))
    PAGE.write_text(f"{before}{BEGIN}\n{promises()}\n\n{found}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        _one(*sys.argv[1:])
    else:
        write()
