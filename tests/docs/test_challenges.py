"""Every challenge of running workers has its row in the how-to on Conductor: symptom, command, cure."""

from __future__ import annotations

import re

import pytest

from tests.docs.test_docs import ROOT

PAGE = ROOT / "docs/how-to/conductor.md"
# What was met when Reflector's pipeline moved from Celery to Conductor, and words of its row.
CHALLENGES = {
    "several containers poll the same tasks": "ghost workers",
    "forks, event loops and a database": "connection of another loop or process",
    "types are lost": "types are lost in JSON",
    "the health check": "health check",
    "the output of JOIN": "JOIN's output",
    "prints are buffered": "Prints of workers do not appear",
    "a worker function without Conductor": "tried without Conductor",
    "suspiciously fast jobs": "done in 10 ms that takes seconds",
    "which version a container runs": "Which version does a container run?",
    "retry": "One step of a workflow has failed",
    "both queues at once": "shadow mode",
}
TABLE = PAGE.read_text(encoding="utf-8").split("| symptom | command | cure |")[1].split("\n\n")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines()[2:]]
COMMANDS = sorted({found for row in ROWS for found in re.findall(r"`loopsafe-db ([^`&]*)", row[1])})


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_a_challenge_has_a_symptom_a_command_and_a_cure(challenge: str) -> None:
    (row,) = (row for row in ROWS if CHALLENGES[challenge] in row[0].replace("**", ""))
    symptom, command, cure = row

    assert all((symptom, command, cure))
    assert "`" in command


@pytest.mark.parametrize("told", COMMANDS)
def test_a_command_of_the_table_is_one(told: str) -> None:
    typer = pytest.importorskip("typer")
    app = pytest.importorskip("loopsafe_db.cli.app").app
    command = typer.main.get_command(app)
    words = [str(ROOT) if word == "PATH" else word for word in told.split()]
    while words and words[0] in getattr(command, "commands", ()):
        command, words = command.commands[words[0]], words[1:]

    command.make_context("loopsafe-db", words)  # reads the arguments, and runs nothing
