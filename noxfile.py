"""The interpreters and SQLAlchemys that are promised, each in an environment of its own: nox -l lists them.

nox -s "tests-3.13(sqlalchemy='2.0')" -- tests/sessions
"""

from __future__ import annotations

import re

import nox

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]  # one that is not installed is skipped
PYPROJECT = nox.project.load_toml("pyproject.toml")
OLDEST = next(
    re.sub(r"^sqlalchemy\[asyncio\]>=", "", requirement)
    for requirement in PYPROJECT["project"]["dependencies"]
    if requirement.startswith("sqlalchemy")
)
SQLALCHEMY = {"2.0": f"sqlalchemy[asyncio]=={OLDEST}", "2.1": "sqlalchemy[asyncio]>=2.1,<2.2"}

nox.options.default_venv_backend = "venv"
nox.options.envdir = ".venv-nox"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False

TEST = nox.project.dependency_groups(PYPROJECT, "test")
DEV = nox.project.dependency_groups(PYPROJECT, "dev")
WITHOUT_CONDUCTOR = [
    f"--ignore={path}"
    for path in ("tests/workers", "examples/reflector_workers", "tests/testing/test_worker_task.py")
]


@nox.session(python=PYTHONS)
@nox.parametrize("sqlalchemy", list(SQLALCHEMY))
def tests(session: nox.Session, sqlalchemy: str) -> None:
    """Run the library's tests; arguments go to pytest."""
    session.install("-e", ".", *TEST, SQLALCHEMY[sqlalchemy])
    session.run("pytest", *(session.posargs or WITHOUT_CONDUCTOR))


@nox.session
def lint(session: nox.Session) -> None:
    """Check formatting, style and the direction of imports."""
    session.install("-e", ".", *DEV)
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types inside, as users see them, and without gaps."""
    session.install("-e", ".", *DEV)
    session.run("mypy")
    session.run("pytest", "tests/typing")
