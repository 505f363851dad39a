"""What the package says of itself."""

from __future__ import annotations

import importlib.metadata

import pytest

import loopsafe_db


def test_the_version_is_that_of_what_is_installed() -> None:
    assert loopsafe_db.__version__ == importlib.metadata.version("loopsafe-db")


def test_a_name_that_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'loopsafe_db' has no attribute 'Databse'"):
        getattr(loopsafe_db, "Databse")  # noqa: B009  (mypy knows it, too)
