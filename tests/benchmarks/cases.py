"""What is measured, who takes part, and which figures come of it, with their goals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tests.benchmarks import timeline
from tests.benchmarks.figures import Goal
from tests.benchmarks.harness import CROWDS

MIB = 1024 * 1024
OURS = "loopsafe_db"


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    Attributes:
        name: As the report shows it.
        module: In ``contenders/``; with `case`, a key of its ``CASES``.
        count: Iterations in each round.
        quick: The same in a quick run.
    """

    name: str
    module: str
    case: str
    count: int
    quick: int = 2
    loop: Literal["asyncio", "uvloop"] = "asyncio"

    @property
    def needs_environment_of_its_own(self) -> bool:
        return self.module in ("encode_databases", "dymmond_databasez")


@dataclass(frozen=True)
class Ratio:
    """A contender's time divided by the time of others, added up."""

    what: str
    of: str
    over: tuple[str, ...]
    goal: Goal | None = None


@dataclass(frozen=True)
class Fact:
    """Something counted by a contender."""

    what: str
    of: str
    fact: str
    goal: Goal | None = None
    unit: Literal["MiB", ""] = ""


@dataclass(frozen=True)
class Case:
    """Contenders that are measured side by side.

    Attributes:
        rounds: The most that is worth the time; None is no limit.
        serial: Whether client and server only ever wait for each other: they share a CPU, and settle first.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    ratios: tuple[Ratio, ...] = ()
    facts: tuple[Fact, ...] = ()
    rounds: int | None = None
    serial: bool = False
    text: str = ""


def _at_least(reach: float, aim: float | None = None) -> Goal:
    return Goal(reach, aim, "at least")


def _ours_over(over: tuple[str, ...], goal: Goal | None) -> Ratio:
    return Ratio(f"{OURS} ÷ ({' + '.join(over)})" if len(over) > 1 else f"{OURS} ÷ {over[0]}",
                 OURS, over, goal)  # fmt: skip


def _slower(peer: str, goal: Goal | None) -> Ratio:
    return Ratio(f"{peer} ÷ {OURS}", peer, (OURS,), goal)


_EMPTY = Contender("empty asyncio.run", "bare_asyncpg", "empty run", 200)
_HELD = Contender("asyncpg, held connection", "bare_asyncpg", "held", 200)
_TURNS = Contender("both by turns, in one process", "bare_asyncpg", "held, by turns", 150)
_RUN_PEERS = (
    Contender("asyncpg, connect per run", "bare_asyncpg", "connect per run", 10),
    Contender("psycopg, connect per run", "bare_psycopg", "connect per run", 10),
    Contender("SQLAlchemy, NullPool", "plain_sqlalchemy", "null pool", 10),
    Contender("SQLAlchemy, engine per run", "plain_sqlalchemy", "engine per run", 10),
    Contender("databases, connect per run", "encode_databases", "connect per run", 10),
    Contender("databasez, connect per run", "dymmond_databasez", "connect per run", 10),
)
_AIM_30 = ("asyncpg, connect per run", "SQLAlchemy, NullPool", "databases, connect per run")
_LOOP_PEERS = (
    Contender("asyncpg.Pool", "bare_asyncpg", "pool", 150),
    Contender("psycopg_pool", "bare_psycopg", "pool", 150),
    Contender("SQLAlchemy, one engine", "plain_sqlalchemy", "shared engine", 100),
    Contender("databases", "encode_databases", "loop", 100),
    Contender("databasez", "dymmond_databasez", "loop", 100),
)

RUN = Case(
    "run",
    "A query in `asyncio.run`, again and again",
    (_EMPTY, _HELD, _TURNS, Contender(OURS, "loopsafe", "run", 150), *_RUN_PEERS),
    (
        _ours_over((_EMPTY.name, _HELD.name), Goal(2.0, 1.5)),
        _ours_over((_TURNS.name,), Goal(1.5, 1.3)),
        *(
            _slower(peer.name, _at_least(15, 30 if peer.name in _AIM_30 else None))
            for peer in _RUN_PEERS
        ),
    ),
    serial=True,
    text="Each job opens a loop of its own. loopsafe_db keeps its connection warm from one to the next; "
    "the others connect in every job, as they have to. The two halves of the floor are measured each in a process "
    "that does nothing else, and by turns: an empty asyncio.run, then a query in the loop of its connection. "
    "Where a loop was made and closed before each query, the query takes longer.",
)

RUN_UVLOOP = Case(
    "run-uvloop",
    "The same under uvloop",
    (
        Contender(_EMPTY.name, "bare_asyncpg", "empty run", 200, loop="uvloop"),
        Contender(_HELD.name, "bare_asyncpg", "held", 200, loop="uvloop"),
        replace(_TURNS, loop="uvloop"),
        Contender(OURS, "loopsafe", "run", 150, loop="uvloop"),
        Contender("asyncpg, connect per run", "bare_asyncpg", "connect per run", 10, loop="uvloop"),
    ),
    (
        _ours_over((_EMPTY.name, _HELD.name), Goal(2.0, 1.5)),
        _ours_over((_TURNS.name,), Goal(1.5, 1.3)),
        _slower("asyncpg, connect per run", _at_least(15, 30)),
    ),
    serial=True,
    text="To make and close a loop of uvloop takes longer than one of asyncio's own; whoever opens one for each job "
    "pays that first.",
)

RUN_PSYCOPG = Case(
    "run-psycopg",
    "The same with psycopg",
    (
        _EMPTY,
        Contender("psycopg, held connection", "bare_psycopg", "held", 150),
        Contender(OURS, "loopsafe", "run psycopg", 100),
        Contender("psycopg, connect per run", "bare_psycopg", "connect per run", 10),
    ),
    (
        _ours_over((_EMPTY.name, "psycopg, held connection"), None),
        _slower("psycopg, connect per run", None),
    ),
    serial=True,
)

RUN_AIOSQLITE = Case(
    "run-aiosqlite",
    "The same with aiosqlite",
    (
        _EMPTY,
        Contender("aiosqlite, held connection", "bare_aiosqlite", "held", 150),
        Contender(OURS, "loopsafe", "run aiosqlite", 100),
        Contender("aiosqlite, connect per run", "bare_aiosqlite", "connect per run", 50),
    ),
    (
        _ours_over((_EMPTY.name, "aiosqlite, held connection"), None),
        _slower("aiosqlite, connect per run", None),
    ),
    serial=True,
)

LOOP = Case(
    "loop",
    "`fetch_val` in one long loop",
    (_HELD, Contender(OURS, "loopsafe", "loop", 200), *_LOOP_PEERS),
    (
        _ours_over((_HELD.name,), Goal(1.3, 1.15)),
        *(_slower(peer.name, _at_least(1, 2)) for peer in _LOOP_PEERS),
    ),
    serial=True,
    text="Every call of a pool checks a connection out and gives it back.",
)

LOOP_UVLOOP = Case(
    "loop-uvloop",
    "The same under uvloop",
    (
        Contender(_HELD.name, "bare_asyncpg", "held", 200, loop="uvloop"),
        Contender(OURS, "loopsafe", "loop", 200, loop="uvloop"),
        Contender("asyncpg.Pool", "bare_asyncpg", "pool", 150, loop="uvloop"),
    ),
    (
        _ours_over((_HELD.name,), Goal(1.3, 1.15)),
        _slower("asyncpg.Pool", _at_least(1, 2)),
    ),
    serial=True,
)

_NOBODY_EVER = Contender("nobody has ever listened", "loopsafe", "loop", 200)
_LISTENER = Contender("somebody listens", "loopsafe", "listener", 200)
LISTENERS = Case(
    "listeners",
    "`fetch_val` where nobody listens to `on_statement`, and where somebody does",
    (_NOBODY_EVER, Contender(OURS, "loopsafe", "no listener left", 200), _LISTENER),
    (
        _ours_over((_NOBODY_EVER.name,), Goal(1.03, 1.01)),
        Ratio("somebody listens ÷ nobody ever", _LISTENER.name, (_NOBODY_EVER.name,)),
    ),
    serial=True,
    text="loopsafe_db here is a process in which a listener has come and gone.",
)

TOUCHED = Case(
    "touched",
    "A block that sets something for its session",
    (
        Contender("asyncpg.Pool", "bare_asyncpg", "pool block", 100),
        Contender(OURS, "loopsafe", "touched block", 100),
    ),
    (_ours_over(("asyncpg.Pool",), Goal(1)),),
    serial=True,
    text="A connection for a block with one statement, a `SET`, and a reset at its end: asyncpg.Pool always sends one, "
    "loopsafe_db [where something may have been touched](../explanation/what-a-connection-remembers.md), and then "
    "undoes more.",
)


def _waiting(
    name: str, title: str, peer: str, module: str, prefix: str, goal: Goal, text: str = ""
) -> Case:
    """Many tasks on one pool, of `CROWDS`; the fewest of them tell what a query costs where few wait."""

    def contender(library: str, module: str, prefix: str, size: int, tasks: int) -> Contender:
        case = f"pool of {size}, {tasks} tasks"
        return Contender(f"{library}, {case}", module, f"{prefix}{case}", max(tasks, 400), quick=20)

    few = CROWDS[0]
    many = few[0], CROWDS[-1][1]
    ours = {crowd: contender(OURS, "loopsafe", prefix, *crowd) for crowd in CROWDS}
    peers = {crowd: contender(peer, module, "", *crowd) for crowd in CROWDS if crowd[1] > few[1]}
    return Case(
        name,
        title,
        (*ours.values(), *peers.values()),
        (
            *(
                Ratio(f"{theirs.name} ÷ {OURS}", theirs.name, (ours[crowd].name,), goal)
                for crowd, theirs in peers.items()
            ),
            Ratio(
                f"{OURS}, pool of {few[0]}: {many[1]} tasks ÷ {few[1]}",
                ours[many].name,
                (ours[few].name,),
                Goal(1.3, 1.1),
            ),
        ),
        serial=True,
        text=text,
    )


WAITING = _waiting(
    "waiting",
    "`fetch_val` in more tasks than there are connections",
    "asyncpg.Pool",
    "bare_asyncpg",
    "",
    _at_least(2, 2.5),
    "A connection that is given back goes to the next task of the same loop at once.",
)

WAITING_PSYCOPG = _waiting(
    "waiting-psycopg",
    "The same with psycopg",
    "psycopg_pool",
    "bare_psycopg",
    "psycopg, ",
    _at_least(1.5, 2),
)

THREADS = Case(
    "threads",
    "`fetch_val` in 8 threads with a loop each",
    (
        Contender("asyncpg.Pool, one for each thread", "bare_asyncpg", "threads", 800, quick=16),
        Contender(OURS, "loopsafe", "threads", 800, quick=16),
    ),
    (_slower("asyncpg.Pool, one for each thread", _at_least(0.8, 1)),),
    text="loopsafe_db has one pool of 8 connections for all of them.",
)

BURST = Case(
    "burst",
    "A burst of 50 tasks on a pool of 10 that has nothing open",
    (
        Contender("asyncpg.Pool", "bare_asyncpg", "cold burst", 4),
        Contender("asyncpg.Pool, min_size=0", "bare_asyncpg", "cold burst, as needed", 4),
        Contender(OURS, "loopsafe", "cold burst", 4),
    ),
    (
        _slower("asyncpg.Pool", _at_least(1, 1.5)),
        _slower("asyncpg.Pool, min_size=0", None),
    ),
    text="Until the last one is done. asyncpg.Pool opens its first connection alone, and with "
    "`min_size=0` all as they are needed; of loopsafe_db's, SQLAlchemy asks the first one what it has to know.",
)

STARVATION = Case(
    "starvation",
    "200 tasks in 4 threads with a loop each, on a pool of 4",
    (Contender(OURS, "loopsafe", "starvation", 5, quick=1),),
    facts=(Fact("longest wait ÷ median", OURS, "longest", Goal(3)),),
    rounds=3,
    text="All come at once, and each has a query of 2 ms: who is served last waits for twice the median where the "
    "order is kept.",
)

ROWS = Case(
    "rows",
    "`fetch_all`, 100 rows of 3 columns",
    (
        Contender("asyncpg, fetch", "bare_asyncpg", "rows", 100),
        Contender(OURS, "loopsafe", "rows", 100),
    ),
    (_ours_over(("asyncpg, fetch",), Goal(1.15, 1.05)),),
    serial=True,
)

PROCESS_SCOPE = Case(
    "process-scope",
    '`fetch_val` in one long loop, `scope="process"`',
    (_HELD, Contender(OURS, "loopsafe", "process scope", 150)),
    (_ours_over((_HELD.name,), Goal(3, 2)),),
    serial=True,
)

MANY = Case(
    "many",
    "`execute_many`, 10,000 rows of 3 columns",
    (
        Contender("asyncpg, executemany", "bare_asyncpg", "many", 2, quick=1),
        Contender(OURS, "loopsafe", "many", 2, quick=1),
    ),
    (_ours_over(("asyncpg, executemany",), Goal(1.15, 1.05)),),
)

ITERATE = Case(
    "iterate",
    "`iterate` over 1,000,000 rows",
    (
        Contender("asyncpg, cursor", "bare_asyncpg", "cursor", 1_000_000, quick=2000),
        Contender(OURS, "loopsafe", "iterate", 1_000_000, quick=2000),
    ),
    (_ours_over(("asyncpg, cursor",), Goal(1.3)),),
    (
        Fact(f"{OURS}: peak RSS above what it was before", OURS, "peak_bytes", Goal(16), "MiB"),
        Fact("asyncpg, cursor: the same", "asyncpg, cursor", "peak_bytes", None, "MiB"),
    ),
    rounds=5,
    text="asyncpg's own cursor is read by `async for` with `prefetch=500`: it awaits for each row.",
)


_FASTER = _at_least(1, 2)


def _calls(
    name: str,
    title: str,
    counts: dict[str, int],
    *,
    serial: bool = True,
    text: str = "",
    goal: Goal = _FASTER,
) -> Case:
    """Calls of the package `databases`, by their names in ``contenders/calls.py``, each with both libraries."""

    def contenders(library: str, module: str) -> list[Contender]:
        return [
            Contender(f"{library}, {call}", module, f"call {call}", count)
            for call, count in counts.items()
        ]

    ours, theirs = contenders(OURS, "loopsafe"), contenders("databases", "encode_databases")
    pairs = list(zip(ours, theirs, strict=True))
    return Case(
        name,
        title,
        tuple(contender for pair in pairs for contender in pair),
        tuple(
            Ratio(f"databases ÷ {our.name}", their.name, (our.name,), goal) for our, their in pairs
        ),
        serial=serial,
        text=text,
    )


CALLS = _calls(
    "calls",
    "The calls of `databases`",
    {"fetch_all": 60, "fetch_one": 100, "fetch_val": 100, "execute": 100},
    text="The same lines, with the `Database` of one or of the other, in one long loop. `fetch_all` is of 100 rows of "
    "3 columns, each read by name; `execute` is an `UPDATE … RETURNING`.",
)

_BLOCKS = _calls(
    "calls-blocks",
    "The same, in blocks",
    {"connection": 60, "transaction": 60},
    text="`async with database.connection()` and `async with database.transaction()`, with two queries in each; "
    "asyncpg's is `pool.acquire()` and `connection.transaction()`.",
)
_POOL = Contender("asyncpg.Pool, transaction", "bare_asyncpg", "pool transaction", 60)
CALLS_BLOCKS = replace(
    _BLOCKS,
    contenders=(*_BLOCKS.contenders, _POOL),
    ratios=(
        *_BLOCKS.ratios,
        Ratio(f"{_POOL.name} ÷ {OURS}", _POOL.name, (f"{OURS}, transaction",), _at_least(1.2, 1.5)),
    ),
)

_CORE = _calls(
    "calls-core",
    "The same, with SQLAlchemy Core",
    {"core select": 40, "core insert": 60, "core one": 60},
    goal=_at_least(2.5, 3.5),
    text="`fetch_all` of 100 rows of 3 columns, each read by name; `execute` of an insert that gives its key; and "
    "`fetch_one` by key. The clauses are made anew in each call, as programs do it.",
)
_TEXT = Contender(f"{OURS}, text", "loopsafe", "call fetch_all", 60)
_ENGINE = Contender("SQLAlchemy, core one", "plain_sqlalchemy", "core one", 60)
CALLS_CORE = replace(
    _CORE,
    contenders=(*_CORE.contenders, _TEXT, _ENGINE),
    ratios=(
        *_CORE.ratios,
        Ratio("text ÷ core select", _TEXT.name, (f"{OURS}, core select",), _at_least(0.5, 0.7)),
        Ratio("SQLAlchemy ÷ core one", _ENGINE.name, (f"{OURS}, core one",), _at_least(3, 5)),
    ),
)

CALLS_MANY = _calls(
    "calls-many",
    "The same, with many rows",
    {"execute_many": 1, "core execute_many": 1, "iterate": 4},
    serial=False,
    text="`execute_many` inserts 1,000 rows, given as text and as a clause; `iterate` reads 10,000.",
)

SESSIONS = Case(
    "sessions",
    "`AsyncSession`, one query each, in one long loop",
    (
        Contender("SQLAlchemy's own engine", "plain_sqlalchemy", "sessions", 80),
        Contender(OURS, "loopsafe", "sessions", 80),
    ),
    (_ours_over(("SQLAlchemy's own engine",), Goal(1.1, 1.02)),),
    serial=True,
)

ENGINE = Case(
    "engine",
    "`create_async_engine`, one query each, in one long loop",
    (
        Contender("SQLAlchemy's own", "plain_sqlalchemy", "shared engine", 80),
        Contender(OURS, "loopsafe", "engine", 80),
    ),
    (_ours_over(("SQLAlchemy's own",), Goal(1.05)),),
    serial=True,
)

ENGINE_RUN = Case(
    "engine-run",
    "The same in `asyncio.run`, again and again",
    (
        Contender("SQLAlchemy's own, NullPool", "plain_sqlalchemy", "null pool", 10),
        Contender(OURS, "loopsafe", "engine in runs", 100),
    ),
    (_slower("SQLAlchemy's own, NullPool", _at_least(15)),),
    serial=True,
)

HANDLE = Case(
    "handle",
    "`get_database()`",
    (
        Contender("empty function", "loopsafe", "empty call", 100_000, quick=10),
        Contender(OURS, "loopsafe", "handle", 100_000, quick=10),
    ),
    (_ours_over(("empty function",), Goal(4, 2)),),
    serial=True,
)

GROWTH = Case(
    "growth",
    "What 10,000 `asyncio.run(fetch_val)` leave behind",
    (Contender(OURS, "loopsafe", "growth", 10_000, quick=20),),
    facts=(
        Fact("resident memory", OURS, "rss_bytes", Goal(2), "MiB"),
        Fact("file descriptors", OURS, "descriptors", Goal(0)),
        Fact("threads", OURS, "threads", Goal(0)),
        Fact("event loops alive", OURS, "loops", Goal(0)),
    ),
    rounds=1,
    text="After 200 runs to warm up.",
)

FLEET = Case(
    "fleet",
    "A fleet: 15 processes of 4 threads with 20 jobs each, 20 connections in all",
    (Contender(OURS, "fleet", "fleet", 20, quick=3),),
    facts=(
        Fact("most backends at once", OURS, "backends", Goal(20)),
        Fact("errors", OURS, "errors", Goal(0)),
        Fact("jobs that the least served thread did not get done", OURS, "undone", Goal(0)),
        Fact("jobs it had done when the first thread was through", OURS, "done at first finish"),
        Fact("longest job, seconds", OURS, "longest job"),
    ),
    rounds=1,
    text="Each process is told of the budget by `LOOPSAFE_DB_FLEET_CONNECTIONS` and `LOOPSAFE_DB_FLEET_WORKERS`. A job "
    "is an `asyncio.run` with a transaction of 2 ms and a query; a witness counts the backends.",
)

TIMELINE = Case(
    "timeline",
    "Where the rest goes",
    (
        Contender(timeline.BARE_RUN, "timeline", "empty run", 200),
        Contender(timeline.BARE_QUERY, "timeline", "held", 200),
        Contender(timeline.OUR_RUN, "timeline", "ours in runs", 150),
        Contender(timeline.OUR_QUERY, "timeline", "ours in one loop", 200),
    ),
    serial=True,
)

ALL = (
    RUN,
    RUN_UVLOOP,
    RUN_PSYCOPG,
    RUN_AIOSQLITE,
    LOOP,
    LOOP_UVLOOP,
    LISTENERS,
    TOUCHED,
    WAITING,
    WAITING_PSYCOPG,
    THREADS,
    BURST,
    STARVATION,
    ROWS,
    PROCESS_SCOPE,
    MANY,
    ITERATE,
    CALLS,
    CALLS_BLOCKS,
    CALLS_CORE,
    CALLS_MANY,
    SESSIONS,
    ENGINE,
    ENGINE_RUN,
    HANDLE,
    GROWTH,
    FLEET,
    TIMELINE,
)
