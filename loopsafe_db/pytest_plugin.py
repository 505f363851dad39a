"""The pytest plugin: a private database for tests. Its fixtures are thin over `loopsafe_db.testing`.

Projects that use none of its fixtures pay for this file alone: what it needs is imported by the fixture that needs it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loopsafe_db.database import Database
    from loopsafe_db.testing.schemas import Schema
    from loopsafe_db.testing.servers import PostgresServer, Template

URL_VARIABLE = "LOOPSAFE_TEST_URL"
CLEANING = ("truncate", "template")


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
    from loopsafe_db.testing.servers import GivenPostgres, SharedPostgres

    url = _given_url(request.config)
    if _is_sqlite(url):
        pytest.skip("this run is on SQLite (--loopsafe-url): there is no PostgreSQL server")
    if url:
        yield GivenPostgres(url)
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

    try:
        with configured(url) as database:
            yield database
    finally:
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


def _is_sqlite(url: str) -> bool:
    return url.partition(":")[0].partition("+")[0] == "sqlite"


def _shared_folder(config: pytest.Config, factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, the same in all its pytest-xdist workers."""
    folder = factory.getbasetemp()
    return (folder.parent if hasattr(config, "workerinput") else folder) / "loopsafe_db"
