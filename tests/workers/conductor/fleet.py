"""Worker processes of conductor-python, unmodified: ``python -m tests.workers.conductor.fleet``.

Arguments: the API's URL, a suffix for the task types, a folder where workers leave notes.
"""

import asyncio
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

from conductor.client.automator.task_handler import TaskHandler
from conductor.client.configuration.configuration import Configuration
from conductor.client.context.task_context import get_task_context
from conductor.client.http.models.task import Task
from conductor.client.worker.worker_task import worker_task

URL, SUFFIX, FOLDER = os.environ.get("FLEET", " , , ").split(",")


@worker_task(f"sync_{SUFFIX}", thread_count=4, poll_interval_millis=20)  # type: ignore[untyped-decorator]
def in_a_thread(n: int) -> dict:  # type: ignore[type-arg]
    """A sync worker: runs in a pool thread, with a loop of its own for each task."""
    return {"twice": asyncio.run(twice(n)), "pid": os.getpid()}


@worker_task(f"async_{SUFFIX}", thread_count=4, poll_interval_millis=20)  # type: ignore[untyped-decorator]
async def in_a_loop(n: int) -> dict:  # type: ignore[type-arg]
    """An async worker: one loop for the life of its process."""
    return {"twice": await twice(n), "reference": get_task_context().task.reference_task_name}


@worker_task(f"fails_{SUFFIX}", poll_interval_millis=20)  # type: ignore[untyped-decorator]
def fails_at_first(task: Task) -> dict:  # type: ignore[type-arg]
    """Fails once, then works."""
    if task.retry_count == 0:
        raise ValueError("not this time")
    return {"attempt": task.retry_count}


@worker_task(f"hangs_{SUFFIX}", poll_interval_millis=20)  # type: ignore[untyped-decorator]
def hangs_at_first(task: Task) -> dict:  # type: ignore[type-arg]
    """Tells its pid and hangs the first time: somebody kills it. Then it works."""
    if task.retry_count == 0:
        unfinished = Path(FOLDER, "writing")
        unfinished.write_text(str(os.getpid()))
        unfinished.rename(Path(FOLDER, "hangs"))
        threading.Event().wait()
    return {"attempt": task.retry_count, "pid": os.getpid()}


@worker_task(f"slow_{SUFFIX}", poll_interval_millis=20, lease_extend_enabled=True)  # type: ignore[untyped-decorator]
def slower_than_its_timeout(milliseconds: int) -> dict:  # type: ignore[type-arg]
    """Outlives its response timeout: the SDK renews the lease meanwhile."""
    threading.Event().wait(milliseconds / 1000)
    return {"waited": milliseconds}


async def twice(n: int) -> int:
    await asyncio.sleep(0)
    return 2 * n


def main() -> None:
    """Run the workers until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    configuration = Configuration(server_api_url=URL)
    with TaskHandler(configuration=configuration, scan_for_annotated_workers=True) as handler:
        handler.start_processes()
        print("started", flush=True)
        with suppress(KeyboardInterrupt):
            stop.wait()


if __name__ == "__main__":
    main()
