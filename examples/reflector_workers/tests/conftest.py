"""One handle for the whole run, as code made for `databases` has it; whatever a test does with it is undone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from fastapi.testclient import TestClient

from reflector_workers.storage.schema import DEFINITION
from reflector_workers.tests.api import app

if TYPE_CHECKING:
    from pathlib import Path

    from loopsafe_db import Database


@pytest.fixture(scope="session")
def loopsafe_db_schema() -> Path:
    """The tables of the example."""
    return DEFINITION


@pytest.fixture(scope="session")
def database(loopsafe_db_handle: Database) -> Database:
    return loopsafe_db_handle


@pytest.fixture
def meeting_id(loopsafe_db: Database) -> int:
    """A meeting that is there in this test alone."""
    add = """
        INSERT INTO reflector.meetings (workflow_instance_id, reference_task_name, name, folder)
        VALUES ('w', 'prepare', 'standup', '/') RETURNING id
        """
    return int(asyncio.run(loopsafe_db.fetch_val(add)))


@pytest.fixture
def client(loopsafe_db: Database) -> TestClient:
    """The application, in a thread and an event loop of its own."""
    return TestClient(app)
