"""What the package says of itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import tomllib
from typing import Any

import pytest

import loopsafe_db
from tests.docs.test_docs import LINK, ROOT, anchors

README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "https://example.org/somebody/loopsafe_db"


@pytest.fixture(scope="module")
def build() -> Any:
    """What hatchling calls to make the description."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def description(build: Any, version: str, **more: Any) -> str:
    metadata = {"version": version, **more}
    build.ReadmeHook(str(ROOT), {}).update(metadata)
    assert metadata["readme"]["content-type"] == "text/markdown"
    return str(metadata["readme"]["text"])


def test_the_version_is_that_of_what_is_installed() -> None:
    assert loopsafe_db.__version__ == importlib.metadata.version("loopsafe-db")


def test_a_name_that_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'loopsafe_db' has no attribute 'Databse'"):
        getattr(loopsafe_db, "Databse")  # noqa: B009  (mypy knows it, too)


@pytest.mark.parametrize(("version", "commit"), [("1.2.3", "v1.2.3"), ("1.3.dev4+g12ab", "HEAD")])
def test_links_of_the_description_lead_to_the_repository(
    build: Any, version: str, commit: str
) -> None:
    text = description(build, version, urls={"Source": ADDRESS})

    assert not LINK.findall(text)
    led = re.findall(
        rf"(!?)\[[^\]]+\]\({ADDRESS}/(\w+)/{re.escape(commit)}/([^)#]+)#?([^)]*)\)", text
    )
    assert len(led) == len(LINK.findall(README))
    for picture, kind, path, anchor in led:
        assert kind == ("raw" if picture else "blob")
        assert (ROOT / path).is_file(), path
        assert not anchor or anchor in anchors(ROOT / path)


def test_without_an_address_the_description_has_no_dead_links(build: Any) -> None:
    text = description(build, "1.2.3")

    assert not LINK.findall(text)
    assert len(text.splitlines()) == len(README.splitlines())
    assert "the [changelog]" not in text
    assert "the changelog says so" in text


def test_the_package_is_described_by_that_with_the_address_that_it_names(build: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "readme" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["metadata"]["hooks"] == {"custom": {}}
    urls = project["project"].get("urls", {})
    assert not urls or "Source" in urls
    assert all(url.startswith("https://") for url in urls.values())
    checklist = (
        (ROOT / "docs/contributing.md").read_text(encoding="utf-8").partition("## Release")[2]
    )
    assert "`[project.urls]`" in checklist
