"""What the real server keeps of an output, beside what we let through, and what the doctor says of the rest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from loopsafe_db.cli.conductor_checks import check_conductor
from loopsafe_db.integrations.conductor import InvalidOutput
from loopsafe_db.integrations.conductor.boundary import LARGEST_OUTPUT, sendable
from tests.workers.conductor.conftest import REAL_MARKS
from tests.workers.conductor.rest import by_reference, simple

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.workers.conductor.rest import Server

REAL = pytest.mark.parametrize("conductor", [pytest.param("real", marks=REAL_MARKS)], indirect=True)
A_KB = 1024


def output_of(size: int, letter: str, bytes_of_one: int) -> dict[str, object]:
    """An output with so many bytes of JSON at the server, or a few less."""
    return {"text": letter * ((size - len(json.dumps({"text": ""}))) // bytes_of_one)}


def stored(conductor: Server, name: str, output: dict[str, object]) -> dict[str, Any]:
    """The task of a workflow of one, once it has ended with an output."""
    conductor.register(name)
    conductor.define(name, [simple(name, "only")])
    workflow = conductor.start(name)
    conductor.finish(conductor.take(name), **output)
    return by_reference(conductor.ended(workflow))["only"]


@REAL
@pytest.mark.parametrize(("letter", "bytes_of_one"), [("x", 1), ('"', 2), ("é", 2), ("😀", 12)])
def test_the_largest_output_that_we_send_is_kept(
    letter: str, bytes_of_one: int, conductor: Server, unique: Callable[[str], str]
) -> None:
    output = output_of(LARGEST_OUTPUT, letter, bytes_of_one)

    task = stored(conductor, unique("large"), sendable(output))

    assert task["outputData"] == output
    with pytest.raises(InvalidOutput):
        sendable(output_of(LARGEST_OUTPUT + A_KB, letter, bytes_of_one))


@REAL
def test_what_is_larger_is_refused_here_and_lost_there_and_the_doctor_says_so_afterwards(
    conductor: Server, unique: Callable[[str], str]
) -> None:
    output = output_of(LARGEST_OUTPUT + A_KB, "x", 1)
    with pytest.raises(InvalidOutput, match=f"of more than {LARGEST_OUTPUT}"):
        sendable(output)

    task = stored(conductor, unique("larger"), output)

    assert task["outputData"] == {}
    found = [each.what for each in check_conductor(conductor.url, 0, None) if each.code == "D206"]
    assert [what for what in found if task["workflowInstanceId"] in what]
