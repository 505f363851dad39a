"""What the tests of the workers share: jobs delivered as Conductor does, and recordings."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

# The SDK's runner calls this before each job; there is no public way to be a runner.
from conductor.client.context.task_context import _set_task_context
from conductor.client.http.models.task import Task
from conductor.client.http.models.task_result import TaskResult
from conductor.client.worker.worker import Worker
from sqlalchemy import make_url

from loopsafe_db import configure, get_database
from loopsafe_db.testing.postgres import EmbeddedPostgres
from reflector_workers.storage.schema import create_schema
from reflector_workers.workers.detect_speech import detect_speech
from reflector_workers.workers.finalize import finalize
from reflector_workers.workers.merge_turns import merge_turns
from reflector_workers.workers.prepare_meeting import prepare_meeting
from tests.conftest import skip_without_postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pytest

TABLES = ("meetings", "tracks", "segments", "turns", "outputs")


class WriteWav(Protocol):
    """Write a silent WAV file below the test's folder."""

    def __call__(
        self,
        name: str,
        *,
        rate: int = ...,
        channels: int = ...,
        width: int = ...,
        seconds: float = ...,
    ) -> Path: ...


def deliver(
    worker: Callable[..., Any], reference: str, given: dict[str, Any], *, workflow: str = "w-1"
) -> TaskResult:
    """Give a job to a worker function through the SDK, as JSON both ways.

    Each delivery has a Context of its own, as the first job of a thread has.
    """
    task = Task(
        task_id=f"{workflow}/{reference}",
        workflow_instance_id=workflow,
        reference_task_name=reference,
        task_def_name=worker.__name__,
        input_data=json.loads(json.dumps(given)),
    )
    return contextvars.copy_context().run(_execute, worker, task)


def output_of(
    worker: Callable[..., Any], reference: str, given: dict[str, Any], *, workflow: str = "w-1"
) -> dict[str, Any]:
    """Deliver a job that must succeed; its output after a journey through JSON."""
    result = deliver(worker, reference, given, workflow=workflow)
    assert result.status == "COMPLETED", result.reason_for_incompletion
    output: dict[str, Any] = json.loads(json.dumps(result.output_data, allow_nan=False))
    return output


def _execute(worker: Callable[..., Any], task: Task) -> TaskResult:
    result = TaskResult(
        task_id=task.task_id, workflow_instance_id=task.workflow_instance_id, worker_id="test"
    )
    _set_task_context(task, result)
    function = worker.__wrapped__  # type: ignore[attr-defined]
    if inspect.iscoroutinefunction(function):  # the SDK's async runner awaits it in its own loop
        result.output_data = asyncio.run(function(**task.input_data))
        result.status = "COMPLETED"
        return result
    return Worker(task.task_def_name, function).execute(task)


def diarize(
    folder: Path, workflow: str = "w-1", starts: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """All jobs of a workflow, the tracks finishing in reverse."""
    given = {"folder": str(folder), "starts": starts}
    prepared = output_of(prepare_meeting, "prepare_meeting", given, workflow=workflow)
    detected = {
        f"_detect_speech_{index}": output_of(
            detect_speech, f"_detect_speech_{index}", track, workflow=workflow
        )
        for index, track in reversed(list(enumerate(prepared["tracks"])))
    }
    merge = {"meeting_id": prepared["meeting_id"], "detected": detected}
    merged = output_of(merge_turns, "merge_turns", merge, workflow=workflow)
    return output_of(finalize, "finalize", merged, workflow=workflow)


def row_counts() -> dict[str, int]:
    """How many rows each table has."""

    async def count() -> dict[str, int]:
        query = "SELECT count(*) FROM reflector."
        return {table: await get_database().fetch_val(query + table) for table in TABLES}

    return asyncio.run(count())


@contextmanager
def server_that_keeps(
    application: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmbeddedPostgres]:
    """A server of one test's own behind `get_database`, with the example's tables, that keeps what it has committed."""
    settings = {"synchronous_commit": "on"}
    with skip_without_postgres(), EmbeddedPostgres(settings=settings) as server:
        database = configure(url=server.url)
        asyncio.run(create_schema())
        named = make_url(server.url).update_query_dict({"application_name": application})
        monkeypatch.setenv("LOOPSAFE_DB_URL", named.render_as_string(hide_password=False))
        yield server
        asyncio.run(database.disconnect())
