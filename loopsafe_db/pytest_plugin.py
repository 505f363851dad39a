"""The pytest plugin: a private database for tests. Its fixtures are thin over `loopsafe_db.testing`.

Projects that use none of its fixtures pay for this file alone: what it needs is imported by the fixture that needs it.
"""

from __future__ import annotations

import inspect
import os
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from loopsafe_db.database import Database
    from loopsafe_db.testing.children import StartMethod
    from loopsafe_db.testing.rollback import RolledBack
    from loopsafe_db.testing.schemas import Schema
    from loopsafe_db.testing.servers import PostgresServer, Template
    from loopsafe_db.testing.worker_task import WorkerResult

URL_VARIABLE = "LOOPSAFE_TEST_URL"
CLEANING = ("truncate", "template")
_STATEMENTS = pytest.StashKey[list[Any]]()


# -- options


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the plugin's options to pytest's."""
    group = parser.getgroup("loopsafe_db")
    group.addoption(
        "--loopsafe-url",
        metavar="URL",
        help="where tests make their databases: a PostgreSQL server whose user may create databases, or sqlite:// "
        f"(default: ${URL_VARIABLE}, then loopsafe_url in the ini file, then a private PostgreSQL)",
    )
    group.addoption(
        "--loopsafe-leaks",
        choices=("error", "warn", "off"),
        default="warn",
        help="what a test that leaves transactions, connections, tasks or loops behind gets (default: warn)",
    )
    parser.addini("loopsafe_url", "like --loopsafe-url, which goes before it", default="")
    parser.addini(
        "loopsafe_clean",
        "how loopsafe_db_committed cleans up: 'truncate' empties the tables, 'template' gives each test a database of "
        "its own (default: truncate, unless the schema brings rows of its own)",
        default="",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the plugin's markers known."""
    config.addinivalue_line(
        "markers",
        "loopsafe_clean(how): 'truncate' or 'template', for loopsafe_db_committed in this test",
    )


# -- rolled back


@pytest.fixture(scope="session")
def _loopsafe_rolled_back(loopsafe_db_url: str) -> Iterator[RolledBack]:
    """The default handle, which is that of the tests for the rest of the run."""
    from loopsafe_db.testing.rollback import RolledBack
    from loopsafe_db.testing.schemas import configured

    with configured(loopsafe_db_url) as database:
        rolled_back = RolledBack(database)
        yield rolled_back
        rolled_back.close()


@pytest.fixture(scope="session")
def loopsafe_db_handle(_loopsafe_rolled_back: RolledBack) -> Database:
    """The handle of `loopsafe_db`, for fixtures of the session; what is done with it outside of a test stays."""
    return _loopsafe_rolled_back.database


@pytest.fixture
def loopsafe_db(
    request: pytest.FixtureRequest, _loopsafe_rolled_back: RolledBack
) -> Iterator[Database]:
    """The default database, which `get_database` gives; what anybody does with it in the test is undone."""
    yield from _undone(request.node, _loopsafe_rolled_back)


@pytest.fixture(scope="session")
def _loopsafe_named(_loopsafe_template: Template) -> Iterator[Callable[[str], RolledBack]]:
    from loopsafe_db.testing.rollback import RolledBack
    from loopsafe_db.testing.schemas import configured

    made: dict[str, RolledBack] = {}
    with ExitStack() as stack:

        def name_one(name: str) -> RolledBack:
            if name not in made:
                url = _loopsafe_template.create()
                stack.callback(_loopsafe_template.drop, url)
                made[name] = RolledBack(stack.enter_context(configured(url, name)))
                stack.callback(made[name].close)
            return made[name]

        yield name_one


@pytest.fixture
def loopsafe_db_named(
    request: pytest.FixtureRequest, _loopsafe_named: Callable[[str], RolledBack]
) -> Iterator[Callable[[str], Database]]:
    """Gives a database of its own to each name that `get_database` is asked for, with the same tables; undone, too."""
    with ExitStack() as stack:

        def name_one(name: str) -> Database:
            undone = contextmanager(_undone)(request.node, _loopsafe_named(name))
            return stack.enter_context(undone)

        yield name_one


def _undone(item: Any, rolled_back: RolledBack) -> Iterator[Database]:
    from loopsafe_db.testing.leaks import LeakWatch

    watch = LeakWatch()
    item.stash.setdefault(_STATEMENTS, []).append(rolled_back)
    with rolled_back:
        yield rolled_back.database
        if item.config.getoption("--loopsafe-leaks") == "off":
            return
        leaks = watch.find(loops=not _runs_in_a_plugins_loop(item))
        leaks += (f"a session was left on the server: {one}" for one in rolled_back.undo())
    _report_leaks(item, leaks)


def _runs_in_a_plugins_loop(item: Any) -> bool:
    """Tell whether a plugin makes the loop of a test, or of one of its fixtures, and closes it when it likes."""
    return any(
        name.endswith("_scoped_runner") or name == "anyio_backend" for name in item.fixturenames
    )


def _report_leaks(item: Any, leaks: list[str]) -> None:
    if not leaks:
        return
    text = "\n".join((f"{item.nodeid} left something behind:", *leaks))
    if item.config.getoption("--loopsafe-leaks") == "error":
        pytest.fail(text, pytrace=False)
    warnings.warn(pytest.PytestWarning(text), stacklevel=1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show, with a test that failed, what it has asked, and whose connection it was that another loop used."""
    report = yield
    if report.failed and call.when == "call":
        for rolled_back in item.stash.get(_STATEMENTS, []):
            if statements := rolled_back.statements:
                shown = (f"{number}. {text}" for number, text in enumerate(statements, 1))
                report.sections.append((f"SQL on {rolled_back.database!r}", "\n".join(shown)))
        place = getattr(call.excinfo.value, "taken_at", "") if call.excinfo else ""
        if hint := _fixture_of(item, place):
            report.sections.append(("loopsafe_db", hint))
    return report


def _fixture_of(item: Any, place: str) -> str:
    """Say which fixture has taken a connection at `place`, if one has."""
    path, _, line = place.rpartition(":")
    for name, definitions in item._fixtureinfo.name2fixturedefs.items():  # noqa: SLF001
        function = inspect.unwrap(definitions[-1].func)
        code = getattr(function, "__code__", None)
        if code is None or code.co_filename != path:
            continue
        first = code.co_firstlineno
        if first <= int(line) < first + len(inspect.getsourcelines(function)[0]):
            return (
                f"the connection was taken by the fixture {name!r} (scope {definitions[-1].scope!r}), in another "
                "event loop than the one it was used in: let the fixture give the handle, or give both one loop_scope"
            )
    return ""


# -- loops and processes


@pytest.fixture(params=("asyncio", "uvloop"))
def loopsafe_loop_factory(
    request: pytest.FixtureRequest,
) -> Callable[[], asyncio.AbstractEventLoop]:
    """Runs a test once per event loop that is installed; for `asyncio.Runner`."""
    loops = pytest.importorskip(request.param)
    factory: Callable[[], asyncio.AbstractEventLoop] = loops.new_event_loop
    return factory


@pytest.fixture(params=("fork", "forkserver", "spawn"))
def loopsafe_start_method(request: pytest.FixtureRequest) -> StartMethod:
    """Runs a test once per start method of this platform; for `call_in_child` and `multiprocessing`."""
    import multiprocessing

    if request.param not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {request.param} on this platform")
    method: StartMethod = request.param
    return method


@pytest.fixture
def loopsafe_run_worker() -> Callable[..., WorkerResult]:
    """Calls a Conductor worker as its SDK does: `loopsafe_db.testing.run_worker`."""
    from loopsafe_db.testing.worker_task import run_worker

    return run_worker


# -- servers and databases


@pytest.fixture(scope="session")
def loopsafe_db_schema() -> Schema:
    """What is in the databases of tests; override it, see `loopsafe_db.testing.schemas.apply_schema`."""
    return None


@pytest.fixture(scope="session")
def loopsafe_postgres(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PostgresServer]:
    """The PostgreSQL server of this run, for all its workers: the given one, else a private one."""
    from loopsafe_db.testing.runs import Run
    from loopsafe_db.testing.servers import GivenPostgres, SharedPostgres

    url = _given_url(request.config)
    if _is_sqlite(url):
        pytest.skip("this run is on SQLite (--loopsafe-url): there is no PostgreSQL server")
    if url:
        with Run(_run_key(request.config)) as run:
            server = GivenPostgres(url, run)
            server.drop_what_is_dead()
            yield server
        return
    with SharedPostgres(_shared_folder(request.config, tmp_path_factory)) as server:
        yield server


@pytest.fixture(scope="session")
def _loopsafe_template(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    loopsafe_db_schema: Schema,
) -> Iterator[Template]:
    from loopsafe_db.testing.schemas import apply_schema
    from loopsafe_db.testing.servers import TemplateDatabase, TemplateFile

    def build(url: str) -> None:
        apply_schema(loopsafe_db_schema, url)

    url = _given_url(request.config)
    folder = _shared_folder(request.config, tmp_path_factory)
    template: Template
    if _is_sqlite(url):
        template = TemplateFile(url, folder, build)
    else:
        template = TemplateDatabase(request.getfixturevalue("loopsafe_postgres"), folder, build)
    with template:
        yield template


@pytest.fixture(scope="session")
def loopsafe_db_url(_loopsafe_template: Template) -> Iterator[str]:
    """The URL of a database with the tables of `loopsafe_db_schema`: one for each worker of the run."""
    url = _loopsafe_template.create()
    yield url
    _loopsafe_template.drop(url)


@pytest.fixture(scope="session")
def _loopsafe_cleaner(loopsafe_db_url: str) -> Iterator[Database]:
    """A handle of its own for cleaning: what a test did to its handle does not matter."""
    from loopsafe_db.database import Database
    from loopsafe_db.testing.servers import run_apart

    database = Database(loopsafe_db_url)
    yield database
    run_apart(database.disconnect)


@pytest.fixture(scope="session")
def _loopsafe_default_cleaning(_loopsafe_cleaner: Database) -> str:
    """Rows that are there before the first test belong to the schema."""
    from loopsafe_db.testing.schemas import has_rows
    from loopsafe_db.testing.servers import run_apart

    return "template" if run_apart(lambda: has_rows(_loopsafe_cleaner)) else "truncate"


@pytest.fixture
def loopsafe_db_committed(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A handle whose commits are real, and which `get_database` gives in this test; cleaned up afterwards."""
    how = _cleaning(request)
    if how == "template":
        yield from _own_database(request.getfixturevalue("_loopsafe_template"))
    else:
        url = request.getfixturevalue("loopsafe_db_url")
        yield from _emptied_database(url, request.getfixturevalue("_loopsafe_cleaner"))


def _own_database(template: Template) -> Iterator[Database]:
    from loopsafe_db.testing.schemas import configured

    url = template.create()
    try:
        with configured(url) as database:
            yield database
    finally:
        template.drop(url)


def _emptied_database(url: str, cleaner: Database) -> Iterator[Database]:
    from loopsafe_db.testing.schemas import configured, truncate_all
    from loopsafe_db.testing.servers import run_apart

    owner = os.getpid()
    try:
        with configured(url) as database:
            yield database
    finally:
        # a forked child that ends its fixtures leaves its parent's rows alone
        if os.getpid() == owner:
            run_apart(lambda: truncate_all(cleaner))


def _cleaning(request: pytest.FixtureRequest) -> str:
    """Ask the marker, then the ini file, then the schema."""
    marker = request.node.get_closest_marker("loopsafe_clean")
    how: Any = request.config.getini("loopsafe_clean")
    if marker is not None:
        how = marker.args[0] if marker.args else None
    if how == "":
        how = request.getfixturevalue("_loopsafe_default_cleaning")
    if how not in CLEANING:
        raise pytest.UsageError(f"loopsafe_clean is 'truncate' or 'template', not {how!r}")
    return str(how)


def _given_url(config: pytest.Config) -> str:
    """The URL to use; "" if there shall be a private server."""
    option = config.getoption("--loopsafe-url")
    return str(option or os.environ.get(URL_VARIABLE) or config.getini("loopsafe_url"))


def _run_key(config: pytest.Config) -> str | None:
    """What the pytest-xdist workers of a run have in common."""
    worker = getattr(config, "workerinput", None)
    return worker and str(worker["testrunuid"])


def _is_sqlite(url: str) -> bool:
    return url.partition(":")[0].partition("+")[0] == "sqlite"


def _shared_folder(config: pytest.Config, factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, the same in all its pytest-xdist workers."""
    folder = factory.getbasetemp()
    return (folder.parent if hasattr(config, "workerinput") else folder) / "loopsafe_db"
