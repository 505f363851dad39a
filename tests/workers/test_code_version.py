"""The version in a worker's id: what git says of the code, or a hash of it."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from loopsafe_db.integrations.conductor import code_version

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGE = "versioned_workers"
A_HASH = re.compile("[0-9a-f]{8}")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of workers in a folder that may become a repository."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "jobs.py").write_text("ONE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(f"{PACKAGE}.jobs")
    yield folder
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[name]


def git(package: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(
        ["git", "-C", str(package.parent), *who, *words], check=True, capture_output=True
    )


def version() -> str:
    return code_version(f"{PACKAGE}.jobs")


def test_without_git_it_is_a_hash_that_changes_with_the_code(package: Path) -> None:
    before = version()
    (package / "jobs.py").write_text("TWO = 2\n")

    assert A_HASH.fullmatch(before)
    assert A_HASH.fullmatch(version())
    assert version() != before


def test_the_lock_of_an_editor_is_no_file_of_the_package(package: Path) -> None:
    before = version()
    (package / ".#jobs.py").symlink_to("somebody@somewhere")

    assert version() == before


def test_what_git_has_is_described_and_what_has_been_changed_is_hashed(package: Path) -> None:
    git(package, "init")
    git(package, "add", PACKAGE)
    git(package, "commit", "-m", "one")
    git(package, "tag", "v1.4")
    described = version()
    (package / "more.py").write_text("")
    changed = version()

    assert described == "v1.4"
    assert A_HASH.fullmatch(changed)


def test_a_package_that_lies_in_a_repository_and_is_none_of_its_files_is_hashed(
    package: Path,
) -> None:
    git(package, "init")
    (package.parent / ".gitignore").write_text(f"{PACKAGE}\n")
    git(package, "add", ".gitignore")
    git(package, "commit", "-m", "one")

    assert A_HASH.fullmatch(version())
