"""The command ``loopsafe-db``: what it finds, prints and ends with."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner

from loopsafe_db import Database
from loopsafe_db.cli.app import app
from loopsafe_db.cli.conductor_api import Conductor
from loopsafe_db.cli.conductor_checks import check_conductor
from loopsafe_db.cli.database_checks import check_database
from loopsafe_db.cli.workflow_view import draw, view
from loopsafe_db.integrations.reports import ProcessReport, read_reports
from reflector_workers.conductor import ConductorClient, StandInServer
from tests.docs.test_docs import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REFLECTOR_LIKE = {
    "db.py": """
        import contextvars
        from typing import Optional
        import databases
        from app.settings import settings

        _database_context: contextvars.ContextVar[Optional[databases.Database]] = contextvars.ContextVar(
            "database", default=None
        )

        def get_database() -> databases.Database:
            database = _database_context.get()
            if database is None:
                database = databases.Database(settings.DATABASE_URL)
                _database_context.set(database)
            return database
    """,
    "clients.py": """
        import functools
        import httpx
        from sqlalchemy.ext.asyncio import create_async_engine as make
        from redis import asyncio as aioredis

        engine = make("postgresql+asyncpg://")
        _http = None

        @functools.lru_cache
        def redis():
            return aioredis.Redis()

        def http():
            global _http
            if _http is None:
                _http = httpx.AsyncClient()
            return _http
    """,
    "storage.py": """
        import aioboto3
        from aiobotocore.session import get_session

        session = get_session()
        other = aioboto3.Session()  # a session belongs to no loop, what it makes does
        _s3 = None

        async def s3():
            global _s3
            if _s3 is None:
                _s3 = await session.create_client("s3").__aenter__()
            return _s3

        async def upload(name):
            async with other.client("s3") as client:
                await client.upload_file(name, "meetings", name)

        class Storage:
            client = other.client("s3")
    """,
    "workers.py": """
        from __future__ import annotations
        import asyncio
        from conductor.client.worker.worker_task import worker_task
        from app.db import get_database

        @worker_task(task_definition_name="merge")
        def merge(meeting_id: int) -> dict:
            return asyncio.run(work(meeting_id))
    """,
    "fine.py": """
        import asyncio
        import httpx
        from loopsafe_db import LoopLocal, get_database

        db = get_database()
        http = LoopLocal(httpx.AsyncClient, close=httpx.AsyncClient.aclose)

        async def fetch(url):
            async with httpx.AsyncClient() as client:
                return await client.get(url)

        def main():
            asyncio.run(fetch("http://example.org"))
    """,
    "not_python.py": "print 'Python 2'",
}


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def reflector_like(tmp_path: Path) -> Path:
    for name, code in REFLECTOR_LIKE.items():
        (tmp_path / name).write_text(textwrap.dedent(code))
    return tmp_path


KEPT = """
import asyncpg

class Pools:
    pool = None

    @classmethod
    async def find(cls):
        cls.pool = cls.pool or await asyncpg.create_pool()  # kept
        return cls.pool

class Store:
    async def connect(self):
        self.pool = await asyncpg.create_pool()  # kept

class Request:
    async def connect(self):
        self.pool = await asyncpg.create_pool()  # by whoever makes one, and ends with it

store = Store()

async def first():
    global pool
    pool = await asyncpg.create_pool() if pool is None else pool  # kept
"""


def test_scan_names_each_singleton_of_a_tree_like_reflectors_with_its_line(
    reflector_like: Path,
) -> None:
    result = invoke("doctor", "scan", str(reflector_like), "--json")

    found = {
        (each["evidence"].rpartition("/")[2], each["code"]) for each in json.loads(result.stdout)
    }
    assert result.exit_code == 1
    assert found == {
        ("db.py:7", "D302"),
        ("clients.py:7", "D301"),
        ("clients.py:12", "D301"),
        ("clients.py:17", "D301"),
        ("storage.py:12", "D301"),
        ("storage.py:20", "D301"),
        ("workers.py:9", "D303"),
        ("workers.py:8", "D304"),
    }


def test_scan_finds_what_is_made_at_first_use(tmp_path: Path) -> None:
    (broken, *_) = re.findall(
        r"```python.*?\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    (tmp_path / "readme.py").write_text(broken)
    (tmp_path / "kept.py").write_text(KEPT)

    result = invoke("doctor", "scan", str(tmp_path), "--json")

    found = [each["evidence"].rpartition("/")[2] for each in json.loads(result.stdout)]
    lines = [f"kept.py:{n}" for n, line in enumerate(KEPT.splitlines(), 1) if "# kept" in line]
    (at,) = (n for n, line in enumerate(broken.splitlines(), 1) if "create_pool" in line)
    assert sorted(found) == sorted([*lines, f"readme.py:{at}"])


@pytest.mark.parametrize("tree", ["examples", "loopsafe_db"])
def test_scan_finds_nothing_in_our_own_trees(tree: str) -> None:
    result = invoke("doctor", "scan", str(ROOT / tree))

    assert (result.exit_code, result.stdout) == (0, "0 of 0 findings want something done\n")


def test_doctor_tells_how_postgresql_is(postgres_url: str) -> None:
    result = invoke("doctor", "--database", postgres_url)

    assert result.exit_code == 0, result.stdout
    assert "D100 ok: PostgreSQL " in result.stdout
    assert "connections are in use" in result.stdout
    assert "is in front" not in result.stdout


def test_doctor_says_if_the_fleet_may_have_more_connections_than_there_are(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(budget: int) -> list[str]:
        monkeypatch.setenv("LOOPSAFE_DB_FLEET_CONNECTIONS", str(budget))
        found = asyncio.run(check_database(postgres_url))
        return [each.what for each in found if each.code == "D107"]

    assert told(1) == []
    (found,) = told(1_000_000)
    assert found.startswith("the fleet may have 1000000 connections, the server takes ")


def test_doctor_names_who_is_idle_in_a_transaction(postgres_url: str) -> None:
    async def look() -> list[str]:
        async with Database(postgres_url) as database, database.transaction():
            await database.fetch_val("SELECT 4711")
            return [str(each) for each in await check_database(postgres_url, idle_seconds=0)]

    found = "\n".join(asyncio.run(look()))

    assert "D103 warning: a session is idle in a transaction" in found
    assert "SELECT 4711" in found


def test_doctor_names_who_waits_for_whose_lock(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopsafe_db.cli.database_checks.BLOCKED_SECONDS", 0)
    holder, waiter, behind, watcher = (Database(postgres_url) for _ in range(4))
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"

    async def wait_for(number: int) -> None:
        while await watcher.fetch_val(blocked) < number:  # noqa: ASYNC110 (no event tells of it)
            await asyncio.sleep(0.01)

    async def look() -> list[str]:
        await holder.execute("CREATE TABLE rooms AS SELECT 7 AS number")
        async with holder.transaction():
            await holder.execute("UPDATE rooms SET number = 8 /* the first */")
            waits = asyncio.create_task(waiter.execute("UPDATE rooms SET number = 9"))
            await wait_for(1)
            waits_behind = asyncio.create_task(behind.execute("UPDATE rooms SET number = 10"))
            await wait_for(2)
            await holder.fetch_val("SELECT 4711")
            found = [str(each) for each in await check_database(postgres_url)]
        await asyncio.gather(waits, waits_behind)
        for handle in (holder, waiter, behind, watcher):
            await handle.disconnect()
        return found

    (found,) = (each for each in asyncio.run(look()) if each.startswith("D104 warning: pid "))

    assert "for a lock: UPDATE rooms SET number = 9" in found
    assert "idle in transaction, last: SELECT 4711; 2 sessions wait for locks" in found
    assert "SELECT pg_terminate_backend(" in found


def test_doctor_shows_no_password_of_a_database_that_answers(postgres_url: str) -> None:
    url = make_url(postgres_url)
    password = url.password or "s3cret"  # a server that asks for none takes any
    given = url.set(password=password).render_as_string(hide_password=False)
    result = invoke("doctor", "--database", given, "--watch", "0")

    assert "answers" in result.stdout
    assert f":{password}@" not in result.output


def test_doctor_tells_of_the_journal_of_sqlite(tmp_path: Path) -> None:
    result = invoke("doctor", "--database", f"sqlite:///{tmp_path}/a.db", "--json")

    (told,) = json.loads(result.stdout)
    assert told["what"].endswith("its journal is wal")


def test_doctor_tells_what_cannot_be_reached_and_no_password() -> None:
    result = invoke(
        *("doctor", "--database", "postgresql://u:s3cret@127.0.0.1:9/db"),
        *("--conductor", "http://127.0.0.1:9/api", "--watch", "0"),
    )

    assert result.exit_code == 1
    assert "D101" in result.stdout
    assert "D201" in result.stdout
    assert "s3cret" not in result.output


def test_with_nothing_to_do_the_command_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOPSAFE_DB_URL", "DATABASE_URL", "CONDUCTOR_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("loopsafe_db.default._handles", {})

    assert [invoke(*command).exit_code for command in (["doctor"], ["wait"], ["retry", "x"])] == [
        2
    ] * 3


@pytest.mark.parametrize("command", ["doctor", "wait"])
@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("LOOPSAFE_DB_URL", "foo", "LDB202"),
        ("LOOPSAFE_DB_MAX_CONNECTIONS", "x", "LDB205"),
        ("LOOPSAFE_DB_FLEET_CONNECTIONS", "x", "LDB205"),
    ],
)
@pytest.mark.parametrize("given", [[], ["--database", "sqlite:///:memory:"]])
def test_what_cannot_be_in_the_environment_is_wrong_use(
    command: str,
    variable: str,
    value: str,
    code: str,
    given: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if given and variable == "LOOPSAFE_DB_URL":
        pytest.skip("it is not read")
    monkeypatch.setattr("loopsafe_db.default._handles", {})
    monkeypatch.setenv("DATABASE_URL", "sqlite:///:memory:")
    monkeypatch.setenv(variable, value)

    result = invoke(command, *given)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: [{code}] {variable}: ")
    assert "HINT" in result.stderr


@pytest.mark.parametrize("command", ["doctor", "wait"])
def test_a_url_that_cannot_be_is_wrong_use(command: str) -> None:
    result = invoke(command, "--database", "foo")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: [LDB202] not a database URL")


def test_wait_ends_when_both_answer_and_when_the_time_is_over(
    postgres_url: str, conductor: ConductorClient
) -> None:
    both = ("wait", "--database", postgres_url, "--conductor")

    assert invoke(*both, conductor.base_url).exit_code == 0
    late = invoke(*both, "http://127.0.0.1:9/api", "--for", "0")

    assert late.exit_code == 1
    assert "Conductor did not answer within 0 s" in " ".join(late.stderr.split())


def test_wait_says_why_in_its_time(postgres_url: str) -> None:
    wrong = make_url(postgres_url).set(password="no")
    refused = wrong.set(port=9)

    for url, reason in ((wrong, "LDB402"), (refused, "LDB401")):
        late = invoke("wait", "--database", url.render_as_string(hide_password=False), "--for", "1")
        assert late.exit_code == 1
        assert f"database did not answer within 1 s: [{reason}]" in " ".join(late.stderr.split())


@pytest.fixture
def conductor() -> Iterator[ConductorClient]:
    """A stand-in with a workflow of one step, whose worker dies in silence."""
    with StandInServer() as server, ConductorClient(server.url) as client:
        client.register_task_definitions([{"name": "hear", "responseTimeoutSeconds": 3600}])
        step = {"name": "hear", "taskReferenceName": "hear", "type": "SIMPLE"}
        client.put_workflow({"name": "meeting", "version": 1, "tasks": [step]})
        yield client


class Poller:
    """Somebody who polls, as the SDK does, under a name."""

    def __init__(self, conductor: ConductorClient, name: str) -> None:
        self._conductor, self.name = conductor, name

    def poll(self) -> list[dict[str, Any]]:
        parameters = {"workerid": self.name, "count": 1, "timeout": 0}
        jobs: list[dict[str, Any]] = self._conductor._call(  # noqa: SLF001
            "GET", "/tasks/poll/batch/hear", params=parameters
        ).json()
        return jobs


def gone() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_doctor_names_ghosts_versions_and_jobs_of_the_dead(
    conductor: ConductorClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = socket.gethostname()
    dead = Poller(conductor, f"{host}/{gone()}/old")
    pollers = [
        dead,
        Poller(conductor, f"{host}/{os.getpid()}/new"),
        Poller(conductor, "595f5ddc9711"),
    ]
    conductor.start_workflow("meeting", {})
    assert len(dead.poll()) == 1
    monkeypatch.setattr("loopsafe_db.cli.conductor_checks.LOOK_SECONDS", 0)
    turns = itertools.cycle(pollers)
    ask = Conductor.pollers

    def ask_after_a_poll(self: Conductor) -> list[dict[str, Any]]:
        next(turns).poll()
        return ask(self)

    monkeypatch.setattr(Conductor, "pollers", ask_after_a_poll)

    every = check_conductor(conductor.base_url, 4, "new")
    found = {each.code: str(each) for each in every}

    assert "hear: 2 versions of the code share its jobs: new, old" in found["D202"]
    assert f"is in progress with {dead.name}, which has ended" in found["D205"]
    assert "hour" in found["D204"]
    strangers = "\n".join(map(str, every))
    assert "595f5ddc9711 polls and is no worker of a fleet" in strangers
    port = conductor.base_url.rpartition(":")[2].partition("/")[0]
    assert f"on 595f5ddc9711, a host or a container, `ss -tnp 'dport = :{port}'`" in strangers
    assert f"{dead.name} polls and runs version old, not new" in strangers
    assert f"`ps -o ppid= -p {dead.name.split('/')[1]}`" in strangers


def test_doctor_names_kinds_of_jobs_that_a_dead_worker_keeps_for_an_hour(
    conductor: ConductorClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    conductor.register_task_definitions([{"name": "soon", "responseTimeoutSeconds": 60}])
    polled = {name: {"host/1/v1"} for name in ("hear", "soon", "not_defined")}
    monkeypatch.setattr("loopsafe_db.cli.conductor_checks.watch_pollers", lambda *_: polled)

    found = {each.code: each for each in check_conductor(conductor.base_url, 0, None)}

    assert found["D204"].evidence == "hear, not_defined"


def test_doctor_leaves_out_a_workflow_that_is_removed_meanwhile(
    conductor: ConductorClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conductor, "newest", lambda *_: ["removed"])

    (told,) = check_conductor(conductor.base_url, 0, None)

    assert (told.code, told.what) == ("D200", "Conductor answers, 0 workflows run")


def test_doctor_names_a_join_that_is_read_as_a_list(conductor: ConductorClient) -> None:
    def plan(name: str, read: str) -> dict[str, Any]:
        join = {"name": "join", "taskReferenceName": "join", "type": "JOIN", "joinOn": []}
        merge = {"name": "hear", "taskReferenceName": "merge", "type": "SIMPLE"}
        return {
            "name": name,
            "version": 1,
            "tasks": [join, merge | {"inputParameters": {"all": read}}],
        }

    conductor.put_workflow(plan("by_number", "${join.output[0].words}"))
    conductor.put_workflow(plan("whole", "${join.output}"))
    conductor.put_workflow(plan("by_name", "${join.output['detect_0'].words}"))
    conductor.put_workflow(plan("of_a_task", "${merge.output[0]}"))

    found = [each for each in check_conductor(conductor.base_url, 0, None) if each.code == "D208"]

    assert [(each.level, each.evidence) for each in found] == [("error", "${join.output[0].words}")]
    assert "workflow by_number" in found[0].what


def test_doctor_names_jobs_that_are_too_fast_or_too_large(
    conductor: ConductorClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = conductor.start_workflow("meeting", {})
    (task,) = Conductor(conductor.base_url).workflow(id)["tasks"]

    def took(number: int, milliseconds: int, **more: str) -> dict[str, Any]:
        times = {"startTime": 1000, "endTime": 1000 + milliseconds}
        done = {"status": "COMPLETED", "workerId": "w", "referenceTaskName": f"hear_{number}"}
        return {**task, **done, **times, **more}

    paths = {"externalOutputPayloadStoragePath": "task/output/1.json"}
    tasks = [*(took(number, 900) for number in range(5)), took(5, 10), took(6, 900, **paths)]
    monkeypatch.setattr(Conductor, "workflow", lambda *_: {"tasks": tasks})

    found = {each.code: each for each in check_conductor(conductor.base_url, 0, None)}

    assert f"hear_5 of workflow {id} took 10 ms, hear usually 900 ms" in found["D207"].what
    assert f"hear_6 of workflow {id} has more than 3072 KB" in found["D206"].what


def test_a_workflow_is_shown_drawn_and_told_with_its_ghosts(
    conductor: ConductorClient, tmp_path: Path
) -> None:
    id = conductor.start_workflow("meeting", {})
    Poller(conductor, "ghost").poll()
    page, picture = tmp_path / "w.html", tmp_path / "w.svg"
    server = ("--conductor", conductor.base_url)

    shown = invoke("workflow", id, *server, "--html", str(page), "--svg", str(picture))
    told = invoke("workflow", id, *server, "--json")

    assert shown.exit_code == told.exit_code == 1
    assert "ghost (ghost)" in shown.stdout  # whoever sees no colours, too
    assert picture.read_text().startswith("<svg")
    assert "#d00000" in page.read_text()
    (attempt,) = json.loads(told.stdout)["attempts"]
    assert (attempt["worker_id"], attempt["is_ghost"], attempt["status"]) == (
        "ghost",
        True,
        "IN_PROGRESS",
    )


def test_a_picture_of_a_workflow_in_which_nothing_has_begun_is_one_too(
    conductor: ConductorClient,
) -> None:
    id = conductor.start_workflow("meeting", {})

    assert "nobody yet" in draw(view(conductor.get_workflow(id)))


def test_retry_executes_again_what_ended_badly(conductor: ConductorClient) -> None:
    id = conductor.start_workflow("meeting", {})
    server = ("--conductor", conductor.base_url)
    assert invoke("retry", id, *server).exit_code == 1
    conductor.terminate_workflow(id)

    assert "RUNNING" in invoke("retry", id, *server).stdout


def test_top_says_where_nobody_reports(tmp_path: Path) -> None:
    assert "no process has reported to" in invoke("top", str(tmp_path), "--once").stdout


REPORTS = """
import asyncio, contextvars, pathlib, sys
from loopsafe_db import Database, PoolLimits
from loopsafe_db.integrations.reports import report_to

async def main():
    async with db.connection():
        waiter = asyncio.create_task(db.fetch_val("SELECT 1"), context=contextvars.Context())
        await asyncio.to_thread(sys.stdin.readline)
    await waiter

db = Database("sqlite://", pool=PoolLimits(1))
report_to(pathlib.Path(sys.argv[1], "reports"), job_type="mail")
asyncio.run(main())
"""


def test_top_shows_any_process_that_reports(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", REPORTS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not any(report.stats.waiting for report in read_reports(folder)):
            assert process.poll() is None, process.communicate()
        shown = invoke("top", str(folder), "--once").stdout
        (told,) = json.loads(invoke("top", str(folder), "--json").stdout)
        stderr = process.communicate("go on\n", timeout=30)[1]

    assert told["worker_id"] in shown
    assert "<string>:7" in shown
    assert (told["pid"], told["job_type"], told["ended"]) == (process.pid, "mail", False)
    assert (process.returncode, stderr) == (0, "")
    (last,) = read_reports(folder)
    assert (last.ended, last.stats.in_use, last.stats.waiting) == (True, 0, 0)


def test_top_says_who_is_silent_and_has_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    told = ProcessReport.of_this_process("vm/7/v1", "hear", 0, ended=False)
    for pid, ended, ago in ((1, False, 0), (2, True, 600), (3, False, 600)):
        each = replace(told, pid=pid, worker_id=f"w{pid}", ended=ended, told_at=told.told_at - ago)
        each.write(tmp_path)

    shown = invoke("top", str(tmp_path), "--once").stdout

    assert re.findall(r"w(\d) \(silent for 6\d\d s\)", shown) == ["3", "3"]


def test_top_shows_the_processes_of_a_fleet(tmp_path: Path) -> None:
    ProcessReport.of_this_process("vm/7/v1", "hear", 3, ended=False).write(tmp_path)

    assert "vm/7/v1" in invoke("top", str(tmp_path), "--once").stdout
    (told,) = json.loads(invoke("top", str(tmp_path), "--json").stdout)
    assert (told["worker_id"], told["jobs"]) == ("vm/7/v1", 3)
