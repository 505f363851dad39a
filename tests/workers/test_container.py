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
import tomllib
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url

from loopsafe_db.settings import LoopsafeSettings
from reflector_workers.conductor.opening import URL_VARIABLE
from tests.docs.test_docs import ROOT

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLE = ROOT / "examples/reflector_workers"
OF_THE_IMAGES = {"POSTGRES_PASSWORD", "PYTHONUNBUFFERED", "PYTHONPATH"}
OURS = {f"LOOPSAFE_DB_{name}".upper() for name in LoopsafeSettings.model_fields} | {URL_VARIABLE}
INSTRUCTIONS = re.findall(
    r"^([A-Z]+) (.*)$", (EXAMPLE / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
)
IGNORED = (EXAMPLE / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()


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
    fleet, postgres = services["fleet"], services["postgres"]
    context = (EXAMPLE / fleet["build"]["context"]).resolve()

    assert context == ROOT
    assert (context / fleet["build"]["dockerfile"]) == EXAMPLE / "Dockerfile"
    assert {*fleet["depends_on"]} <= {*services}
    assert {*fleet["environment"]} <= OURS
    assert {*postgres["environment"]} <= OF_THE_IMAGES
    assert postgres["healthcheck"]["test"][0] == "CMD-SHELL"


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
    (base,) = said("FROM")
    installs = next(words for words in map(shlex.split, said("RUN")) if "pip" in words)

    supported = [line.rpartition(" ")[2] for line in project["classifiers"]]
    assert base.removeprefix("python:").removesuffix("-slim") in supported
    extras = re.fullmatch(r"\.\[([\w,-]+)\]", installs[-1])
    assert extras is not None
    assert {*extras[1].split(",")} <= {*project["optional-dependencies"]}
    variables = {each.partition("=")[0] for line in said("ENV") for each in line.split()}
    assert variables <= OF_THE_IMAGES | OURS


def test_the_command_of_the_image_starts_in_what_is_copied_and_ends_as_docker_stops_it(
    services: dict[str, Any], postgres_url: str, tmp_path: Path
) -> None:
    copy_what_docker_copies(tmp_path)
    (command,) = map(json.loads, said("CMD"))
    *command, output = command
    assert (command[0], output) == ("python", "/tmp/demo_output")
    environment = dict(each.split("=") for line in said("ENV") for each in line.split())
    of_compose = {**services["fleet"]["environment"], "LOOPSAFE_DB_URL": postgres_url}
    of_compose[URL_VARIABLE] = ""

    demo = subprocess.Popen(
        [sys.executable, *command[1:], str(tmp_path / "output")],
        cwd=tmp_path,
        env={**os.environ, **environment, **of_compose},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    shown = []
    for line in demo.stdout:
        shown.append(line)
        if re.match(r"[1-9]\d* of \d+ jobs done", line):  # its workers work
            break
    demo.send_signal(signal.SIGTERM)
    rest, _ = demo.communicate(timeout=60)

    assert demo.returncode == 143, "".join([*shown, rest])


def copy_what_docker_copies(folder: Path) -> None:
    """Copy the files of the repository, but for what is ignored."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: nobody knows what is a file of the repository")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if any(fnmatch(name, pattern) or name.startswith(f"{pattern}/") for pattern in IGNORED):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
