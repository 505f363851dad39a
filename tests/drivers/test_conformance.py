"""Ours and a stranger's: every driver passes the suite that we ship."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url

from loopsafe_db.testing.conformance import DriverConformance

if TYPE_CHECKING:
    from collections.abc import Iterator


THIRD_PARTY = Path(__file__).parent / "third_party"


class TestAsyncpg(DriverConformance):
    @pytest.fixture
    def url(self, postgres_url: str) -> Any:
        return postgres_url


class TestPsycopg(DriverConformance):
    @pytest.fixture
    def url(self, postgres_url: str) -> Any:
        return make_url(postgres_url).set(drivername="postgresql+psycopg")


@pytest.fixture(scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install the driver of somebody else."""
    folder = tmp_path_factory.mktemp("site-packages")
    install(THIRD_PARTY, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    sys.modules.pop("plainsqlite", None)


class TestAiosqlite(DriverConformance):
    @pytest.fixture
    def url(self, tmp_path: Path) -> Any:
        return f"sqlite:///{tmp_path}/test.db"


class TestAiomysql(DriverConformance):
    """The generic driver on MariaDB."""

    @pytest.fixture
    def url(self, mariadb_url: str) -> Any:
        return mariadb_url


class TestAsyncmy(DriverConformance):
    """The generic driver on another package."""

    @pytest.fixture
    def url(self, mariadb_url: str) -> Any:
        return make_url(mariadb_url).set(drivername="mariadb+asyncmy")


class TestThirdParty(DriverConformance):
    """A driver that this project does not know, found by its entry point."""

    @pytest.fixture
    def url(self, third_party: None, tmp_path: Path) -> Any:
        return f"sqlite+plain:///{tmp_path}/test.db"


def install(project: Path, folder: Path) -> None:
    """Install a project of one module as pip does, but without asking a network for a build backend."""
    metadata = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    name, version = metadata["name"], metadata["version"]
    shutil.copy(project / f"{name}.py", folder)
    info = folder / f"{name}-{version}.dist-info"
    os.mkdir(info)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = metadata["entry-points"].items()
    (info / "entry_points.txt").write_text(
        "\n".join(
            line
            for group, entries in groups
            for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
        )
    )
