"""The branches of a ``FORK_JOIN_DYNAMIC``, from any of its three forms of input.

pair      ``dynamicForkTasksParam`` names a list of tasks, ``dynamicForkTasksInputParamName`` a
          map from reference to input
simple    ``forkTaskName`` and ``forkTaskInputs``: one branch per input, in order, with ``__index``
legacy    ``dynamicForkJoinTasksParam`` names a map with a list ``dynamicTasks``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reflector_workers.conductor.stand_in.expressions import java_text


@dataclass(frozen=True, slots=True)
class Branch:
    """One task of a fork."""

    name: str
    reference: str
    input: dict[str, Any]


class ForkInputError(Exception):
    """The input of a fork describes no branches; the workflow fails with this text."""


def branches_of(step: dict[str, Any], given: dict[str, Any], prefix: str) -> list[Branch]:
    """The branches that a fork's input asks for.

    Args:
        step: The fork in its workflow definition.
        given: The input of this execution, expressions resolved.
        prefix: Put before references that the server makes up, so that a second fork differs.
    """
    if step.get("dynamicForkTasksParam"):
        return _of_pair(step, given)
    if step.get("dynamicForkJoinTasksParam"):
        return _of_legacy(step["dynamicForkJoinTasksParam"], given)
    return _of_simple(given, prefix)


def _of_pair(step: dict[str, Any], given: dict[str, Any]) -> list[Branch]:
    name = step["dynamicForkTasksParam"]
    tasks, inputs = given.get(name), given.get(step.get("dynamicForkTasksInputParamName", ""))
    if not isinstance(tasks, list):
        described = f"Cannot deserialize a list of Workflow Tasks from '{java_text(tasks)}'"
        raise ForkInputError(f"Input '{name}' is invalid. {described}")
    if not isinstance(inputs, dict):
        raise ForkInputError(
            f"Input to the dynamically forked tasks is not a map -> expecting a map of K,V "
            f"but found {java_text(inputs)}"
        )
    refs = [(task["name"], task["taskReferenceName"]) for task in tasks]
    return [Branch(task, ref, _as_input(inputs.get(ref))) for task, ref in refs]


def _of_simple(given: dict[str, Any], prefix: str) -> list[Branch]:
    name, inputs = given.get("forkTaskName"), given.get("forkTaskInputs")
    if not isinstance(name, str) or not isinstance(inputs, list):
        raise _nothing_to_schedule(None, given)
    return [
        Branch(name, f"_{prefix}{name}_{index}", _indexed(each, index))
        for index, each in enumerate(inputs)
    ]


def _of_legacy(parameter: str, given: dict[str, Any]) -> list[Branch]:
    holder = given.get(parameter)
    if not isinstance(holder, dict) or not isinstance(holder.get("dynamicTasks"), list):
        raise _nothing_to_schedule(parameter, given)
    return [
        Branch(task["taskName"], task["referenceName"], _as_input(task.get("input")))
        for task in holder["dynamicTasks"]
    ]


def _indexed(given: Any, index: int) -> dict[str, Any]:
    return (given if isinstance(given, dict) else {"input": given}) | {"__index": index}


def _as_input(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def _nothing_to_schedule(parameter: str | None, given: dict[str, Any]) -> ForkInputError:
    return ForkInputError(
        f"Dynamic tasks could not be created. The value of {java_text(parameter)} from task's "
        f"input {java_text(given)} has no dynamic tasks to be scheduled"
    )
