"""Streamlit's own server, and a browser's part of the talk with it: the script runs five times."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect

PATIENCE = 60.0
OPTIONS = {
    "--server.headless": "true",
    "--server.address": "127.0.0.1",
    "--server.fileWatcherType": "none",
    "--browser.gatherUsageStats": "false",
}


def connected(port):
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return connect(
                f"ws://127.0.0.1:{port}/_stcore/stream", subprotocols=["streamlit"], proxy=None
            )
        except OSError:
            assert time.monotonic() < give_up


def run_script(browser):
    again = BackMsg()
    again.rerun_script.query_string = ""
    browser.send(again.SerializeToString())
    while True:
        told = ForwardMsg.FromString(browser.recv(timeout=PATIENCE))
        if told.WhichOneof("type") == "script_finished":
            return


def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [word for option in OPTIONS.items() for word in option]
    script = __file__.replace("_run.py", "_jobs.py")
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", script, "--server.port", str(port), *words]
    )
    with connected(port) as browser:
        for _ in range(5):
            run_script(browser)
    server.terminate()
    assert server.wait(PATIENCE) == 0


if __name__ == "__main__":
    main()
