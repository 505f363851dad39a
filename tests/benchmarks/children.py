"""A contender's process, seen from the run that asks it to measure."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.benchmarks.harness import Outcome

if TYPE_CHECKING:
    from tests.benchmarks.cases import Contender

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds for one answer: a contender that hangs is given up
_OURS = ("LOOPSAFE_", "DATABASE_URL", "PYTHONPATH", "PG")


class ContenderFailed(Exception):
    """A contender cannot take part (any longer); the message is for the report."""


class ChildProcess:
    """A contender that waits for work. Lives as long as its ``with`` block.

    Args:
        contender: Which one.
        python: Of the environment that has its packages.
        settings: Environment variables for it, ``BENCH_URL`` among them.
    """

    def __init__(self, contender: Contender, python: Path, settings: dict[str, str]) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [
                *(python, "-m", "tests.benchmarks.contender"),
                *(contender.module, contender.case, contender.loop),
            ],
            cwd=ROOT,
            env={**inherited, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def versions(self) -> dict[str, str]:
        """Wait until it is ready; the packages that it runs on.

        Raises:
            ContenderFailed: It could not be prepared.
        """
        versions: dict[str, str] = self._answer()["versions"]
        return versions

    def measure(self, count: int, settle: int = 0) -> Outcome:
        """Have it run so many iterations, after some that are not measured.

        Raises:
            ContenderFailed: It raised, died or hangs.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(
                json.dumps({"count": count, "settle": settle}).encode() + b"\n"
            )
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ContenderFailed(self._last_words()) from None
        return Outcome(**self._answer())

    def _answer(self) -> dict[str, Any]:
        pipe = self._process.stdout
        assert pipe is not None
        # One answer for one request: nothing can be waiting in the pipe's buffer.
        ready, _, _ = select.select([pipe], [], [], PATIENCE)
        if not ready:
            raise ContenderFailed(f"no answer within {PATIENCE:g} s")
        line = pipe.readline()
        if not line:
            raise ContenderFailed(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderFailed(answer["error"])
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"ended with status {status}: {lines[-1] if lines else 'without a word'}"
