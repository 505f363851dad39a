"""The driver's own connection as its user has it: another object with the same attributes, which can be taken back."""

from __future__ import annotations

from typing import Any, TypeVar

from loopsafe_db.errors import ReleasedError

T = TypeVar("T")


def twin(raw: Any, kind: type[T]) -> T:
    """Make another object of a connection: of a class below its own, and with the same attributes, also later.

    Its methods run on it, so that cursors and transactions which they make ask it for whatever they do.
    """
    made = object.__new__(kind)
    object.__setattr__(made, "__dict__", raw.__dict__)
    return made


def part(handed_out: Any, kind: type[Any], taken_at: str) -> None:
    """Have a twin refuse everything: it becomes one of a class that `refuse` is of, and has no attributes any more."""
    object.__setattr__(handed_out, "__dict__", {"taken_at": taken_at})
    object.__setattr__(handed_out, "__class__", kind)


def refuse(handed_out: Any, name: str) -> Any:
    """Be the ``__getattribute__`` of what was taken back.

    Raises:
        ReleasedError: Whatever is asked for, but for what Python itself looks at.
    """
    attributes = object.__getattribute__(handed_out, "__dict__")
    if name.startswith("__"):
        return object.__getattribute__(handed_out, name)
    what = f"<{type(handed_out).__module__.rpartition('.')[2]} connection {id(handed_out):#x}>"
    raise ReleasedError(what, attributes["taken_at"])


def plain_connection(dbapi_connection: Any) -> Any:
    """Give the driver's connection behind one of SQLAlchemy's: of its pool, or of its dialect.

    The pool's own ``driver_connection`` is for users, who touch the session with it.
    """
    adapted = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)
    return adapted.driver_connection
