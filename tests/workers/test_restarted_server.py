"""PostgreSQL restarts under the fleet, again and again: every meeting completes, with each result once."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

import reflector_workers
from loopsafe_db import get_database
from reflector_workers.conductor import ConductorClient, StandInServer
from reflector_workers.fleet import meeting_fleet
from reflector_workers.progress import WorkflowState, done_by_type, failure_reasons, watch
from reflector_workers.storage.sessions import sessions_left_open
from tests.workers.support import row_counts, server_that_keeps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopsafe_db.testing.postgres import EmbeddedPostgres

How = Literal["fast", "immediate", "kill"]
FOLDER = Path(reflector_workers.__file__).parent
PATIENCE = 150.0
MEETINGS = 12
RESTARTS_AT = (1, 10, 25, 40, 55)  # jobs that are done, of 60
WORKERS = "restarted"  # how their sessions are named
TURNS_OF_EACH = "SELECT count(*) FROM reflector.turns GROUP BY meeting_id"


@pytest.fixture
def conductor() -> Iterator[ConductorClient]:
    with StandInServer() as server, ConductorClient(server.url) as client:
        client.register_task_definitions(json.loads((FOLDER / "task_defs.json").read_text()))
        client.put_workflow(json.loads((FOLDER / "workflow.json").read_text()))
        yield client


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedPostgres]:
    with server_that_keeps(WORKERS, monkeypatch) as server:
        yield server


class Restarter:
    """Restarts the server each time that so many jobs are done."""

    def __init__(self, server: EmbeddedPostgres, how: How) -> None:
        self._server, self._how = server, how
        self.left = list(RESTARTS_AT)

    def look(self, states: list[WorkflowState]) -> None:
        if self.left and done_by_type(states).total() >= self.left[0]:
            self.left.pop(0)
            self._server.restart(self._how)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_every_meeting_completes_though_postgresql_restarts(
    conductor: ConductorClient,
    server: EmbeddedPostgres,
    short_meeting: Path,
    tmp_path: Path,
    how: How,
) -> None:
    restarter = Restarter(server, how)
    with meeting_fleet(conductor.base_url, tmp_path) as fleet:
        given = {"folder": str(short_meeting)}
        workflows = [
            conductor.start_workflow("reflector_diarization", given) for _ in range(MEETINGS)
        ]
        states = watch(conductor, workflows, PATIENCE, restarter.look)

    assert [state.status for state in states] == ["COMPLETED"] * MEETINGS, failure_reasons(states)
    assert restarter.left == []
    assert (fleet.killed, multiprocessing.active_children()) == (0, [])
    counts = row_counts()
    expected = (MEETINGS, 2 * MEETINGS, 3 * MEETINGS)
    assert (counts["meetings"], counts["tracks"], counts["outputs"]) == expected
    turns = [row[0] for row in asyncio.run(get_database().fetch_all(TURNS_OF_EACH))]
    assert (len(turns), len({*turns})) == (MEETINGS, 1)
    assert asyncio.run(sessions_left_open(WORKERS)) == 0
