"""Record: one row of a result, as mapping, as tuple and by attribute."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnElement


class Record:
    """One row: ``row["name"]``, ``row[0]``, ``row.name``, ``dict(row)``, ``Model(**row)``.

    The row of a clause knows its columns, too: ``row[table.c.name]``.

    Iterating gives the values, as a tuple does, so ``a, b = row`` works; ``dict(row)`` and
    ``**row`` work because of `keys`. A column called like a method of this class is read by
    ``row["keys"]``. Of two columns with one name, the name gives the last, the position each.

    A driver mixes this class into its own row type where it has one.
    """

    __slots__ = ()

    # What a row type has to bring.
    if TYPE_CHECKING:

        def __getitem__(self, key: str | int | slice | ColumnElement[Any]) -> Any: ...
        def __len__(self) -> int: ...
        def __iter__(self) -> Iterator[Any]: ...
        def keys(self) -> Sequence[str]:
            """Give the column names in their order."""

        def values(self) -> Sequence[Any]:
            """Give the values in the columns' order."""

        def items(self) -> Sequence[tuple[str, Any]]:
            """Give pairs of column name and value."""

        def get(self, key: str, default: Any = None, /) -> Any:
            """Give the value of a column, or `default` if there is no such column."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"the row has no column {name!r}; it has {list(self.keys())}"
            ) from None

    @property
    def _mapping(self) -> Mapping[str, Any]:
        """The row as a read-only mapping, under the name that SQLAlchemy's rows have for it."""
        return MappingProxyType(dict(self.items()))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Record):
            return tuple(self.items()) == tuple(other.items())
        if isinstance(other, tuple):
            return tuple(self.values()) == other
        if isinstance(other, Mapping):
            return dict(self.items()) == other
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.values()))

    def __reduce__(self) -> tuple[Any, ...]:
        return TupleRecord, (RecordKeys(tuple(self.keys())), tuple(self.values()))

    def __repr__(self) -> str:
        return f"<Record {' '.join(f'{key}={value!r}' for key, value in self.items())}>"


class RecordKeys:
    """The column names of one result, shared by all its rows."""

    __slots__ = ("names", "positions")
    names: tuple[str, ...]
    positions: dict[str, int]

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.positions = {name: position for position, name in enumerate(names)}

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordKeys, (self.names,)

    @classmethod
    def of(cls, description: Sequence[Sequence[Any]] | None) -> RecordKeys:
        """Read the ``description`` of a DBAPI cursor; None where it has no rows."""
        return cls(tuple(column[0] for column in description or ()))


class TupleRecord(Record):
    """A row made of a tuple of values, or of SQLAlchemy's row, where the driver has no row type of its own."""

    __slots__ = ("_keys", "_values")

    def __init__(self, keys: RecordKeys, values: Sequence[Any]) -> None:
        self._keys = keys
        self._values = values

    def __getitem__(self, key: str | int | slice | ColumnElement[Any]) -> Any:
        if isinstance(key, str):
            return self._values[self._keys.positions[key]]
        if isinstance(key, int | slice):
            return self._values[key]
        if (row := getattr(self._values, "_mapping", None)) is not None:
            return row[key]
        raise KeyError(str(key))

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._keys.positions

    def keys(self) -> tuple[str, ...]:
        return self._keys.names

    def values(self) -> tuple[Any, ...]:
        return tuple(self._values)

    def items(self) -> tuple[tuple[str, Any], ...]:
        return tuple(zip(self._keys.names, self._values, strict=True))

    def get(self, key: str, default: Any = None, /) -> Any:
        return self[key] if key in self._keys.positions else default
