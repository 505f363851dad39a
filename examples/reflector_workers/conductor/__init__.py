"""A Conductor for the example: a stand-in, the real server started here, or one that runs.

    with open_conductor("stand-in") as url:          # or "real", or "http://host:8080/api"
        with ConductorClient(url) as conductor:
            conductor.register_task_definitions([{"name": "detect_speech", "retryCount": 3}])

`stand_in` is a small server of the standard library, `real` starts the real one (a JVM of
version 21 or newer), `client` talks to either.
"""

from reflector_workers.conductor.client import ConductorClient, worker_ids
from reflector_workers.conductor.errors import (
    ConductorAnswerError,
    ConductorError,
    ConductorSetupError,
    ConductorUnavailableError,
    WorkflowTimeoutError,
)
from reflector_workers.conductor.opening import open_conductor
from reflector_workers.conductor.stand_in import StandInServer

__all__ = [
    "ConductorAnswerError",
    "ConductorClient",
    "ConductorError",
    "ConductorSetupError",
    "ConductorUnavailableError",
    "StandInServer",
    "WorkflowTimeoutError",
    "open_conductor",
    "worker_ids",
]
