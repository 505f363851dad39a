"""Record: one row of a result, as mapping, as tuple and by attribute."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping, ValuesView
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Label

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement


class Record:
    """One row: ``row["name"]``, ``row[0]``, ``row.name``, ``dict(row)``, ``Model(**row)``.

    The row of a clause knows its columns, too, also those behind a label: ``row[table.c.name]``.

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
        return RecordMapping(self)

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


class RecordMapping(Mapping[str, Any]):
    """A row whose iteration gives names; each column is there, also where two have one name."""

    __slots__ = ("_record",)

    def __init__(self, record: Record) -> None:
        self._record = record

    def __getitem__(self, key: Any) -> Any:
        return self._record[key]

    def __contains__(self, key: object) -> bool:
        return key in self._record

    def __len__(self) -> int:
        return len(self._record)

    def __iter__(self) -> Iterator[str]:
        return iter(self._record.keys())

    def values(self) -> ValuesView[Any]:
        return _Values(self)

    def items(self) -> ItemsView[str, Any]:
        return _Items(self)

    def __repr__(self) -> str:
        return f"<RecordMapping of {self._record!r}>"


class _Values(ValuesView[Any]):
    """By position: a name may be there twice."""

    _mapping: RecordMapping

    def __contains__(self, value: object) -> bool:
        return value in tuple(self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._mapping._record.values())  # noqa: SLF001


class _Items(ItemsView[str, Any]):
    """By position: a name may be there twice."""

    _mapping: RecordMapping

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._mapping._record.items())  # noqa: SLF001


class RecordKeys:
    """The column names of one result, shared by all its rows.

    Attributes:
        names: In their order.
        places: Where a row has what is asked for by name, or by place.
    """

    __slots__ = ("_targets", "names", "places")
    names: tuple[str, ...]
    places: dict[str | int, int]

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.places = {place: place for place in range(len(names))}
        self.places.update(zip(names, range(len(names)), strict=True))
        self._targets: dict[Any, Any] | None = None

    def find(self, key: Any, values: Any) -> Any:
        """Give what a row has under a key that is none of `places`.

        Raises:
            IndexError: The row has no such place.
            KeyError: It has no such column.
        """
        if isinstance(key, int | slice):
            return values[key]
        if isinstance(key, str):
            error = KeyError(key)
            error.add_note(f"the row has no column {key!r}; it has {list(self.names)}")
            raise error
        return self.by_column(key, values)

    def by_column(self, column: Any, values: Any) -> Any:
        """Give the value of a column of SQLAlchemy's, of a row that is SQLAlchemy's.

        Raises:
            KeyError: None of the result's columns is this one.
        """
        row = getattr(values, "_mapping", {})
        with suppress(KeyError):
            return row[column]
        with suppress(KeyError):
            return row[self.target_of(column, values)]
        raise KeyError(str(column))  # SQLAlchemy's own error is no plain one

    def target_of(self, column: object, row: Any) -> Any:
        """Give what SQLAlchemy's row knows a column of a table by: its label, or its twin in another `Table`.

        Raises:
            KeyError: None of the result's columns is this one.
        """
        if self._targets is None:
            # Reads what SQLAlchemy has no public list of: the columns that the statement selected.
            self._targets = {
                identity: known
                for known in getattr(getattr(row, "_parent", None), "_keymap", ())
                if (identity := _identity(_unlabelled(known))) is not None
            }
        return self._targets[_identity(column)]

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordKeys, (self.names,)

    @classmethod
    def of(cls, description: Sequence[Sequence[Any]] | None) -> RecordKeys:
        """Read the ``description`` of a DBAPI cursor; None where it has no rows."""
        return cls(tuple(column[0] for column in description or ()))


class TupleRecord(Record):
    """A row made of a tuple of values, or of SQLAlchemy's row, where the driver has no row type of its own."""

    # One attribute: where there is a `__getattr__`, reading one takes long before CPython 3.12.
    __slots__ = ("_row",)

    def __init__(self, keys: RecordKeys, values: Sequence[Any]) -> None:
        self._row = keys, values

    @classmethod
    def many(cls, keys: RecordKeys, rows: Iterable[Sequence[Any]]) -> list[Record]:
        """Give the rows of one result, with fewer steps than by a call of `__init__` for each."""
        records: list[Record] = []
        new = cls.__new__
        for values in rows:
            record = new(cls)
            record._row = keys, values  # noqa: SLF001
            records.append(record)
        return records

    def __getitem__(self, key: str | int | slice | ColumnElement[Any]) -> Any:
        keys, values = self._row
        try:
            return values[keys.places[key]]  # type: ignore[index]
        except (KeyError, TypeError):  # a slice has no hash before CPython 3.12
            pass
        return keys.find(key, values)

    def __len__(self) -> int:
        return len(self._row[1])

    def __iter__(self) -> Iterator[Any]:
        return iter(self._row[1])

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key in self._row[0].places

    def keys(self) -> tuple[str, ...]:
        return self._row[0].names

    def values(self) -> tuple[Any, ...]:
        return tuple(self._row[1])

    def items(self) -> tuple[tuple[str, Any], ...]:
        keys, values = self._row
        return tuple(zip(keys.names, values, strict=True))

    def get(self, key: str, default: Any = None, /) -> Any:
        keys, values = self._row
        return values[keys.places[key]] if key in self else default


def _unlabelled(key: object) -> object:
    while isinstance(key, Label):
        key = key.element
    return key


def _identity(key: object) -> tuple[str | None, str] | None:
    """Tell columns of tables apart: by schema, table and name."""
    return (getattr(key.table, "schema", None), str(key)) if isinstance(key, Column) else None
