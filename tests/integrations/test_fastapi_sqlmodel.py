"""The application of the FastAPI page: under ASGI, under TestClient's threads, in uvicorn's forked workers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi import Depends
from fastapi.testclient import TestClient

from loopsafe_db import Database, PoolLimits, configure
from loopsafe_db.errors import InvalidSettingError, MissingURLError
from tests.integrations.pages import code_of, module_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT = 4
PAGE = "fastapi-and-sqlmodel"


@pytest.fixture
def page(database: Database) -> Iterator[Any]:
    """The page's module, on an empty database behind `get_database`, its tables made."""
    db = configure(database.url, pool=PoolLimits(max_connections=LIMIT))
    module = module_of(PAGE)
    asyncio.run(module.create_tables())  # warm, from a loop that is gone
    yield module
    assert (db.stats().in_use, db.stats().waiting) == (0, 0)
    asyncio.run(db.disconnect())


@pytest.fixture
def db(page: Any) -> Database:
    handle: Database = page.get_database()
    return handle


def in_process(page: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(page.app), base_url="http://test", timeout=60
    )


async def rows(db: Database, meeting: int) -> tuple[int, int]:
    """Give the seats that are left, and the bookings: what is committed."""
    left = await db.fetch_val("SELECT seats FROM meeting WHERE id = :id", {"id": meeting})
    booked = "SELECT count(*) FROM booking WHERE meeting_id = :id"
    return left, await db.fetch_val(booked, {"id": meeting})


def test_many_requests_at_once_share_few_connections(page: Any, db: Database) -> None:
    async def main() -> Counter[int]:
        async with in_process(page) as client:
            made = await client.post("/meetings", json={"title": "standup", "seats": 10})
            paths = [f"/meetings/{made.json()['id']}/people/p{n}" for n in range(40)]
            answers = await asyncio.gather(*map(client.post, paths))
            people = await client.get("/meetings/1/people")
            assert len(people.json()) == 10
        assert await rows(db, 1) == (0, 10)
        return Counter(answer.status_code for answer in answers)

    assert asyncio.run(main()) == {201: 10, 409: 30}
    assert 1 <= db.stats().opened <= LIMIT


def test_each_loop_after_the_other_serves_on_the_warm_connection(page: Any, db: Database) -> None:
    async def add(number: int) -> int:
        async with in_process(page) as client:
            answer = await client.post("/meetings", json={"title": f"{number}", "seats": 1})
            return int(answer.json()["id"])

    opened = db.stats().opened
    assert [asyncio.run(add(n)) for n in range(5)] == [1, 2, 3, 4, 5]
    if os.environ.get("LOOPSAFE_DB_SCOPE") != "loop":
        assert db.stats().opened == opened


def test_no_client_chooses_the_database(page: Any) -> None:
    page.app.get("/wrong", dependencies=[Depends(page.get_database)])(lambda: "asked")

    async def main() -> None:
        async with in_process(page) as client:
            answer = await client.get("/meetings/1/people", params={"name": "reports"})
            assert (answer.status_code, answer.json()) == (200, [])
            with pytest.raises(MissingURLError, match=r"there is .*'default'"):
                await client.get("/wrong", params={"name": "unheard_of"})
            with pytest.raises(InvalidSettingError) as caught:
                await client.get("/wrong", params={"name": "someone:secret@elsewhere"})
        assert "secret" not in str(caught.value)

    asyncio.run(main())


def test_a_failing_endpoint_undoes_text_and_session(page: Any, db: Database) -> None:
    async def main() -> None:
        async with in_process(page) as client:
            await client.post("/meetings", json={"title": "full", "seats": 0})
            answer = await client.post("/meetings/1/people/Ada")
            assert (answer.status_code, answer.json()) == (409, {"detail": "no seat is left"})
            assert (await client.get("/meetings/1/people")).json() == []

    asyncio.run(main())


def test_test_clients_of_several_threads_are_served_side_by_side(page: Any, db: Database) -> None:
    def client(number: int) -> Counter[int]:
        with TestClient(page.app) as own:  # a thread and a loop of its own
            paths = [f"/meetings/1/people/{number}-{n}" for n in range(5)]
            return Counter(own.post(path).status_code for path in paths)

    with TestClient(page.app) as first:
        assert first.post("/meetings", json={"title": "standup", "seats": 12}).status_code == 201
    with ThreadPoolExecutor(6) as threads:
        codes = sum(threads.map(client, range(6)), Counter[int]())

    assert codes == {201: 12, 409: 18}
    assert asyncio.run(rows(db, 1)) == (0, 12)


# -- uvicorn

SERVE = """
import asyncio, os, socket, sys

import uvicorn

import app


@app.app.middleware("http")
async def say_who(request, call_next):
    response = await call_next(request)
    response.headers["x-pid"] = str(os.getpid())
    return response


async def warm():
    await app.create_tables()
    db = app.get_database()
    await asyncio.gather(*(db.fetch_val("SELECT 1") for _ in range(3)))


asyncio.run(warm())
listening = socket.create_server(("127.0.0.1", 0))
for _ in range(2):
    if os.fork() == 0:
        config = uvicorn.Config(app.app, log_level="warning")
        uvicorn.Server(config).run(sockets=[listening])
        os._exit(0)
print(listening.getsockname()[1], flush=True)
sys.stdin.read()  # until the test is over
os.killpg(0, 15)
"""


@contextmanager
def two_workers(folder: Path, url: str) -> Iterator[str]:
    """Serve the page's application by two processes, forked from one that has queried; gives the address."""
    (folder / "app.py").write_text(code_of(PAGE), encoding="utf-8")
    (folder / "serve.py").write_text(SERVE, encoding="utf-8")
    settings = {"LOOPSAFE_DB_URL": url, "LOOPSAFE_DB_MAX_CONNECTIONS": str(LIMIT)}
    errors = (folder / "errors").open("w+", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "serve.py"],
        cwd=folder,
        env={**os.environ, **settings},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )
    with errors, process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            assert port, (folder / "errors").read_text(encoding="utf-8")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.stdin.close()
            process.wait(timeout=30)
    assert (folder / "errors").read_text(encoding="utf-8") == ""


async def test_forked_workers_of_a_warm_parent_serve_at_once(
    database: Database, tmp_path: Path
) -> None:
    workers: Counter[str] = Counter()

    async def ask(address: str, method: str, path: str) -> int:
        async with httpx2.AsyncClient(base_url=address, timeout=60) as client:
            answer = await client.request(method, path)
        workers[answer.headers["x-pid"]] += 1
        return answer.status_code

    url = database.url.render_as_string(hide_password=False)
    with two_workers(tmp_path, url) as address:
        async with httpx2.AsyncClient(base_url=address) as client:
            made = await client.post("/meetings", json={"title": "standup", "seats": 20})
            assert made.status_code == 201
        paths = [f"/meetings/1/people/p{n}" for n in range(80)]
        codes = Counter(await asyncio.gather(*(ask(address, "POST", path) for path in paths)))
        async with asyncio.timeout(60):
            while len(workers) < 2:  # which of them takes a connection is the system's choice
                await ask(address, "GET", "/meetings/1/people")
        if database.url.get_backend_name() == "postgresql":
            sessions = (
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND backend_type = 'client backend'"
            )
            # the parent, two workers, and this
            assert await database.fetch_val(sessions) <= 3 * LIMIT + 1

    assert codes == {201: 20, 409: 60}
    assert await rows(database, 1) == (0, 20)
    assert len(workers) == 2
