"""The example is about meetings: what a fleet needs beside them is the library's, but for a few lines."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from typing import TYPE_CHECKING

from reflector_workers import cli, fleet
from tests.docs.test_docs import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXAMPLES = ROOT / "examples"
AT_MOST = 60
# What a worker process imports, and is about meetings: their recordings, their tables, their steps.
ABOUT_MEETINGS = {
    *("assignment", "audio", "completeness", "domain", "error_rate", "offsets", "recordings"),
    *("rttm", "speech", "steps", "timeline", "turns"),
    *("storage.job_log", "storage.meetings", "storage.outputs", "storage.schema", "storage.speech"),
    *(f"workers.{step}" for step in fleet.STEPS),
}
NOTHING = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    tokenize.ENDMARKER,
}


def test_a_fleet_takes_few_lines_that_are_not_about_meetings() -> None:
    beside = {
        name: lines_of_code((EXAMPLES / path_of(name)).read_text(encoding="utf-8"))
        for name in imported("fleet", *(f"workers.{step}" for step in fleet.STEPS))
        if name not in ABOUT_MEETINGS
    }
    beside["the command `worker`"] = lines_of_code(inspect.getsource(cli.worker))

    assert {"fleet", "workers.running"} <= beside.keys()
    assert sum(beside.values()) <= AT_MOST, beside


def imported(*names: str) -> set[str]:
    """These modules of the example, and which they import, at whatever distance."""
    found: set[str] = set()
    open_ones = list(names)
    while open_ones:
        name = open_ones.pop()
        if name not in found:
            found.add(name)
            open_ones += imports_of(EXAMPLES / path_of(name))
    return found


def path_of(name: str) -> Path:
    module = EXAMPLES / "reflector_workers" / name.replace(".", "/")
    return module / "__init__.py" if module.is_dir() else module.with_suffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, _, name = node.module.partition(".")
            if package == "reflector_workers":
                yield from [name] if name else [alias.name for alias in node.names]


def lines_of_code(text: str) -> int:
    """Lines that have more than blanks, a comment or a docstring."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        documenting = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documenting) and ast.get_docstring(node) is not None:
            documented |= lines_between(node.body[0].lineno, node.body[0].end_lineno or 0)
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOTHING:
            used |= lines_between(token.start[0], token.end[0])
    return len(used - documented)


def lines_between(first: int, last: int) -> set[int]:
    return set(range(first, last + 1))
