"""What the example uses: the client, and one way to open any Conductor."""

from __future__ import annotations

import pickle
import socket
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from reflector_workers.conductor import (
    ConductorAnswerError,
    ConductorClient,
    ConductorSetupError,
    ConductorUnavailableError,
    StandInServer,
    WorkflowTimeoutError,
    open_conductor,
    worker_ids,
)
from reflector_workers.conductor.opening import URL_VARIABLE
from tests.workers.conductor.rest import Server, simple, statuses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    Unique = Callable[[str], str]


@pytest.fixture
def client(conductor: Server) -> Iterator[ConductorClient]:
    with ConductorClient(conductor.url) as client:
        yield client


def define(client: ConductorClient, unique: Unique) -> str:
    """Define a workflow of two tasks of one type; returns the workflow's name."""
    job = {"name": unique("job"), "retryCount": 0, "responseTimeoutSeconds": 60}
    client.register_task_definitions([job])
    steps = [simple(unique("job"), "a"), simple(unique("job"), "b")]
    client.put_workflow({"name": unique("flow"), "version": 1, "tasks": steps})
    return unique("flow")


def test_a_workflow_is_waited_for_and_its_progress_reported(
    client: ConductorClient, conductor: Server, unique: Unique
) -> None:
    workflow_id = client.start_workflow(define(client, unique), {}, correlation_id="meeting 7")
    seen: list[int] = []
    looked = threading.Event()

    def look(workflow: dict[str, Any]) -> None:
        seen.append(len(workflow["tasks"]))
        looked.set()

    def work() -> None:
        looked.wait(30)
        for worker in ("one", "two"):
            conductor.finish(conductor.take(unique("job"), worker=worker), by=worker)

    thread = threading.Thread(target=work)
    thread.start()
    workflow = client.wait_for_workflow(workflow_id, timeout=30, interval=0.01, on_progress=look)
    thread.join()

    assert (workflow["status"], workflow["correlationId"]) == ("COMPLETED", "meeting 7")
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (1, 2)
    assert worker_ids(workflow) == {"one": 1, "two": 1}
    assert [row["workerId"] for row in client.poll_data(unique("job"))] == ["two"]


def test_waiting_ends_with_what_is_unfinished(client: ConductorClient, unique: Unique) -> None:
    workflow_id = client.start_workflow(define(client, unique), {})

    with pytest.raises(WorkflowTimeoutError, match="a: SCHEDULED") as caught:
        client.wait_for_workflow(workflow_id, timeout=0, interval=0)

    assert caught.value.workflow_id == workflow_id
    assert isinstance(caught.value, TimeoutError)


def test_waiting_has_every_lost_task_noticed(
    client: ConductorClient, conductor: Server, unique: Unique
) -> None:
    job = {"name": unique("job"), "retryCount": 1, "retryDelaySeconds": 0}
    client.register_task_definitions([job | {"responseTimeoutSeconds": 1}])
    steps = [simple(unique("job"), "only")]
    client.put_workflow({"name": unique("flow"), "version": 1, "tasks": steps})
    workflow_id = client.start_workflow(unique("flow"), {})

    def lose_every_task() -> None:
        for _ in range(2):
            conductor.take(unique("job"))

    thread = threading.Thread(target=lose_every_task)
    thread.start()
    # Unasked, the real server notices the second loss after a minute or two.
    workflow = client.wait_for_workflow(workflow_id, timeout=30)
    thread.join()

    assert [task["status"] for task in workflow["tasks"]] == ["TIMED_OUT", "TIMED_OUT"]


def test_a_workflow_is_rerun_restarted_terminated_and_retried(
    client: ConductorClient, conductor: Server, unique: Unique
) -> None:
    workflow_id = client.start_workflow(define(client, unique), {})
    for _ in range(2):
        conductor.finish(conductor.take(unique("job")), ok=True)
    done = client.wait_for_workflow(workflow_id, timeout=30)

    client.rerun_workflow(workflow_id, done["tasks"][1]["taskId"])
    rerun = conductor.take(unique("job"))
    conductor.finish(rerun)
    client.wait_for_workflow(workflow_id, timeout=30)
    client.restart_workflow(workflow_id)
    client.terminate_workflow(workflow_id, "enough")
    terminated = client.get_workflow(workflow_id)
    client.retry_workflow(workflow_id)

    assert rerun["taskId"] == done["tasks"][1]["taskId"]
    assert terminated["reasonForIncompletion"] == "enough"
    assert statuses(terminated) == [("a", "CANCELED")]
    retried = client.get_workflow(workflow_id)
    assert statuses(retried) == [("a", "CANCELED"), ("a", "SCHEDULED")]


def test_a_refusal_carries_the_status_and_the_words_of_the_server(
    client: ConductorClient, unique: Unique
) -> None:
    with pytest.raises(ConductorAnswerError, match="No such workflow found by id: none") as caught:
        client.get_workflow("none")
    with pytest.raises(ConductorAnswerError, match="WorkflowTask list cannot be empty"):
        client.put_workflow({"name": unique("flow"), "version": 1, "tasks": []})

    assert (caught.value.status, caught.value.call) == (404, "GET /workflow/none")


@pytest.mark.parametrize(
    "error",
    [
        ConductorAnswerError(404, "GET /x", "none"),
        WorkflowTimeoutError("id", 1.5, ("a: SCHEDULED",)),
        ConductorSetupError("no Java"),
        ConductorUnavailableError("no server"),
    ],
)
def test_every_error_survives_pickling(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_the_stand_in_is_the_default_and_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)

    with open_conductor() as url, ConductorClient(url) as client:
        version = client.version()

    assert version.endswith("stand-in")
    with ConductorClient(url) as client, pytest.raises(ConductorUnavailableError, match=url):
        client.check()


def test_a_running_server_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with StandInServer() as server:
        monkeypatch.setenv(URL_VARIABLE, server.url)
        with open_conductor() as url:
            assert url == server.url
        with open_conductor(server.url.removesuffix("/api")) as url:
            assert url == server.url
        with ConductorClient(url) as client:
            client.check()  # it was not ours to stop


@pytest.mark.parametrize("kind", ["docker", "ftp://127.0.0.1/api", "http://"])
def test_an_unknown_kind_of_conductor_is_refused(kind: str) -> None:
    with pytest.raises(ConductorSetupError, match="stand-in, real, or the API's URL"):
        open_conductor(kind).__enter__()


def test_a_url_where_nothing_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reflector_workers.conductor.opening._ANSWER_SECONDS", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"

        with pytest.raises(ConductorUnavailableError, match="is the server running"):
            open_conductor(url).__enter__()


def test_stopping_the_stand_in_ends_long_polls_and_idle_connections(http: httpx.Client) -> None:
    server = StandInServer().start()
    answers: list[object] = []
    with ConductorClient(server.url) as idle:

        def poll() -> None:
            answers.append(http.get(f"{server.url}/tasks/poll/batch/none?timeout=5000").json())

        thread = threading.Thread(target=poll)
        thread.start()
        while not idle.poll_data("none"):  # until the poll has arrived
            pass
        serving = threads_of(server)
        server.stop()
        server.stop()
        thread.join(4)

    assert (len(serving), threads_of(server)) == (2, [])
    assert answers == [[]]
    assert repr(server).endswith("stopped>")


def threads_of(server: StandInServer) -> list[threading.Thread]:
    port = urlsplit(server.url).port
    return [t for t in threading.enumerate() if t.name == f"conductor stand-in {port}"]
