"""A demo that runs as a program of its own, and what can be done to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import psutil
import pytest

from reflector_workers.demo import SAMPLE

if TYPE_CHECKING:
    from pathlib import Path

MARK = "REFLECTOR_TEST_MARK"  # an environment variable that a demo's processes inherit
PATIENCE = 110.0  # seconds, on a machine that measures coverage and runs other tests beside


@dataclass(frozen=True)
class Finished:
    """A demo that has ended."""

    status: int
    output: str
    folder: Path

    def figure(self, name: str) -> str:
        """The value of a row in the table of figures."""
        (value,) = re.findall(rf"^│ {name} +│ (.*?) +│$", self.output, re.MULTILINE)
        return str(value)


def environment() -> dict[str, str]:
    """This process's environment, in which the example can be imported."""
    path = [str(SAMPLE.parents[1]), os.environ.get("PYTHONPATH", ""), str(SAMPLE.parents[2])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


class Demo:
    """A demo that runs; every process of it, the servers' included, carries a mark.

    Args:
        folder: Where it writes; no other demo's.
        arguments: Of the command line.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._mark = str(folder)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "reflector_workers", "demo"),
                *("--output", str(folder), *arguments),
            ],
            env={**environment(), "COLUMNS": "150", MARK: self._mark},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # What a shell starts in the background ignores Ctrl-C, and its children inherit that.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self._lines: list[str] = []

    def wait_for(self, pattern: re.Pattern[str]) -> None:
        """Read its output up to a line that fits."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if pattern.search(line):
                return
        pytest.fail("the demo ended: " + "".join(self._lines))

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def send_to_all(self, number: signal.Signals) -> None:
        """As a terminal sends Ctrl-C: to every process of the group."""
        os.killpg(self._process.pid, number)

    def finish(self, patience: float = PATIENCE) -> Finished:
        """Wait for its end and read the rest of what it says."""
        rest, _ = self._process.communicate(timeout=patience)
        output = "".join(self._lines) + rest
        return Finished(self._process.returncode, output, self.folder)

    def close(self) -> None:
        """Kill what is left."""
        for process in self.processes():
            process.kill()
        self._process.communicate()

    def processes(self) -> list[psutil.Process]:
        """Its processes, the servers' included; those of children that lost their parent too."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self._mark
        except psutil.Error:  # it has just ended, or it is another user's: a server's
            return False
