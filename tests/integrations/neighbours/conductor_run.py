"""A fleet on the example's stand-in for Conductor: ``conductor_run square|square_async``."""

from __future__ import annotations

import sys

PATIENCE = 60.0


def main():
    from loopsafe_db.integrations.conductor import Fleet
    from reflector_workers.conductor import ConductorClient, StandInServer

    (name,) = sys.argv[1:]
    step = {"type": "SIMPLE", "name": name, "taskReferenceName": "only"}
    step["inputParameters"] = {"number": "${workflow.input.number}"}
    with StandInServer() as server, ConductorClient(server.url) as client:
        client.register_task_definitions([{"name": name, "retryCount": 0}])
        client.put_workflow({"name": name, "version": 1, "schemaVersion": 2, "tasks": [step]})
        with Fleet(server.url, ["conductor_jobs"]):
            for number in range(5):
                begun = client.start_workflow(name, {"number": number})
                ended = client.wait_for_workflow(begun, timeout=PATIENCE)
                assert ended["status"] == "COMPLETED", ended


if __name__ == "__main__":  # the processes are spawned
    main()
