"""The real server's jar: fetched once with the user's Maven, unpacked once, kept in the cache.

The jar has 437 MB, unpacked it starts twice as fast. Both are put in place by a rename under a
lock, so that neither an interrupted run nor two at once leave half a file behind.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from reflector_workers.conductor.errors import ConductorSetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

VERSION = "3.32.3"
COORDINATES = f"org.conductoross:conductor-server:{VERSION}:jar:boot"
JAR_NAME = f"conductor-server-{VERSION}-boot.jar"
JAR_VARIABLE = "CONDUCTOR_SERVER_JAR"
_FETCH_SECONDS = 3600.0
_UNPACK_SECONDS = 300.0
_SAY_EVERY_SECONDS = 10.0


def cache_folder() -> Path:
    """Where this user's caches of this project are kept."""
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/loopsafe_db"
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    return base / "loopsafe_db"


def unpacked_jar() -> Path:
    """Where the jar to start is, once it has been unpacked."""
    given = _given_jar()
    if given is None:
        return cache_folder() / f"conductor-server-{VERSION}" / JAR_NAME
    state = given.stat()
    text = f"{given.resolve()} {state.st_size} {state.st_mtime_ns}"
    key = sha256(text.encode()).hexdigest()[:12]
    return cache_folder() / f"conductor-server-given-{key}" / given.name


def is_unpacked() -> bool:
    """Whether the server could start at once: no download, no unpacking."""
    return unpacked_jar().is_file()


def prepare(java: Path, report: Callable[[str], None]) -> Path:
    """The unpacked jar, fetched and unpacked now if it is not there."""
    with _locked(cache_folder()):
        target = unpacked_jar()
        if not target.is_file():
            _unpack(java, _given_jar() or _fetched_jar(java, report), target.parent, report)
    return target


def _given_jar() -> Path | None:
    given = os.environ.get(JAR_VARIABLE)
    if not given:
        return None
    if not Path(given).is_file():
        raise ConductorSetupError(
            f"{JAR_VARIABLE} names no file: {given}\n"
            f"HINT: the jar of {COORDINATES}, or unset it to have that fetched"
        )
    return Path(given)


def _fetched_jar(java: Path, report: Callable[[str], None]) -> Path:
    target = cache_folder() / JAR_NAME
    if target.is_file():
        return target
    maven = shutil.which("mvn")
    if maven is None:
        raise ConductorSetupError(
            "the real Conductor server is fetched with Maven, and there is no mvn on PATH\n"
            f"HINT: install Maven, or fetch {COORDINATES} yourself and set {JAR_VARIABLE} to the "
            "file, or do without: the stand-in needs neither"
        )
    report(f"fetching the Conductor server {VERSION} (437 MB, once) into {target.parent}")
    with _scratch(target.parent) as scratch:
        command = [maven, "-B", "-ntp", "dependency:copy"]
        command += [f"-Dartifact={COORDINATES}", f"-DoutputDirectory={scratch}"]
        _run(command, "fetching", _FETCH_SECONDS, report, _maven_environment(java))
        (scratch / JAR_NAME).replace(target)
    return target


def _maven_environment(java: Path) -> dict[str, str]:
    """Maven wants a Java of its own; whoever has none is lent ours."""
    home = {} if shutil.which("java") else {"JAVA_HOME": str(java.resolve().parent.parent)}
    return home | os.environ


def _unpack(java: Path, jar: Path, folder: Path, report: Callable[[str], None]) -> None:
    report(f"unpacking {jar.name} into {folder} (once)")
    with _scratch(folder.parent) as scratch:
        command = [str(java), "-Djarmode=tools", "-jar", str(jar)]
        command += ["extract", "--destination", str(scratch / "server")]
        _run(command, "unpacking", _UNPACK_SECONDS, report, dict(os.environ))
        (scratch / "server").replace(folder)


def _run(
    command: Sequence[str],
    what: str,
    seconds: float,
    report: Callable[[str], None],
    environment: dict[str, str],
) -> None:
    """Run a command to its end, saying from time to time that it still runs."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            while (code := _wait(process)) is None:
                report(f"still {what}: {time.monotonic() - started:.0f} s")
                if time.monotonic() - started > seconds:
                    raise _failed(what, f"did not end within {seconds:.0f} s", output)
        finally:
            process.kill()  # does nothing if it has ended
            process.wait()
        if code != 0:
            raise _failed(what, f"ended with exit code {code}", output)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(_SAY_EVERY_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _failed(what: str, how: str, output: TextIO) -> ConductorSetupError:
    output.seek(0)
    tail = "\n".join(output.read().splitlines()[-15:])
    return ConductorSetupError(
        f"{what} the Conductor server {how}:\n{tail}\n"
        f"HINT: try again; behind a proxy see Maven's settings; or fetch {COORDINATES} "
        f"yourself and set {JAR_VARIABLE} to the file"
    )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder on the same disk, so that what it holds can be renamed into place."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as scratch:
        yield Path(scratch)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the cache: a second run waits, and finds everything done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "conductor-server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, a killed holder's too
        yield
