"""OpenTelemetry: a span for each statement, and metrics of the pools, by its conventions for databases.

::

    from loopsafe_db.integrations.opentelemetry import instrument

    instrument()    # once, at the start of the process; children that are forked later have it, too

The names are those of the stable conventions for spans, and of the conventions for connection pools. The
instrumentations of asyncpg, psycopg and SQLAlchemy may be on beside it: what this one tells of, they do not. Needs the
extra ``otel``.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.utils import is_instrumentation_enabled, suppress_instrumentation
from opentelemetry.metrics import CallbackOptions, Observation, get_meter
from opentelemetry.trace import SpanKind, StatusCode, get_tracer

from loopsafe_db.drivers.url import describe_target
from loopsafe_db.engines.observing import Listener, everywhere
from loopsafe_db.errors import AcquireTimeout
from loopsafe_db.snapshot import live_pools

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from loopsafe_db.engines.observing import Statement, Use
    from loopsafe_db.engines.pool import ConnectionPool

_SCHEMA = "https://opentelemetry.io/schemas/1.33.0"
_NAME = "loopsafe_db"
_SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}  # others are called alike
_POOL = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
# Advised by the conventions for durations in seconds.
_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


def instrument(
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    parameters: bool = False,
) -> Callable[[], None]:
    """Make spans and metrics of every statement of every handle of this process.

    Args:
        tracer_provider: OpenTelemetry's global one if None.
        meter_provider: The same.
        parameters: Whether the spans have the values of the parameters: they may be secret.

    Returns:
        What ends the spans, and the metrics of statements and of the time that connections were in use.
    """
    meter = get_meter(_NAME, meter_provider=meter_provider, schema_url=_SCHEMA)
    _watch_pools(meter)
    telling = _Telling(
        get_tracer(_NAME, tracer_provider=tracer_provider, schema_url=_SCHEMA),
        meter,
        parameters=parameters,
    )
    return everywhere.add(
        Listener(telling.tell, lambda _: suppress_instrumentation(), parameters, telling.tell_use)
    )


class _Telling:
    """Makes of a statement what OpenTelemetry has for it."""

    def __init__(self, tracer: Tracer, meter: Meter, *, parameters: bool) -> None:
        self._tracer, self._parameters = tracer, parameters
        self._duration = _seconds(meter, "db.client.operation.duration", "of database operations")
        self._wait = _seconds(
            meter, "db.client.connection.wait_time", "to get a connection of a pool"
        )
        self._use = _seconds(meter, "db.client.connection.use_time", "that a connection was in use")
        self._create = _seconds(meter, "db.client.connection.create_time", "to open a connection")
        self._timeouts = meter.create_counter(
            "db.client.connection.timeouts",
            "{timeout}",
            "waits in a pool's queue that were in vain",
        )

    def tell(self, statement: Statement) -> None:
        """Tell of a statement that is over."""
        if not is_instrumentation_enabled():  # its caller has said so
            return
        target = _target(statement)
        self._measure(statement, target)
        self._make_span(statement, target)

    def tell_use(self, use: Use) -> None:
        """Tell of a connection that has come back."""
        pool = {_POOL: use.database}
        self._wait.record(use.wait + use.connect, pool)
        self._use.record(use.seconds, pool)
        if use.connect:
            self._create.record(use.connect, pool)

    def _measure(self, statement: Statement, target: dict[str, Any]) -> None:
        if isinstance(statement.error, AcquireTimeout):
            self._timeouts.add(1, {_POOL: statement.database})
        if statement.kind != "acquire":
            seconds = statement.query + statement.fetch
            self._duration.record(seconds, {**target, **_summary(statement), **_error(statement)})

    def _make_span(self, statement: Statement, target: dict[str, Any]) -> None:
        summary, wait = _summary(statement), statement.wait if statement.kind == "acquire" else 0.0
        name = summary.get("db.query.summary") or "acquire"
        span = self._tracer.start_span(
            name,
            kind=SpanKind.CLIENT,
            start_time=int((statement.started_at - wait) * 1e9),
            attributes={**target, **summary, **_details(statement), **_error(statement)},
        )
        if self._parameters:
            for number, value in enumerate(statement.parameters):
                span.set_attribute(f"db.query.parameter.{number}", str(value))
        if statement.error is not None:
            # The server's text may have values in it.
            span.set_status(StatusCode.ERROR, str(statement.error) if self._parameters else None)
        span.end(time.time_ns())


def _target(statement: Statement) -> dict[str, Any]:
    url = statement.url
    backend = url.get_backend_name()
    target = {
        "db.system.name": _SYSTEMS.get(backend, backend),
        "db.namespace": url.database,
        "server.address": url.host,
        "server.port": url.port,
    }
    return {name: value for name, value in target.items() if value is not None}


def _summary(statement: Statement) -> dict[str, str]:
    """Give the first word: what it is about nobody can tell without the server's grammar."""
    words = statement.sql.split(None, 1)
    return {"db.query.summary": words[0].upper()} if words else {}


def _details(statement: Statement) -> dict[str, Any]:
    path, _, line = statement.place.rpartition(":")
    details = {
        "db.query.text": statement.sql or None,
        "db.operation.batch.size": statement.batch if statement.batch > 1 else None,
        "db.response.returned_rows": statement.rows,
        "code.file.path": path or None,
        "code.line.number": int(line) if line.isdigit() else None,
        "loopsafe_db.kind": statement.kind,
        "loopsafe_db.wait": statement.wait or None,
        "loopsafe_db.connect": statement.connect or None,
        "loopsafe_db.lag": statement.lag or None,
    }
    return {name: value for name, value in details.items() if value is not None}


def _error(statement: Statement) -> dict[str, str]:
    if statement.error is None:
        return {}
    kind = type(statement.error)
    told = {"error.type": f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")}
    if code := getattr(statement.error, "sqlstate", None):
        told["db.response.status_code"] = str(code)
    return told


def _seconds(meter: Meter, name: str, what: str) -> Any:
    return meter.create_histogram(
        name, "s", f"Seconds {what}", explicit_bucket_boundaries_advisory=_SECONDS
    )


def _watch_pools(meter: Meter) -> None:
    """Have the pools asked what they have, each time that somebody reads the metrics."""
    make = meter.create_observable_up_down_counter
    for name, (unit, what, figures) in _FIGURES.items():
        make(f"db.client.connection.{name}", [_observing(figures)], unit, what)


def _observing(figures: Callable[[ConnectionPool], _Figures]) -> Callable[..., list[Observation]]:
    """Observe a figure of all pools. Handles of one database have pools of one name: those are summed."""

    def observe(_: CallbackOptions) -> list[Observation]:
        sums: Counter[tuple[str, str]] = Counter()
        for pool in live_pools():
            name = describe_target(pool.options.url)
            for state, figure in figures(pool).items():
                sums[name, state] += figure
        return [
            Observation(figure, {_POOL: name, **({_STATE: state} if state else {})})
            for (name, state), figure in sums.items()
        ]

    return observe


def _count(pool: ConnectionPool) -> _Figures:
    stats = pool.stats()
    return {"idle": stats.idle, "used": stats.in_use}


_Figures = dict[str, int]  # by the state of the connections, "" of all
_FIGURES: dict[str, tuple[str, str, Callable[[ConnectionPool], _Figures]]] = {
    "count": ("{connection}", "connections that are open", _count),
    "max": (
        "{connection}",
        "connections that the pool may open",
        lambda pool: {"": pool.lending.limit},
    ),
    "idle.max": (
        "{connection}",
        "connections that may be idle",
        lambda pool: {"": pool.lending.limit if pool.options.keeps else 0},
    ),
    "idle.min": (
        "{connection}",
        "connections that are kept however idle",
        lambda pool: {"": pool.options.pool.min_connections},
    ),
    "pending_requests": (
        "{request}",
        "callers that wait for a connection",
        lambda pool: {"": pool.lending.waiting},
    ),
}
