"""The Dockerfile and the compose file of the example, as far as they go without Docker: what they name is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url

from loopsafe_db.settings import LoopsafeSettings
from reflector_workers.conductor.opening import URL_VARIABLE
from reflector_workers.conductor.stand_in import StandInServer
from tests.docs.test_docs import ROOT
from tests.drivers.pgbouncer import free_port

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLE = ROOT / "examples/reflector_workers"
OF_THE_IMAGES = {"POSTGRES_PASSWORD", "PYTHONUNBUFFERED", "PATH"}
OURS = {f"LOOPSAFE_DB_{name}".upper() for name in LoopsafeSettings.model_fields} | {URL_VARIABLE}
INSTRUCTIONS = re.findall(
    r"^([A-Z]+) (.*)$", (EXAMPLE / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
)
OF_THE_CONTEXT = (EXAMPLE / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()


def said(instruction: str) -> list[str]:
    """Give what the Dockerfile has behind an instruction."""
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


@pytest.fixture
def services() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    read: dict[str, Any] = yaml.safe_load((EXAMPLE / "compose.yaml").read_text(encoding="utf-8"))
    services: dict[str, Any] = read["services"]
    return services


def test_compose_names_files_services_and_variables_that_are_there(
    services: dict[str, Any],
) -> None:
    fleet, workers, postgres = services["fleet"], services["workers"], services["postgres"]
    context = (EXAMPLE / fleet["build"]["context"]).resolve()

    assert context == ROOT
    assert (context / fleet["build"]["dockerfile"]) == EXAMPLE / "Dockerfile"
    assert {*fleet["depends_on"]} <= {*services}
    assert {*fleet["environment"]} <= OURS
    assert {*postgres["environment"]} <= OF_THE_IMAGES
    assert postgres["healthcheck"]["test"][0] == "CMD-SHELL"
    assert {name: workers[name] for name in fleet} == fleet  # one image, one database


def test_the_fleet_of_compose_has_the_name_and_password_of_its_postgresql(
    services: dict[str, Any],
) -> None:
    environment = services["fleet"]["environment"]
    url = make_url(environment["LOOPSAFE_DB_URL"])

    assert url.host in services
    assert url.password == services[str(url.host)]["environment"]["POSTGRES_PASSWORD"]
    assert environment[URL_VARIABLE] == f"${{{URL_VARIABLE}:-}}"  # "" where nobody has set it


def test_the_image_installs_extras_that_are_there_on_a_python_that_we_support() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (base,) = {line.partition(" ")[0] for line in said("FROM")}
    (install,) = (words for words in map(shlex.split, said("RUN")) if "install" in words)

    supported = [line.rpartition(" ")[2] for line in project["classifiers"]]
    assert base.removeprefix("python:").removesuffix("-slim") in supported
    extras = re.fullmatch(r"\.\[([\w,-]+)\]", install[-1])
    assert extras is not None
    assert {*extras[1].split(",")} <= {*project["optional-dependencies"]}
    variables = {each.partition("=")[0] for line in said("ENV") for each in line.split()}
    assert variables <= OF_THE_IMAGES | OURS


def test_what_the_package_is_built_from_is_copied() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {"pyproject.toml", "hatch_build.py", "README.md", *packages}

    copied = {source for line in said("COPY") for source in line.split()[:-1]}
    assert {*needed, *pyproject["project"]["license-files"]} <= copied
    for source in needed:
        assert of_the_context(source)


def test_the_command_of_the_image_starts_in_what_is_copied_and_ends_as_docker_stops_it(
    services: dict[str, Any], postgres_url: str, tmp_path: Path
) -> None:
    copy_what_docker_copies(said("COPY")[-1], tmp_path)
    (command,) = map(json.loads, said("CMD"))
    *command, output = command
    assert (command[0], output) == ("python", "/tmp/demo_output")
    program = start(
        [*command[1:], str(tmp_path / "output")], services["fleet"], postgres_url, "", tmp_path
    )

    shown = lines_until(r"[1-9]\d* of \d+ jobs done", program)  # its workers work
    program.send_signal(signal.SIGTERM)
    rest, _ = program.communicate(timeout=60)

    assert program.returncode == 143, "".join([*shown, rest])


def test_the_workers_of_compose_are_healthy_and_end_as_docker_stops_them(
    services: dict[str, Any], postgres_url: str, tmp_path: Path
) -> None:
    copy_what_docker_copies(said("COPY")[-1], tmp_path)
    workers = services["workers"]
    python, *command, port = workers["command"]
    cmd, checks, *check = workers["healthcheck"]["test"]
    assert (python, cmd, checks) == ("python", "CMD", "python")
    free = str(free_port())
    assert port in check[-1]
    check[-1] = check[-1].replace(port, free)

    with StandInServer() as conductor:
        program = start([*command, free], workers, postgres_url, conductor.url, tmp_path)
        try:
            give_up = time.monotonic() + 60
            while subprocess.run([sys.executable, *check], capture_output=True).returncode:
                assert program.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.2)
        finally:
            program.send_signal(signal.SIGTERM)
            shown, _ = program.communicate(timeout=60)

    assert program.returncode == 0, shown


def start(
    command: list[str], service: dict[str, Any], database: str, conductor: str, folder: Path
) -> subprocess.Popen[str]:
    """Run a service's command as its container would."""
    environment = {**service["environment"], "LOOPSAFE_DB_URL": database, URL_VARIABLE: conductor}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines_until(pattern: str, program: subprocess.Popen[str]) -> list[str]:
    """Read what a program prints, up to a line that begins so."""
    assert program.stdout is not None
    shown = []
    for line in program.stdout:
        shown.append(line)
        if re.match(pattern, line):
            break
    return shown


def copy_what_docker_copies(copied: str, folder: Path) -> None:
    """Do as COPY does with a folder, with the repository's files that are of its context."""
    source, target = copied.split()
    for path in of_the_context(source):
        copy = folder / target / path.relative_to(ROOT / source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def of_the_context(source: str) -> list[Path]:
    """Files of the repository, but for those that are ignored: the last pattern decides."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: nobody knows what is a file of the repository")
    command = ["git", "ls-files", "-z", source]
    listed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    found = [name for name in filter(None, listed.stdout.decode().split("\0")) if is_sent(name)]
    assert found, f"{source} is not sent"
    return [ROOT / name for name in found]


def is_sent(name: str) -> bool:
    """Whether .dockerignore leaves a file in the context."""
    sent = True
    for line in OF_THE_CONTEXT:
        pattern = line.removeprefix("!")
        if line.startswith("#") or not (fnmatch(name, pattern) or name.startswith(f"{pattern}/")):
            continue
        sent = line.startswith("!")
    return sent
