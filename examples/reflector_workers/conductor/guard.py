"""Runs a command for as long as the standard input stays open, then stops it.

A child process of the example's server: the pipe to it breaks when its parent ends, however it
ends (SIGKILL included), so that no server is left behind, nor its folder. Run as a file, it
imports nothing of the example: ``python guard.py SECONDS FOLDER COMMAND...``, where SECONDS is the
time between SIGTERM and SIGKILL and FOLDER is removed after that.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Return the command's exit code."""
    grace, folder, command = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # stopping is the pipe's business alone
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    is_over = threading.Event()
    watch = threading.Thread(target=_stop_at_end_of_input, args=(process, grace, is_over))
    watch.daemon = True
    watch.start()
    code = process.wait()
    if is_over.is_set():  # a command that ended by itself leaves its log for whoever asks why
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _stop_at_end_of_input(
    process: "subprocess.Popen[bytes]", grace: float, is_over: threading.Event
) -> None:
    while os.read(0, 1024):
        pass
    is_over.set()
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    sys.exit(main())
