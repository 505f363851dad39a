"""Errors of ours that are of a driver's class, too: who catches the one, or the other, gets them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from loopsafe_db.errors import DriverError

if TYPE_CHECKING:
    from collections.abc import Callable

D = TypeVar("D", bound=DriverError)


def joined(kind: type[D], error: Exception, text: str, hint: str = "") -> D:
    """Make one of ours of a driver's error: with our text, and with all attributes of the driver's.

    Args:
        kind: Ours.
        error: The driver's.
        text: As for `LoopsafeError`.
        hint: The cure, where it is another than that of all of the kind.
    """
    made: D = _new(kind, type(error))
    vars(made).update(vars(error))
    vars(made).pop("code", None)  # SQLAlchemy's, of the page of its own that its text leads to
    made.args = (kind.whole(text, hint),)
    return made


def drivers_own(error: BaseException) -> BaseException:
    """Give the driver's error behind one of ours, or the error itself."""
    cause = error.__cause__
    is_joined = isinstance(error, DriverError) and error.of_driver is not None
    return cause if is_joined and cause is not None else error


def _new(kind: Any, of_driver: Any) -> Any:
    both = _of_both(kind, of_driver)
    return both.__new__(both)  # no ``__init__``: each driver's wants something else


@lru_cache(256)
def _of_both(kind: Any, of_driver: Any) -> Any:
    reduce: Callable[[Any], Any] = of_driver.__reduce__

    def pickled(self: Any) -> tuple[Any, ...]:
        # psycopg's own has what cannot be pickled, and knows how to replace that.
        state = {**vars(self), **dict(*reduce(self)[2:3])}
        return _restore, (kind, of_driver, self.args), state

    namespace = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__reduce__": pickled,
        "of_driver": of_driver,
    }
    try:
        return type(of_driver)(kind.__name__, (kind, of_driver), namespace)
    except TypeError:  # Python's own, as an AttributeError, cannot be the base of one with another
        return kind


def _restore(kind: Any, of_driver: Any, args: tuple[Any, ...]) -> Any:
    error = _new(kind, of_driver)
    error.args = args
    return error
