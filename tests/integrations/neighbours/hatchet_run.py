"""A worker of Hatchet's SDK beside a stand-in of its engine: ``hatchet_run.py square|square_async``.

The stand-in has the calls of the engine that a worker makes: it registers, listens for actions, tells what became
of them. It knows no workflows and keeps nothing. Messages and services are those of the SDK.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from hatchet_sdk.contracts import dispatcher_pb2 as messages
from hatchet_sdk.contracts.dispatcher_pb2_grpc import (
    DispatcherServicer,
    add_DispatcherServicer_to_server,
)
from hatchet_sdk.contracts.v1.workflows_pb2 import CreateWorkflowVersionResponse
from hatchet_sdk.contracts.v1.workflows_pb2_grpc import (
    AdminServiceServicer,
    add_AdminServiceServicer_to_server,
)

PATIENCE = 60.0
ID = "00000000-0000-0000-0000-000000000000"


class Admin(AdminServiceServicer):
    def PutWorkflow(self, request, context):
        return CreateWorkflowVersionResponse(id=ID, workflow_id=ID)


class Dispatcher(DispatcherServicer):
    """Hands a worker one job after another."""

    def __init__(self, name):
        self._action = f"{name}:{name}"
        self._ended = queue.Queue()
        self.done = queue.Queue()

    def GetVersion(self, request, context):
        return messages.GetVersionResponse(version="v99.0.0")

    def Register(self, request, context):
        return messages.WorkerRegisterResponse(
            tenant_id=ID, worker_id=ID, worker_name=request.worker_name
        )

    def ListenV2(self, request, context):
        for number in range(5):
            yield messages.AssignedAction(
                tenant_id=ID,
                action_id=self._action,
                task_run_external_id=str(number),
                action_type=messages.START_STEP_RUN,
                action_payload=json.dumps({"input": {"number": number}}),
            )
            self.done.put(self._ended.get(timeout=PATIENCE))
        self._ended.get(timeout=PATIENCE)  # as long as the worker listens

    def Heartbeat(self, request, context):
        return messages.HeartbeatResponse()

    def SendStepActionEvent(self, request, context):
        if request.event_type != messages.STEP_EVENT_TYPE_STARTED:
            self._ended.put((request.event_type, request.event_payload))
        return messages.ActionEventResponse()

    def stop(self):
        self._ended.put(None)


def token(port):
    """What a worker learns the addresses from: a JWT, of which it reads the claims alone."""
    claims = {
        "sub": ID,
        "server_url": "http://127.0.0.1:9",  # nothing is there: it goes on without
        "grpc_broadcast_address": f"127.0.0.1:{port}",
    }
    return (
        f"ey.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.signature"
    )


def main():
    dispatcher = Dispatcher(sys.argv[1])
    server = grpc.server(ThreadPoolExecutor(8))
    add_AdminServiceServicer_to_server(Admin(), server)
    add_DispatcherServicer_to_server(dispatcher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    environment = {
        **os.environ,
        "HATCHET_CLIENT_TOKEN": token(port),
        "HATCHET_CLIENT_TLS_STRATEGY": "none",
        "NO_PROXY": "127.0.0.1",
    }
    worker = subprocess.Popen([sys.executable, "-m", "hatchet_jobs"], env=environment)
    for _ in range(5):
        status, payload = dispatcher.done.get(timeout=PATIENCE)
        assert status == messages.STEP_EVENT_TYPE_COMPLETED, payload
    worker.terminate()
    assert worker.wait(PATIENCE) == 0
    dispatcher.stop()
    server.stop(0)


if __name__ == "__main__":
    main()
