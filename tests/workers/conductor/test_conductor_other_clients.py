"""Clients of Redis, S3 and HTTP by `LoopLocal` in Conductor's workers: no job meets one of another loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integrations.pages import code_of
from tests.integrations.test_job_queues import redis_url  # noqa: F401  (a fixture)
from tests.integrations.test_other_clients import s3_url  # noqa: F401  (a fixture)
from tests.workers.conductor.test_conductor_fleet_life import (
    KINDS,
    ON_THE_STAND_IN,
    Jobs,
    jobs,  # noqa: F401  (a fixture)
    start,  # noqa: F401  (a fixture)
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.workers.conductor.test_conductor_fleet_life import Program

JOBS_OF_EACH_KIND = 4
# Worker processes that are forked have their parent's clients, too, and its loop, which goes on.
MAIN = """
import asyncio, sys
from loopsafe_db.integrations.conductor import run_workers
if __name__ == "__main__":
    from clients import keep
    with asyncio.Runner() as runner:
        runner.run(keep("parent_before"))
        code = run_workers({url!r}, {modules!r}, {options})
        runner.run(keep("parent_after"))
    sys.exit(code)
"""
CLIENTS = """
import os

import httpx
from conductor.client.worker.worker_task import worker_task
from redis.asyncio import Redis

from loopsafe_db import LoopLocal
from loopsafe_db.integrations.conductor import checked, do_job, run_job
from page import s3, store

http = LoopLocal(httpx.AsyncClient, close=httpx.AsyncClient.aclose)
redis = LoopLocal(lambda: Redis.from_url(os.environ["REDIS_URL"]), close=Redis.aclose)


async def keep(name):
    client = await s3.aget()
    if name == "parent_before":
        await client.create_bucket(Bucket="meetings")
    await store(name, name.encode())
    url = await client.generate_presigned_url("get_object", {"Bucket": "meetings", "Key": name})
    answer = await http.get().get(url)
    await (await redis.aget()).rpush("kept", answer.text)
    return {"kept": answer.text}


@worker_task(task_definition_name="in_thread", thread_count=2, poll_interval_millis=20)
@checked
def in_thread(seconds: float) -> dict:
    return run_job(lambda job: keep(job.workflow_instance_id))


@worker_task(task_definition_name="in_loop", thread_count=2, poll_interval_millis=20)
@checked
async def in_loop(seconds: float) -> dict:
    return await do_job(lambda job: keep(job.workflow_instance_id))
"""
ENVIRONMENT = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_DEFAULT_REGION": "us-east-1",
    "NO_PROXY": "127.0.0.1",
}


@ON_THE_STAND_IN
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_each_job_has_clients_of_its_own_loop(
    method: str,
    s3_url: str,  # noqa: F811
    redis_url: str,  # noqa: F811
    start: Callable[..., Program],  # noqa: F811
    jobs: Jobs,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis = pytest.importorskip("redis")
    pytest.importorskip("aiobotocore")
    for name, value in {**ENVIRONMENT, "S3_URL": s3_url, "REDIS_URL": redis_url}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "page.py").write_text(code_of("other-clients", "python buckets"), encoding="utf-8")
    (tmp_path / "clients.py").write_text(CLIENTS, encoding="utf-8")
    told = redis.Redis.from_url(redis_url, decode_responses=True)
    told.delete("kept")

    program = start(main=MAIN, modules=("clients",), start_method=method)
    while not told.llen("kept"):
        assert program.process.poll() is None, program.process.communicate()
    workflows = [jobs.begin(kind, 0) for kind in KINDS for _ in range(JOBS_OF_EACH_KIND)]
    for workflow in workflows:
        assert jobs.end(workflow)["outputData"] == {"kept": workflow}  # at the first attempt
    code = program.stop()

    said = "".join(program.process.communicate())
    assert code == 0, said
    wanted = [*workflows, "parent_before", "parent_after"]
    kept = told.lrange("kept", 0, -1)  # beside jobs that an earlier test has left on that server
    assert sorted(one for one in kept if one in wanted) == sorted(wanted)
    assert not {"Unclosed", "unclosed", "Error"} & {*said.replace(":", " ").split()}, said
