"""Clients of S3 and HTTP by `LoopLocal`: each loop of each process has one that works, its parent's is left alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.docs.test_docs import ROOT
from tests.integrations.pages import code_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 60.0
# A worker does three jobs, each in a loop of its own; the parent's loop, which has clients, goes on then.
JOBS = """
import asyncio, multiprocessing, sys
import httpx
from loopsafe_db import LoopLocal
from page import s3, store

http = LoopLocal(httpx.AsyncClient, close=httpx.AsyncClient.aclose)


async def job(name):
    await store(name, name.encode())
    client, wanted = await s3.aget(), {"Bucket": "meetings", "Key": name}
    url = await client.generate_presigned_url("get_object", wanted)
    answer = await http.get().get(url)
    assert answer.content == name.encode(), answer
    return id(client), id(http.get())


def work(name):
    for number in range(3):
        asyncio.run(job(f"{name}_{number}"))


def work_in_processes(method):
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=work, args=(f"worker_{number}",)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


async def main(method):
    await (await s3.aget()).create_bucket(Bucket="meetings")
    before = await job("parent_before")
    work_in_processes(method)  # a fork has this loop, too, which it leaves alone
    assert await job("parent_after") == before
    found = await (await s3.aget()).list_objects_v2(Bucket="meetings")
    print(*(each["Key"] for each in found["Contents"]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def s3_url() -> Iterator[str]:
    """An S3 of this test's own."""
    pytest.importorskip("moto.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + PATIENCE
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_clients_of_s3_and_http_work_in_each_loop_of_each_worker(
    method: str, s3_url: str, tmp_path: Path
) -> None:
    pytest.importorskip("aiobotocore")
    pytest.importorskip("httpx")
    (tmp_path / "page.py").write_text(code_of("other-clients", "python buckets"), encoding="utf-8")
    (tmp_path / "jobs.py").write_text(JOBS, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "jobs.py", method],
        cwd=tmp_path,
        env={
            **os.environ,
            "S3_URL": s3_url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )

    assert done.returncode == 0, done.stderr
    assert "Unclosed" not in done.stderr
    assert "unclosed" not in done.stderr
    workers = [f"worker_{worker}_{number}" for worker in range(2) for number in range(3)]
    assert done.stdout.split() == ["parent_after", "parent_before", *workers]
