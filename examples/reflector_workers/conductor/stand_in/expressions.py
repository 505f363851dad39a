"""``${...}`` expressions of workflow definitions, resolved as the real server does it.

An expression that is a whole value keeps its JSON type; inside a longer text it is written the
way Java prints it. What is missing is null, and ``$${x}`` stands for the text ``${x}``.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TEMPLATE = re.compile(r"\$\$\{(?P<literal>[^}]*)\}|\$\{(?P<path>[^}]*)\}")
_STEP = re.compile(
    r"\.?(?P<name>[^.\[\](): ?@]+)"
    r"|\['(?P<key>[^']*)'\]"
    r"|\[(?P<index>-?\d+)\]"
    r"|\[(?P<every>\*)\]"
)


def resolve(template: Any, scope: Mapping[str, Any]) -> Any:
    """The template with every expression replaced by what it stands for in the scope."""
    if isinstance(template, str):
        return _resolve_text(template, scope)
    if isinstance(template, dict):
        return {key: resolve(value, scope) for key, value in template.items()}
    if isinstance(template, list):
        return [resolve(value, scope) for value in template]
    return template


def paths_in(template: Any) -> Iterator[str]:
    """Every path between ``${`` and ``}`` in a template."""
    if isinstance(template, str):
        yield from (m["path"] for m in _TEMPLATE.finditer(template) if m["path"] is not None)
    elif isinstance(template, dict):
        for value in template.values():
            yield from paths_in(value)
    elif isinstance(template, list):
        for value in template:
            yield from paths_in(value)


def is_understood(path: str) -> bool:
    """Whether the stand-in can follow a path: names, ``['name']``, ``[0]``, ``[-1]``, ``[*]``."""
    return "".join(step.group() for step in _STEP.finditer(path)) == path != ""


def java_text(value: Any) -> str:
    """A JSON value the way Java's ``toString`` writes it into a longer text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _java_double(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={java_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(java_text(item) for item in value) + "]"
    return str(value)


def _resolve_text(text: str, scope: Mapping[str, Any]) -> Any:
    whole = _TEMPLATE.fullmatch(text)
    if whole is not None and whole["path"] is not None:
        return _look_up(whole["path"], scope)
    return _TEMPLATE.sub(lambda match: _as_text(match, scope), text)


def _as_text(match: re.Match[str], scope: Mapping[str, Any]) -> str:
    if match["literal"] is not None:
        return "${" + match["literal"] + "}"
    return java_text(_look_up(match["path"], scope))


def _look_up(path: str, scope: Mapping[str, Any]) -> Any:
    steps = list(_STEP.finditer(path))
    found: list[Any] = [scope]
    for step in steps:
        found = [value for holder in found for value in _follow(step, holder)]
    if any(step["every"] for step in steps):  # a wildcard gives a list, even of none or one
        return found
    return found[0] if found else None


def _follow(step: re.Match[str], holder: Any) -> list[Any]:
    """What a step leads to: nothing, one value, or all items for a wildcard."""
    if step["every"] is not None:
        return list(holder.values()) if isinstance(holder, dict) else _items(holder)
    if step["index"] is not None:
        index, items = int(step["index"]), _items(holder)
        return [items[index]] if -len(items) <= index < len(items) else []
    key = step["key"] if step["name"] is None else step["name"]
    return [holder[key]] if isinstance(holder, dict) and key in holder else []


def _items(holder: Any) -> list[Any]:
    return holder if isinstance(holder, list) else []


def _java_double(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return repr(value)
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    first, rest = digits[0], "".join(map(str, digits[1:])) or "0"
    return f"{'-' * sign}{first}.{rest}E{int(exponent) + len(digits) - 1}"
