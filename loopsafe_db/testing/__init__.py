"""What tests of code on loopsafe_db need: a real PostgreSQL, child processes, staged races, jobs for workers.

Nothing here is imported by the library itself, and importing it starts nothing: `run_worker` imports Conductor's
SDK when it is called. The server is in `loopsafe_db.testing.postgres`, the suite that drivers pass in
`loopsafe_db.testing.conformance`.
"""

from loopsafe_db.testing.children import (
    START_METHODS,
    ChildError,
    ChildTimeout,
    StartMethod,
    call_in_child,
)
from loopsafe_db.testing.sequencer import SequenceError, Sequencer
from loopsafe_db.testing.statements import assert_queries
from loopsafe_db.testing.worker_task import MissingConductorError, WorkerResult, run_worker

__all__ = [
    "START_METHODS",
    "ChildError",
    "ChildTimeout",
    "MissingConductorError",
    "SequenceError",
    "Sequencer",
    "StartMethod",
    "WorkerResult",
    "assert_queries",
    "call_in_child",
    "run_worker",
]
