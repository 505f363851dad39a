"""Give a job to a Conductor worker as its SDK would, without a server.

::

    result = run_worker(detect_speech, {"track_id": 7})
    assert (result.status, result.output) == ("COMPLETED", {"segment_count": 12})

The runners are the SDK's own (conductor-python, imported when a job is run): they convert the input, set the
TaskContext, call the worker in a pool thread or, if it is async, in an event loop, and make a TaskResult of what
it returns or raises. Only the server is missing: in its place there is one job to poll, and one result to keep.

The function is called `run_worker`, not ``worker_task``: a test module of workers has the SDK's decorator of that
name in it already.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loopsafe_db.errors import ConfigurationError, MisuseError
from loopsafe_db.testing.children import call_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from loopsafe_db.testing.children import StartMethod

__all__ = ["MissingConductorError", "WorkerResult", "run_worker"]


class MissingConductorError(ConfigurationError, ImportError):
    """Conductor's SDK is not installed."""

    code = "LDB504"
    hint = "pip install conductor-python"


@dataclass(frozen=True)
class WorkerResult:
    """What Conductor's server would have been told of a job.

    Attributes:
        status: ``COMPLETED``, ``FAILED``, ``FAILED_WITH_TERMINAL_ERROR`` or ``IN_PROGRESS``.
        output: As the next worker would read it: after a journey through JSON.
        reason: Why it is not completed.
        logs: What the worker has logged for the job, and the traceback of an exception.
        task_result: The SDK's ``TaskResult``; its ``callback_after_seconds`` tells when a job that is in progress
            is to be delivered again.
    """

    status: str
    output: dict[str, Any]
    reason: str | None = None
    logs: tuple[str, ...] = field(default=(), repr=False)
    task_result: Any = field(default=None, repr=False, compare=False)


def run_worker(
    worker: Callable[..., Any],
    inputs: Mapping[str, object] | None = None,
    *,
    task_definition_name: str | None = None,
    reference_task_name: str | None = None,
    workflow_instance_id: str = "workflow-1",
    task_id: str = "task-1",
    retry_count: int = 0,
    task_fields: Mapping[str, object] | None = None,
    start_method: StartMethod | None = None,
    timeout: float = 30.0,
) -> WorkerResult:
    """Give one job to a worker, and wait for its result.

    Each job has a Context of its own, as the first job of a worker process has. An exception of the worker is no
    exception here, but a status and a reason, as it is for Conductor.

    Args:
        worker: A function with the SDK's ``@worker_task``, or without.
        inputs: The job's ``inputData``; it makes a journey through JSON first.
        task_definition_name: The kind of job. ``None`` takes the decorator's, else the function's name.
        reference_task_name: The step of the workflow. ``None`` takes the kind of job.
        workflow_instance_id: The run of the workflow.
        task_id: The delivery.
        retry_count: How often the job has failed before.
        task_fields: More attributes of the SDK's ``Task``, such as ``{"iteration": 2}``.
        start_method: How to make a child process for it, see `call_in_child`. ``None`` runs it in this one: an
            async worker in this thread, or in another one if a loop runs here.
        timeout: Seconds for the child process. In place nothing can end a worker that hangs.

    Raises:
        MisuseError: Input or output cannot be sent as JSON (the key is named), or the worker ended without a
            result: it raised what is no ``Exception``.
        MissingConductorError: conductor-python is not installed.
        ChildError: The child process died with the job.
    """
    given = _through_json("input", dict(inputs or {}))
    fields = {
        "task_def_name": task_definition_name,
        "reference_task_name": reference_task_name,
        "workflow_instance_id": workflow_instance_id,
        "task_id": task_id,
        "retry_count": retry_count,
        "input_data": given,
        **(task_fields or {}),
    }
    if start_method is None:
        return _run(worker, fields)
    return call_in_child(_run, worker, fields, start_method=start_method, timeout=timeout)


def _run(function: Callable[..., Any], fields: dict[str, object]) -> WorkerResult:
    try:
        from conductor.client.http.api_client import ApiClient
        from conductor.client.http.models.task import Task
    except ImportError as error:
        raise MissingConductorError(
            f"a worker's job needs Conductor's SDK, and it cannot be imported: {error}"
        ) from error
    configuration = _unconnected()
    worker = _worker_of(function, fields["task_def_name"])
    worker.thread_count = 1
    worker.api_client = ApiClient(
        configuration
    )  # its serializer; the default one may ask for a token
    kind = fields["task_def_name"] = worker.get_task_definition_name()
    fields["reference_task_name"] = fields["reference_task_name"] or kind
    job = _OneJob(Task(**{"status": "IN_PROGRESS", "task_type": kind, "poll_count": 1, **fields}))
    run = _run_in_loop if _is_async(worker.execute_function) else _run_in_pool
    run(worker, configuration, job)
    return _as_received(worker, job.result)


def _unconnected() -> Any:
    """The SDK's configuration of a client that never sends anything, wherever the environment points."""
    from conductor.client.configuration.configuration import Configuration

    configuration = Configuration(server_api_url="http://server.invalid/api")
    configuration.authentication_settings = None  # a token would be asked for at once
    configuration.http_connection = object()  # spares it a client with its TLS context
    return configuration


def _worker_of(function: Callable[..., Any], name: object) -> Any:
    """The SDK's Worker: the one that the decorator has registered, else a plain one."""
    from conductor.client.automator.task_handler import get_registered_workers
    from conductor.client.worker import worker_task as decorators
    from conductor.client.worker.worker import Worker

    while getattr(function, "__globals__", None) is vars(decorators):
        function = function.__wrapped__  # type: ignore[attr-defined]
    for worker in get_registered_workers():
        if worker.execute_function is function:
            worker.task_definition_name = name or worker.task_definition_name
            return worker
    return Worker(name or getattr(function, "__name__", type(function).__name__), function)


def _is_async(function: Any) -> bool:
    """Which runner the SDK would take; an instance with an async ``__call__`` counts."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(type(function), "__call__", None)  # noqa: B004 (asked for, not called)
    )


class _OneJob:
    """In the place of the SDK's client for tasks: hands out one job, takes one result."""

    def __init__(self, task: Any) -> None:
        self._jobs = [task]
        self._slots = 0
        self.is_lost = False
        self.result: Any = None

    @property
    def is_over(self) -> bool:
        return self.is_lost or self.result is not None

    def batch_poll(self, tasktype: str, *, count: int, **_: object) -> list[Any]:
        if self._jobs:
            self._slots = count
            return [self._jobs.pop()]
        self.is_lost = count == self._slots and self.result is None  # nobody works on it any more
        return []

    def update_task_v2(self, body: Any) -> None:
        self.result = body


class _AsyncOneJob:
    """The same for the SDK's async runner."""

    def __init__(self, job: _OneJob) -> None:
        self._job = job

    async def batch_poll(self, tasktype: str, **params: Any) -> list[Any]:
        return self._job.batch_poll(tasktype, **params)

    async def update_task_v2(self, body: Any) -> None:
        self._job.update_task_v2(body)


def _run_in_pool(worker: Any, configuration: Any, job: _OneJob) -> None:
    """As a process of a sync worker does: poll here, call the worker in a pool thread."""
    from conductor.client.automator.task_runner import TaskRunner

    with TaskRunner(worker, configuration) as runner:
        _make_it_work(worker)
        runner.task_client = job
        while not job.is_over:
            runner.run_once()


def _run_in_loop(worker: Any, configuration: Any, job: _OneJob) -> None:
    """As a process of an async worker does: all in one event loop, which is new here."""

    def run() -> None:
        Context().run(asyncio.run, _poll_in_loop(worker, configuration, job))

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        run()
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(run).result()


async def _poll_in_loop(worker: Any, configuration: Any, job: _OneJob) -> None:
    from conductor.client.automator.async_task_runner import AsyncTaskRunner

    async with AsyncTaskRunner(worker, configuration) as runner:
        _make_it_work(worker)
        # run() would make these two, with a client that connects
        runner.async_task_client = _AsyncOneJob(job)
        runner._semaphore = asyncio.Semaphore(1)  # noqa: SLF001
        while not job.is_over:
            await runner.run_once()


def _make_it_work(worker: Any) -> None:
    """Overrule what the environment may have told the runner: there is no server to tell of a lease."""
    worker.paused = False
    worker.lease_extend_enabled = False


def _as_received(worker: Any, result: Any) -> WorkerResult:
    """What a server reads of the TaskResult; the SDK's own object is made to agree."""
    if result is None:
        raise MisuseError(
            f"worker {worker.get_task_definition_name()!r} ended without a result: Conductor would wait for its "
            "response timeout\n"
            "HINT: a worker may raise an Exception; SystemExit and CancelledError are lost in the SDK"
        )
    sanitize = worker.api_client.sanitize_for_serialization
    result.output_data = _through_json("output", result.output_data or {}, sanitize)
    if result.reason_for_incompletion is not None:
        result.reason_for_incompletion = str(result.reason_for_incompletion)
    return WorkerResult(
        status=json.loads(json.dumps(result.status)),
        output=result.output_data,
        reason=result.reason_for_incompletion,
        logs=tuple(str(entry.log) for entry in result.logs or ()),
        task_result=result,
    )


def _through_json(
    what: str, value: dict[str, Any], prepare: Callable[[Any], Any] = lambda value: value
) -> dict[str, Any]:
    """The value as it comes out of JSON on the other side."""
    try:
        journey: dict[str, Any] = json.loads(_as_json(value, prepare))
    except Exception as error:
        raise MisuseError(
            f"{_culprit(what, value, prepare)} cannot be sent as JSON: {error}\n"
            "HINT: Conductor's jobs carry text, numbers, booleans, None, lists and dicts; pass an id, and keep the "
            "rest in the database"
        ) from error
    return journey


def _as_json(value: Any, prepare: Callable[[Any], Any]) -> str:
    return json.dumps(prepare(value), allow_nan=False)  # Conductor refuses NaN


def _culprit(path: str, value: Any, prepare: Callable[[Any], Any]) -> str:
    """The innermost key whose value cannot be sent."""
    seen: list[int] = []  # a value may contain itself
    while id(value) not in seen:
        seen.append(id(value))
        for key, child in _children(value):
            if not _travels(child, prepare):
                path, value = f"{path}[{key!r}]", child
                break
    return f"{path}, a {type(value).__name__},"


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def _travels(value: Any, prepare: Callable[[Any], Any]) -> bool:
    try:
        _as_json(value, prepare)
    except Exception:  # noqa: BLE001 (whatever it is, the SDK would fail with it)
        return False
    return True
