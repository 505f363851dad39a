"""A STAND-IN for a Conductor server: enough of its REST calls to run the example without Java.

This is not Conductor. It keeps everything in memory, knows the task types ``SIMPLE``,
``FORK_JOIN_DYNAMIC`` and ``JOIN`` only, and imitates server 3.32.3 where conductor-python 2.0.0
and this example look. One suite of contract tests runs against it and against the real server.

Refused with an error that says so: other task types, optional tasks, task domains, functions in
expressions, rerunning a branch of a fork. Accepted and ignored: ``timeoutSeconds``, rate and
concurrency limits, priorities, payload storage, task logs, and the definitions' schemas.

Known to differ: a batch poll returns with the first task (the real server waits out its time for
a full batch); a join is done when its last branch is (the real server looks every 30 to 100 ms,
so that branches of one look come in their own order); every lost task is noticed on time (the
real server on SQLite notices the second one of a workflow a minute or two late, see
`ConductorClient.decide_workflow`); a rerun repeats only what follows its task (the real server
also repeats earlier steps that had been retried).
"""

from reflector_workers.conductor.stand_in.server import StandInServer

__all__ = ["StandInServer"]
