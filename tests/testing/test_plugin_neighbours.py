"""The plugin beside pytest-bdd, pytest-django and Django's own TestCase, as the how-to on testing says."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.test_docs import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from loopsafe_db.testing.servers import PostgresServer

pytest_plugins = ["pytester"]

CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def loopsafe_db_schema():
    async def tables(database):
        await database.execute("CREATE TABLE users (name text)")
    return tables
"""
SHOP = """
import asyncio
from loopsafe_db import get_database

def store(name):
    asyncio.run(get_database().execute("INSERT INTO users VALUES (:name)", {"name": name}))

async def read():
    return [row["name"] for row in await get_database().fetch_all("SELECT name FROM users ORDER BY name")]
"""
FEATURE = """
Feature: users
  Scenario: two are stored
    When ann is stored
    And bob is stored
    Then there are ann, bob

  Scenario: nothing is left of another scenario
    When eve is stored
    Then there are eve
"""
STEPS = """
import asyncio
from pytest_bdd import parsers, scenarios, then, when
import shop

scenarios("users.feature")

@when(parsers.parse("{name} is stored"))
def stored(loopsafe_db, name):
    shop.store(name)

@then(parsers.parse("there are {names}"))
def there_are(loopsafe_db, names):
    assert asyncio.run(shop.read()) == names.split(", ")
"""
SETTINGS = """
SECRET_KEY = "x"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
"""
DJANGO = """
import asyncio
import pytest
from django.contrib.auth.models import User
from django.test import TestCase
import shop

def of_django():
    return [user.username for user in User.objects.all()]

@pytest.mark.parametrize("name", ["ann", "bob"])
def test_a_function(db, loopsafe_db, name):
    User.objects.create(username=name)
    assert asyncio.run(shop.read()) == []
    shop.store(name.upper())
    assert (of_django(), asyncio.run(shop.read())) == ([name], [name.upper()])

@pytest.mark.usefixtures("loopsafe_db")
class TestUsers(TestCase):
    def test_ann(self):
        self._check("ann")

    def test_bob(self):
        self._check("bob")

    def _check(self, name):
        User.objects.create(username=name)
        shop.store(name.upper())
        assert (of_django(), asyncio.run(shop.read())) == ([name], [name.upper()])

    async def test_a_coroutine(self):
        await User.objects.acreate(username="eve")
        assert await shop.read() == []
        assert [user.username async for user in User.objects.all()] == ["eve"]
"""
WITHOUT_PYTEST = """
import asyncio
from django.contrib.auth.models import User
from django.test import TestCase
from loopsafe_db import get_database
import shop

class TestUsers(TestCase):
    def setUp(self):
        self.enterContext(get_database().force_rollback())
        asyncio.run(get_database().execute("CREATE TABLE users (name text)"))

    def test_ann(self):
        self._check("ann")

    def test_bob(self):
        self._check("bob")

    def _check(self, name):
        User.objects.create(username=name)
        shop.store(name.upper())
        self.assertEqual([user.username for user in User.objects.all()], [name])
        self.assertEqual(asyncio.run(shop.read()), [name.upper()])
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(shop=SHOP)
    return pytester


def test_the_steps_of_a_scenario_are_one_test(
    project: pytest.Pytester, postgres_server: PostgresServer
) -> None:
    pytest.importorskip("pytest_bdd")
    project.makefile(".feature", users=FEATURE)
    project.makepyfile(test_users=STEPS)

    result = project.runpytest_subprocess("--loopsafe-url", postgres_server.url)

    result.assert_outcomes(passed=2)


def test_a_test_has_the_databases_of_django_and_of_handles(
    project: pytest.Pytester, postgres_server: PostgresServer
) -> None:
    pytest.importorskip("pytest_django")
    project.makepyfile(settings=SETTINGS, test_users=DJANGO)

    result = project.runpytest_subprocess(
        "--ds=settings", "--loopsafe-leaks=error", "--loopsafe-url", postgres_server.url
    )

    result.assert_outcomes(passed=5)


def test_a_case_of_django_alone_undoes_what_goes_by_handles(
    tmp_path: Path, postgres_url: str
) -> None:
    pytest.importorskip("django")
    files = {"settings": SETTINGS, "shop": SHOP, "test_users": WITHOUT_PYTEST}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "django", "test", "--settings=settings"],
        cwd=tmp_path,
        env={**os.environ, "LOOPSAFE_DB_URL": postgres_url, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr
    assert "Ran 2 tests" in done.stderr
