"""How often a JOIN ends a workflow whose branch has retries left: ``python -m tests.workers.conductor.join_race``.

Branches of a dynamic fork fail once, with retries left. The server's JOIN may look between the failure and the retry,
and then ends the workflow. Prints, for each form of the branches, how many workflows failed; with ``--postgres`` the
server keeps its state in an embedded PostgreSQL, else in its SQLite.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx

from loopsafe_db.testing.postgres import EmbeddedPostgres
from reflector_workers.conductor.real import RealServer
from tests.workers.conductor.rest import Server, fork, simple

if TYPE_CHECKING:
    from collections.abc import Callable

WORKFLOWS = 24
BRANCHES = 4
BRANCH = "race_branch"
OK = 200
PARAMETERS = {
    "dynamicForkTasksParam": "dynamicTasks",
    "dynamicForkTasksInputParamName": "dynamicTasksInput",
}


def _inputs(failing: int) -> list[dict[str, Any]]:
    return [{"fails": number < failing} for number in range(BRANCHES)]


def _define_simple(server: Server, name: str, failing: int) -> None:
    server.define(name, fork("fork", {"forkTaskName": BRANCH, "forkTaskInputs": _inputs(failing)}))


def _define_permissive(server: Server, name: str, failing: int) -> None:
    references = [f"branch_{number}" for number in range(BRANCHES)]
    step = {"name": BRANCH, "type": "SIMPLE", "permissive": True}
    given = {
        "dynamicTasks": [step | {"taskReferenceName": reference} for reference in references],
        "dynamicTasksInput": dict(zip(references, _inputs(failing), strict=True)),
    }
    server.define(name, fork("fork", given, **PARAMETERS))


def _define_sub_workflows(server: Server, name: str, failing: int) -> None:
    server.define(f"{BRANCH}_alone", [simple(BRANCH, BRANCH, fails="${workflow.input.fails}")])
    given = {
        "forkTaskWorkflow": f"{BRANCH}_alone",
        "forkTaskInputs": _inputs(failing),
    }
    server.define(name, fork("fork", given))


FORMS: dict[str, Callable[[Server, str, int], None]] = {
    "tasks": _define_simple,
    "permissive tasks": _define_permissive,
    "sub-workflows of one task": _define_sub_workflows,
}


def work(url: str, stop: threading.Event) -> None:
    """A worker, as fast as can be: it fails a job once, if the job says so."""
    with httpx.Client(timeout=30, trust_env=False) as http:
        server = Server(url, http)
        while not stop.is_set():
            for task in server.poll(BRANCH, wait_ms=50):
                fails = task["inputData"]["fails"] and not task["retryCount"]
                while server.report(task, "FAILED" if fails else "COMPLETED").status != OK:
                    pass  # SQLite was locked for too long


def measure(server: Server, form: str, failing: int) -> Counter[str]:
    """How the workflows of a form end."""
    name = f"race_{form.replace(' ', '_').replace('-', '_')}_{failing}"
    FORMS[form](server, name, failing)
    ids = [server.start(name) for _ in range(WORKFLOWS)]
    return Counter(server.ended(each, within=180)["status"] for each in ids)


def main() -> None:
    """Measure each form, with one failing branch and with all."""
    stop = threading.Event()
    with ExitStack() as stack:
        database = None
        if "--postgres" in sys.argv:
            database = stack.enter_context(EmbeddedPostgres()).create_database()
        url = stack.enter_context(RealServer(database=database)).url
        server = Server(url, stack.enter_context(httpx.Client(timeout=30, trust_env=False)))
        server.register(BRANCH, retryCount=2, retryDelaySeconds=0)
        workers = [threading.Thread(target=work, args=(url, stop)) for _ in range(BRANCHES)]
        for worker in workers:
            worker.start()
        try:
            for form in FORMS:
                for failing in (1, BRANCHES):
                    ended = measure(server, form, failing)
                    print(f"{form}, {failing} of {BRANCHES} fail once: {dict(ended)}", flush=True)
        finally:
            stop.set()
            for worker in workers:
                worker.join()


if __name__ == "__main__":
    main()
