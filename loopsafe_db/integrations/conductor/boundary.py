"""What crosses Conductor is JSON that nobody checks: so it is checked here, on both sides of a worker."""

from __future__ import annotations

import functools
import inspect
import json
import re
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_type_hints

from conductor.client.http.models.task import Task
from conductor.client.worker.exception import NonRetryableException
from pydantic import TypeAdapter, ValidationError

from loopsafe_db.errors import MisuseError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

JSONObject = dict[str, object]

LARGEST_OUTPUT = 3072 * 1024
"""Bytes. Of a larger output the server gives the next worker nothing."""

_SHOWN = 80  # characters of a value in an error
_LOST = re.compile(
    r"(?<!\\)(?:\\\\)*\\u0000|[\ud800-\udfff]"
)  # NUL in JSON, and halves of a character


class InvalidInput(MisuseError, NonRetryableException):  # type: ignore[misc]
    """A worker was given what it does not take; a second try would be given the same.

    Attributes:
        field: Which parameter, and which part of it.
    """

    code = "LDB601"
    hint = "look at the inputParameters of this step, and at the output that they name"

    def __init__(self, worker: str, field: str, expected: str, got: object) -> None:
        self.field = field
        shown = repr(got)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        super().__init__(f"{worker}: {field}: expected {expected}, got {shown}")


class InvalidOutput(MisuseError, NonRetryableException):  # type: ignore[misc]
    """A worker returned what the SDK cannot send, or what the server would refuse or lose."""

    code = "LDB602"
    hint = (
        "return a dict of plain JSON; what is large stays in the database, and its id is returned"
    )


def checked(worker: Callable[P, R]) -> Callable[P, R]:
    """Check and convert what a worker is given, by its annotations and pydantic; goes below ``@worker_task``.

    The SDK passes scalars on as they are (``7.5`` for an ``int``), gives None for what is missing, and fails on
    models, unions and the ``annotations`` future import. Under this decorator all of them work. A field that a
    model does not know is ignored: a newer worker may have sent it.
    """
    inputs = _Inputs(worker)
    do: Callable[..., Any] = worker
    wrapper: Any
    if inspect.iscoroutinefunction(worker):

        @functools.wraps(worker)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
            return await do(**inputs.read(*args, **kwargs))
    else:

        @functools.wraps(worker)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
            return do(**inputs.read(*args, **kwargs))

    wrapper.__signature__ = inputs.as_the_sdk_sees_them
    checking: Callable[P, R] = wrapper
    return checking


class _Inputs:
    """The parameters of a worker."""

    def __init__(self, worker: Callable[..., object]) -> None:
        self._worker = worker
        self._signature = inspect.signature(worker)
        parameters = self._signature.parameters.values()
        # What is annotated as a text the SDK passes on unread; a Task it gives to whoever asks for one.
        self.as_the_sdk_sees_them = self._signature.replace(
            parameters=[
                each.replace(annotation=Task if _is_task(each) else str) for each in parameters
            ]
        )

    def read(self, *args: object, **kwargs: object) -> dict[str, Any]:
        """Convert what a call gives; a default is taken as it is."""
        given = self._signature.bind(*args, **kwargs).arguments
        return {name: self._value(name, value) for name, value in given.items()}

    def _value(self, name: str, value: object) -> Any:
        parameter = self._signature.parameters[name]
        if value is parameter.default or _is_task(parameter):
            return value
        return _read(self._adapters[name], _name(self._worker), name, value)

    @functools.cached_property
    def _adapters(self) -> dict[str, TypeAdapter[Any]]:
        hints = get_type_hints(self._worker)  # not sooner: a module's later names are in them, too
        asked = [each.name for each in self._signature.parameters.values() if not _is_task(each)]
        return {name: TypeAdapter(hints.get(name, Any)) for name in asked}


def join_results(detected: object, kind: type[T]) -> list[T]:
    """The outputs of a dynamic fork's branches in the order of their numbers, from the JOIN's output.

    The JOIN gives them by reference name, in the order of completion; as text ``_t_10`` comes before ``_t_2``.

    Args:
        detected: The output of the JOIN. A branch whose output is empty is not in it.
        kind: What each branch returns: a pydantic model, a dataclass, a TypedDict, a plain type.

    Raises:
        InvalidInput: The output of a branch is something else.
    """
    branches = _read(TypeAdapter(dict[str, kind]), "join", "", detected)  # type: ignore[valid-type]
    return [branches[name] for name in sorted(branches, key=_by_number)]


def sendable(output: object) -> JSONObject:
    """The output of a worker, unless it would be lost or refused.

    Raises:
        InvalidOutput: It is no dict, or has in it what is no JSON, or NaN, or is too large.
    """
    if not isinstance(output, dict):
        raise InvalidOutput(f"the output is {_a(output)}, not a dict")
    try:
        text = json.dumps(output, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidOutput(
            f"the output is no JSON: {error}, at {_place(output) or '?'}"
        ) from error
    if found := _LOST.search(text):
        where = ascii(text[max(0, found.start() - 30) : found.end()])
        raise InvalidOutput(f"the output has a character that cannot be stored: ...{where}")
    if (size := _bytes_there(text)) > LARGEST_OUTPUT:
        raise InvalidOutput(
            f"the output has {size} bytes of JSON; of more than {LARGEST_OUTPUT} the next worker gets nothing"
        )
    return output


def _bytes_there(text: str) -> int:
    """Bytes of JSON as the server counts them: Jackson writes an emoji as two escapes, in 12 bytes instead of 4."""
    beyond = len(text.encode("utf-16-le")) // 2 - len(text)
    return len(text.encode()) + 8 * beyond


def _read(adapter: TypeAdapter[Any], worker: str, name: str, value: object) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join([name, *map(str, fault["loc"])]).strip(".")
        raise InvalidInput(worker, field, _expected(fault["msg"]), fault["input"]) from error


def _expected(message: str) -> str:
    """Pydantic's words without their first ones: "Input should be a valid integer"."""
    return message.removeprefix("Input should be ")


def _place(value: object, path: str = "output") -> str:
    """Where the first value lies that is no JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except RecursionError:
        return path
    except (TypeError, ValueError):
        parts = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value if isinstance(value, list | tuple) else [])
        )
        return next(
            (found for key, part in parts if (found := _place(part, f"{path}[{key!r}]"))), path
        )
    return ""


def _by_number(reference: str) -> tuple[str, int]:
    stem = reference.rstrip("0123456789")
    return stem, int(reference[len(stem) :] or -1)


def _is_task(parameter: inspect.Parameter) -> bool:
    return parameter.annotation in (Task, "Task")


def _name(worker: object) -> str:
    return getattr(worker, "__name__", repr(worker))


def _a(value: object) -> str:
    return f"of type {type(value).__name__}"
