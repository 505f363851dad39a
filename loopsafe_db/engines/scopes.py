"""Scopes: whether a connection may serve another loop than the one that opened it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loopsafe_db.errors import InvalidSettingError

if TYPE_CHECKING:
    from loopsafe_db.drivers.base import DriverTraits


@dataclass(frozen=True, slots=True)
class Scope:
    """Where connections may go.

    Attributes:
        name: What users write.
        movable: Whether an idle connection serves any loop of its process, and stays when a loop ends; else it
            serves the loop that opened it, and ends with it.
    """

    name: str
    movable: bool


PER_LOOP = Scope("loop", movable=False)
PER_PROCESS = Scope("process", movable=True)


def find_scope(name: str, traits: DriverTraits) -> Scope:
    """Give the scope of that name; ``auto`` is per process, or per loop where the driver can do no better.

    Raises:
        InvalidSettingError: There is none, or the driver's connections cannot leave their loop.
    """
    if name == "auto":
        return PER_LOOP if traits.loop_bound else PER_PROCESS
    for scope in (PER_LOOP, PER_PROCESS):
        if scope.name == name:
            break
    else:
        raise InvalidSettingError(f"scope must be 'auto', 'loop' or 'process', not {name!r}")
    if scope.movable and traits.loop_bound:
        raise InvalidSettingError(
            f"scope 'process': connections of {traits.name} belong to one loop, so use 'auto'"
        )
    return scope
