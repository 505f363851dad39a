"""SQLAlchemy's own tests, on engines that loopsafe_db makes: python .ci/sqlalchemy_suite.py [PYTEST ARGUMENT...].

They are of the sdist of the SQLAlchemy that is installed, fetched when they run: none of them is in this repository. A
differences file names the tests that fail here, and why; one that fails and is not named fails the run, and so does
one that is named and passes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import psycopg
import sqlalchemy as sa

from loopsafe_db.testing.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).resolve().parent
DIFFERENCES = HERE.parent / "tests" / "compatibility" / "sqlalchemy_suite.toml"
DRIVERS = ("asyncpg", "psycopg")
ASYNCIO, COMPLIANCE = "test/ext/asyncio", "test/dialect/test_suite.py"
MINUTES = 10


def main(arguments: list[str]) -> int:
    """Run all, and compare with the differences that are known."""
    programs = max(
        Path("/usr/lib/postgresql").glob("*/bin")
    )  # with the extensions that the tests create
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(programs=programs) as server:
        sources = fetch(Path(folder))
        results = [
            (f"{driver} {tests}", run(sources, database(server, driver), tests, arguments))
            for driver in DRIVERS
            for tests in ((ASYNCIO, COMPLIANCE) if driver == "asyncpg" else (COMPLIANCE,))
        ]
    known = tomllib.loads(DIFFERENCES.read_text())["difference"]
    failed, passed = set(), set()
    for name, outcomes in results:
        failed |= {test for test in outcomes if outcomes[test]}
        passed |= {test for test in outcomes if not outcomes[test]}
        print(f"{name}: {sum(not bad for bad in outcomes.values())} of {len(outcomes)} pass")
    surprises = sorted(test for test in failed if not is_known(test, known))
    healed = [] if arguments else [one for one in known if not any(map(matches(one), failed))]
    print(*(f"FAILED, and is no known difference: {test}" for test in surprises), sep="\n")
    print(*(f"passes, and is called a difference: {one['test']}" for one in healed), sep="\n")
    return bool(surprises or healed or not passed)


def fetch(folder: Path) -> Path:
    """Fetch and unpack the sources of what is installed; SQLAlchemy's own C is not built."""
    asked = [f"sqlalchemy=={sa.__version__}", "--no-deps", "--no-binary", "sqlalchemy"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *asked, "--dest", str(folder)]
    subprocess.run(command, check=True, timeout=60 * MINUTES)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(folder, filter="data")
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def database(server: EmbeddedPostgres, driver: str) -> str:
    """Make a database as SQLAlchemy's README.unittests wants it."""
    url = server.create_database()
    with psycopg.connect(url, autocommit=True) as connection:
        for schema in ("test_schema", "test_schema_2"):
            connection.execute(f"CREATE SCHEMA {schema}".encode())
    made = sa.make_url(url).set(drivername=f"postgresql+{driver}")
    return made.render_as_string(hide_password=False)


def run(sources: Path, url: str, tests: str, arguments: Iterable[str]) -> dict[str, bool]:
    """Run tests; tell of each whether it has failed."""
    report = sources / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--dburi", url, f"--junit-xml={report}"]
    command += ["-p", "sqlalchemy_seam", "-p", "no:loopsafe_db", "-p", "no:randomly"]
    command += ["-p", "no:cacheprovider", "--maxfail=1000", "--tb=line", "-r", "N"]
    path = f"{HERE}:{HERE.parent}"
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run(
        [*command, *arguments, tests],
        cwd=sources,
        env=environment,
        check=False,
        timeout=60 * MINUTES,
        stdout=subprocess.DEVNULL if not arguments else None,
    )
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {name(case): is_bad(case) for case in cases if case.find("skipped") is None}


def name(case: Any) -> str:
    """Name a test without the database that it runs on: ``AsyncEngineTest::test_dispose``."""
    kind = case.get("classname").rpartition(".")[2].partition("_postgresql")[0]
    return f"{kind}::{case.get('name')}"


def is_bad(case: Any) -> bool:
    """Tell whether a test has failed."""
    return case.find("failure") is not None or case.find("error") is not None


def matches(difference: dict[str, str]) -> Any:
    """Give what tells whether a difference is about a test, whatever its parameters."""
    return lambda test: test == difference["test"] or test.startswith(f"{difference['test']}[")


def is_known(test: str, known: list[dict[str, str]]) -> bool:
    """Tell whether a difference is about a test."""
    return any(matches(one)(test) for one in known)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
