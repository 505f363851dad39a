"""Clauses by the driver's own calls: what SQLAlchemy has compiled, without its cursor and its context.

SQLAlchemy runs a clause once, and keeps what it has compiled in its cache, with what it has learnt of the rows. From
then on the driver is called with that SQL, and the types' processors are applied here. What is not known to be the
same in the end goes the long way: by SQLAlchemy's cursor.
"""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from types import CodeType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Connection, Engine, Row
from sqlalchemy.engine.cursor import CursorResultMetaData
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.cache_key import HasCacheKey
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert, UpdateBase, ValuesBase
from sqlalchemy.sql.schema import CallableColumnDefault
from sqlalchemy.sql.selectable import SelectBase

from loopsafe_db.drivers.session_state import touched_by_sql
from loopsafe_db.engines.clauses import keyed, know_null_types, with_values
from loopsafe_db.engines.listeners import is_ours
from loopsafe_db.records import Record, RecordKeys, TupleRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from loopsafe_db.drivers.base import Answer

# The events of a statement: who listens to them is called by SQLAlchemy.
_of_engine = attrgetter(
    *("before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute"),
    *("begin", "engine_connect"),
)
_of_dialect = attrgetter("do_execute", "do_execute_no_params", "handle_error")
# What SQLAlchemy makes of a default that does not take its context: of one that does, it keeps the callable itself.
_WITHOUT_CONTEXT = {
    code
    for code in CallableColumnDefault._maybe_wrap_callable.__code__.co_consts  # noqa: SLF001
    if isinstance(code, CodeType)
}
_KINDS: Any = (SelectBase, UpdateBase)
_FORM = "_loopsafe_form"  # the attribute of what SQLAlchemy has compiled that holds our form of it


class _LongWay(Exception):
    """Only SQLAlchemy's context can run a clause."""


class Clauses:
    """The clauses of one engine that need no cursor of SQLAlchemy's."""

    def __init__(self, engine: Engine) -> None:
        """Note what of ours listens to the engine: it has no need of a clause's long way."""
        self._engine: Any = engine
        self._counted: tuple[Any, Any] = (), ()  # events, and who listens to them
        self._own = sum(map(is_ours, chain.from_iterable(self._heard())))

    def ready(self, query: Any, values: Any) -> ReadyClause | None:
        """Give a clause as the driver takes it, with its values; None: it goes the long way."""
        if (
            not isinstance(query, _KINDS)
            or query._execution_options  # noqa: SLF001
            or (values and not _are_named(values))
            or self._is_watched()
        ):
            return None
        values = values or {}
        if isinstance(query, ValuesBase):
            query, values = with_values(keyed(query), values)
            know_null_types(query)
        key = query._generate_cache_key()  # noqa: SLF001
        if key is None or (key[2:] and key[2]):  # the values of `ClauseElement.params`
            return None
        engine, names = self._engine, tuple(sorted(values))
        compiled = engine._compiled_cache.get((engine.dialect, key[0], names, False, False))  # noqa: SLF001
        form = None if compiled is None else _form_of(compiled, names)
        return None if form is None else form.ready(query, values, key[1])

    def leave_out(self, ours: int) -> None:
        """Note that so many more listeners are ours, which hear of what goes the short way, too."""
        self._own += ours

    def _is_watched(self) -> bool:
        """Tell whether somebody is to hear of statements, or changes how they run."""
        engine = self._engine
        return bool(
            getattr(Connection, "_has_events", False)  # SQLAlchemy 2.0 does without
            or self._listening() != self._own
            or engine._execution_options  # noqa: SLF001
            or engine._should_log_info()  # noqa: SLF001
        )

    def _listening(self) -> int:
        """Count who listens. An event that nobody has listened to is another object as soon as somebody does."""
        heard = self._heard()
        if heard != self._counted[0]:
            queues = [queue for one in heard for queue in (one.parent_listeners, one.listeners)]
            self._counted = heard, queues
        return sum(map(len, self._counted[1]))

    def _heard(self) -> tuple[Any, ...]:
        """Give the events; of an engine's where SQLAlchemy would look at them."""
        engine = self._engine
        heard: tuple[Any, ...] = _of_dialect(engine.dialect.dispatch)
        return heard + _of_engine(engine.dispatch) if engine._has_events else heard  # noqa: SLF001


class ReadyClause:
    """A clause with its values, for one call of the driver's.

    Attributes:
        text: The SQL as SQLAlchemy has written it.
        sql: As the driver's texts are written.
        args: In the driver's order.
        touches: What it may change of its session.
    """

    __slots__ = ("_form", "_query", "_values", "args", "sql", "text", "touches")
    args: Sequence[Any]
    sql: str
    text: str
    touches: int

    def __init__(
        self,
        form: CompiledClause,
        query: Any,
        values: Any,
        text: str,
        sql: str,
        args: Sequence[Any],
    ) -> None:
        self._form, self._query, self._values = form, query, values
        self.text = text
        self.sql, self.args, self.touches = sql, args, form.touches

    def results(self, answer: Answer) -> tuple[list[Record], Any]:
        """Give the rows, and what `execute` gives where there are none."""
        form = self._form
        if not form.shows_rows:
            return [], form.outcome(answer, self._values)
        keys = _ClauseKeys(form, self._query)
        return TupleRecord.many(keys, form.processed(answer.rows)), None


class CompiledClause:
    """What SQLAlchemy has compiled, and how values come to it and rows from it.

    Attributes:
        compiled: SQLAlchemy's.
        metadata: What SQLAlchemy knows of the rows; None if there are none.
        names: Of the columns.
        places: Of the columns, as those of `RecordKeys`.
        touches: What it may change of its session.
        shows_rows: Whether the user gets them: not those of an implicit RETURNING.
    """

    compiled: Any
    metadata: Any
    names: tuple[str, ...]
    places: dict[str | int, int]
    touches: int
    shows_rows: bool

    def __init__(self, compiled: Any, names: tuple[str, ...]) -> None:
        self.compiled, self.metadata = compiled, _metadata_of(compiled)
        self.touches = touched_by_sql(compiled.string, compiled.dialect.name)
        self._sources = tuple(_sources(compiled, names))
        self._defaults = tuple(_defaults(compiled))
        self._expands = bool(compiled.literal_execute_params or compiled.post_compile_params)
        self._processors = compiled._bind_processors  # noqa: SLF001
        if not self._expands:
            self._sql, order = self._positional(compiled.string, compiled.positiontup, ())
            self._order = [(name, self._processors.get(name)) for name in order]
        self.shows_rows = self.metadata is not None and not compiled.implicit_returning
        self._key_of = _key_getter(compiled)
        self._returns_unasked = compiled.implicit_returning
        keys = RecordKeys(() if self.metadata is None else tuple(self.metadata.keys))
        self.names, self.places = keys.names, keys.places
        self._result_processors = _result_processors(self.metadata)

    def ready(self, query: Any, given: Mapping[str, Any], extracted: Any) -> ReadyClause | None:
        """Bind values."""
        try:
            values = self._values(given, extracted)
            text, sql, args = self._expanded(values) if self._expands else self._simple(values)
        except Exception:  # noqa: BLE001 (SQLAlchemy meets it, too, and names it)
            return None
        return ReadyClause(self, query, values, text, sql, args)

    def processed(self, rows: Sequence[Any]) -> Iterable[Any]:
        """Apply the result processors."""
        if not rows or not self._result_processors:
            return rows
        columns: list[Iterable[Any]] = list(zip(*rows, strict=True))
        for position, processor in self._result_processors:
            columns[position] = map(processor, columns[position])
        return zip(*columns, strict=True)

    def outcome(self, answer: Answer, values: Mapping[str, Any]) -> Any:
        """Give the primary key of a one-row insert, else the rows affected."""
        if self._key_of is not None and answer.affected != 0:
            key = self._key_of(self.processed(answer.rows), answer.last_id, values)
            if key is not None:
                return key
            if answer.affected is None and self._returns_unasked:  # SQLite does not count those
                return 0
        return answer.affected

    def _values(self, given: Mapping[str, Any], extracted: Any) -> dict[str, Any]:
        """Give the values by name, as ``SQLCompiler.construct_params`` and the column defaults give them."""
        values = {}
        for name, key, place, bind in self._sources:
            if key is not None:
                values[name] = given[key]
            else:
                source = bind if place is None else extracted[place]
                values[name] = source.effective_value if bind.callable else source.value
        for name, is_callable, default in self._defaults:
            values[name] = default(None) if is_callable else default
        return values

    def _simple(self, values: Mapping[str, Any]) -> tuple[str, str, list[Any]]:
        return (
            self.compiled.string,
            self._sql,
            [
                values[name] if processor is None else processor(values[name])
                for name, processor in self._order
            ],
        )

    def _expanded(self, values: dict[str, Any]) -> tuple[str, str, list[Any]]:
        """Write a parameter for each member of an ``IN``, and literals where those are wanted."""
        state = self.compiled._process_parameters_for_postcompile(values)  # noqa: SLF001
        processors = {**self._processors, **state.processors}
        sql, order = self._positional(state.statement, state.positiontup, values)
        args = [
            processors[name](values[name]) if name in processors else values[name] for name in order
        ]
        return state.statement, sql, args

    def _positional(
        self, sql: str, order: Sequence[str] | None, names: Iterable[str]
    ) -> tuple[str, Sequence[str]]:
        """Number the parameters of a driver that SQLAlchemy gives them by name."""
        if self.compiled.positional:
            return sql, order or ()
        numbers = _Numbers()
        written = sql % numbers
        escaped = self.compiled.escaped_bind_names
        known = {escaped[name]: name for name in escaped}
        return written, [known.get(name, name) for name in numbers]


class _Numbers(dict[str, str]):
    """The places of names, in the order in which they are met."""

    def __missing__(self, name: str) -> str:
        self[name] = place = f"${len(self) + 1}"
        return place


class _ClauseKeys(RecordKeys):
    """The columns of one result of a clause, which knows its rows by SQLAlchemy's columns, too."""

    __slots__ = ("_form", "_metadata", "_query")
    _metadata: Any

    def __init__(self, form: CompiledClause, query: Any) -> None:
        self.names, self.places = form.names, form.places
        self._targets = None
        self._form, self._query, self._metadata = form, query, None

    def by_column(self, column: Any, values: Any) -> Any:
        """Give the value of a column, found as SQLAlchemy's row finds it."""
        metadata: Any = self._metadata or self._adapted()
        position = metadata._key_to_index.get(column)  # noqa: SLF001
        if position is not None:
            return values[position]
        return super().by_column(column, Row(metadata, None, metadata._key_to_index, tuple(values)))  # noqa: SLF001

    def _adapted(self) -> Any:
        """Have the columns of this clause known: those of the one that was compiled may be others of the same name."""
        form: Any = self._form
        context: Any = SimpleNamespace(compiled=form.compiled, invoked_statement=self._query)
        self._metadata = form.metadata._adapt_to_context(context)  # noqa: SLF001
        return self._metadata


def _form_of(compiled: Any, names: tuple[str, ...]) -> CompiledClause | None:
    """Give the form of what SQLAlchemy has compiled and run, made once."""
    try:
        return vars(compiled)[_FORM]  # type: ignore[no-any-return]
    except KeyError:
        pass
    if not _has_run(compiled):
        return None
    form = None
    try:
        _refuse(compiled)
        form = CompiledClause(compiled, names)
    except _LongWay:
        pass
    setattr(compiled, _FORM, form)
    return form


def _has_run(compiled: Any) -> bool:
    """Tell whether SQLAlchemy knows what rows come, if any do; of some statements it never keeps that."""
    return not compiled._result_columns or compiled._cached_metadata is not None  # noqa: SLF001


def _refuse(compiled: Any) -> None:
    if not isinstance(compiled, SQLCompiler):
        raise _LongWay
    statement: Any = compiled.compile_state and compiled.compile_state.statement
    is_dml = compiled.isinsert or compiled.isupdate or compiled.isdelete
    if (
        compiled.has_out_parameters
        or compiled.schema_translate_map
        or compiled._render_postcompile  # noqa: SLF001
        or not (is_dml or compiled._result_columns)  # noqa: SLF001
        or (compiled.implicit_returning and not compiled.isinsert)
        or (is_dml and statement._supplemental_returning)  # noqa: SLF001
    ):
        raise _LongWay


def _metadata_of(compiled: Any) -> Any:
    metadata = compiled._cached_metadata if compiled._result_columns else None  # noqa: SLF001
    if metadata is not None and metadata._tuplefilter is not None:  # noqa: SLF001
        raise _LongWay
    return metadata


def _are_named(values: Any) -> bool:
    return isinstance(values, dict) and all(type(name) is str for name in values)


def _sources(
    compiled: Any, given: tuple[str, ...]
) -> Iterator[tuple[str, str | None, int | None, Any]]:
    """Give for each parameter its name, then where its value is: its name in what is given, or its place in the key."""
    matching = compiled._cache_key_bind_match[0]  # noqa: SLF001
    places = {
        bind: place
        for place, original in enumerate(compiled.cache_key[1])
        for bind in matching[original]
    }
    for bind, name in compiled.bind_names.items():
        key = next((known for known in (bind.key, name) if known in given), None)
        if key is None and bind.required:
            raise _LongWay  # it has an error for that
        yield name, key, places.get(bind), bind


def _defaults(compiled: Any) -> Iterator[tuple[str, bool, Any]]:
    """Give what columns get that have no value: its parameter's name, whether it is to be called, and what it is."""
    columns = compiled.insert_prefetch or compiled.update_prefetch
    described = (
        "_default_description_tuple" if compiled.insert_prefetch else "_onupdate_description_tuple"
    )
    for column in columns:
        value, is_scalar, is_callable, is_sentinel = getattr(column, described)
        without_context = is_callable and getattr(value, "__code__", None) in _WITHOUT_CONTEXT
        if is_sentinel or not (is_scalar or without_context):
            raise _LongWay
        yield compiled._within_exec_param_key_getter(column), not is_scalar, value  # noqa: SLF001


def _result_processors(metadata: Any) -> list[tuple[int, Callable[[Any], Any]]]:
    processors = () if metadata is None else metadata._processors  # noqa: SLF001
    return [
        (place, processor) for place, processor in enumerate(processors) if processor is not None
    ]


def _key_getter(compiled: Any) -> Callable[[Iterable[Any], Any, Any], Any] | None:
    """Give what finds the primary key of an inserted row, its first column, as SQLAlchemy's context does it."""
    statement: Any = compiled.isinsert and compiled.compile_state.statement
    if not isinstance(statement, Insert) or not statement.table.primary_key:
        return None
    if compiled.implicit_returning:
        places = {column: place for place, column in enumerate(compiled.implicit_returning)}
        place = places.get(next(iter(statement.table.primary_key)))
        if place is not None:
            return lambda rows, _, __: next((row[place] for row in rows), None)
        returned = compiled._inserted_primary_key_from_returning_getter  # noqa: SLF001
        return lambda rows, _, values: next((returned(row, values)[0] for row in rows), None)
    given = compiled._inserted_primary_key_from_lastrowid_getter  # noqa: SLF001
    if compiled.postfetch_lastrowid:
        return lambda _, last_id, values: given(last_id, values)[0]
    return lambda _, __, values: given(None, values)[0]


# Names of SQLAlchemy's that are no part of its documented interface, by who has them.
LEANS_ON: tuple[tuple[Any, str], ...] = (
    *((Executable, name) for name in ("_execution_options",)),
    *((HasCacheKey, name) for name in ("_generate_cache_key",)),
    *((UpdateBase, name) for name in ("_returning", "_supplemental_returning")),
    *((CallableColumnDefault, name) for name in ("_maybe_wrap_callable",)),
    *((Column, name) for name in ("_default_description_tuple", "_onupdate_description_tuple")),
    *(
        (SQLCompiler, name)
        for name in (
            *(
                "_bind_processors",
                "_cache_key_bind_match",
                "_cached_metadata",
                "_render_postcompile",
            ),
            *("_process_parameters_for_postcompile", "_within_exec_param_key_getter"),
            *("_inserted_primary_key_from_lastrowid_getter", "escaped_bind_names"),
            *("_inserted_primary_key_from_returning_getter", "implicit_returning"),
            *("has_out_parameters", "insert_prefetch", "update_prefetch", "postfetch_lastrowid"),
            *("literal_execute_params", "post_compile_params", "cache_key"),
        )
    ),
    *(
        (CursorResultMetaData, name)
        for name in ("_adapt_to_context", "_key_to_index", "_processors", "_tuplefilter")
    ),
    *((Engine, name) for name in ("_execution_options", "_should_log_info")),
)
