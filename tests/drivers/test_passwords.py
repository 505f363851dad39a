"""Passwords that expire: asked for by connection, kept while they last, asked again when refused."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from loopsafe_db import Database, Timeouts, Token
from loopsafe_db.errors import AuthenticationError, ConnectTimeout, InvalidSettingError
from tests.conftest import SCOPE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

    from loopsafe_db.options import Password


class Role:
    """A user of the server, whose password is changed now and then."""

    def __init__(self, admin_url: str) -> None:
        self._admin = Database(admin_url)
        self.name = f"role_{secrets.token_hex(4)}"
        self.password = "first"
        self._run(f"CREATE ROLE {self.name} LOGIN PASSWORD 'first'")

    def change_password(self, password: str) -> None:
        self.password = password
        self._run(f"ALTER ROLE {self.name} PASSWORD '{password}'")

    def drop(self) -> None:
        self._run(f"DROP ROLE {self.name}")

    def _run(self, statement: str) -> None:
        asyncio.run(self._admin.execute(statement))


@pytest.fixture
def role(postgres_url: str) -> Iterator[Role]:
    role = Role(postgres_url)
    yield role
    role.drop()


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, postgres_url: str, role: Role) -> URL:
    url = make_url(postgres_url).set(drivername=f"postgresql+{request.param}")
    return url.set(username=role.name, password="not this one")


def connect_anew(database: Database) -> str:
    """Ask for the user over a connection that is new."""

    async def ask() -> str:
        await database.disconnect()
        user: str = await database.fetch_val("SELECT current_user")
        await database.disconnect()
        return user

    return asyncio.run(ask())


class Vault:
    """Gives the password of now, and counts how often it was asked."""

    def __init__(self, role: Role, lifetime: float | None = None) -> None:
        self._role, self._lifetime = role, lifetime
        self.asked = 0

    def __call__(self) -> str | Token:
        self.asked += 1
        password = self._role.password
        return password if self._lifetime is None else Token(password, self._lifetime)

    async def later(self) -> str | Token:
        await asyncio.sleep(0)
        return self()


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_password_is_asked_for_by_each_new_connection(url: URL, role: Role, way: str) -> None:
    vault = Vault(role)
    database = Database(url, password=vault if way == "sync" else vault.later, scope=SCOPE)

    assert connect_anew(database) == role.name
    role.change_password("second")
    assert connect_anew(database) == role.name
    assert vault.asked == 2


def test_a_token_is_kept_while_it_lasts(url: URL, role: Role) -> None:
    lasting, expired = Vault(role, lifetime=60), Vault(role, lifetime=0)
    for vault in (lasting, expired):
        database = Database(url, password=vault, scope=SCOPE)
        for _ in range(3):
            assert connect_anew(database) == role.name

    assert (lasting.asked, expired.asked) == (1, 3)


def test_a_token_that_is_refused_is_replaced_once(url: URL, role: Role) -> None:
    vault = Vault(role, lifetime=60)
    database = Database(url, password=vault, scope=SCOPE)
    connect_anew(database)

    role.change_password("second")
    assert connect_anew(database) == role.name
    assert vault.asked == 2

    role.change_password("third")
    role.password = "wrong"
    with pytest.raises(AuthenticationError) as caught:
        connect_anew(database)
    assert vault.asked == 3
    assert not {"first", "second", "wrong"} & set(str(caught.value).replace('"', " ").split())


def test_sessions_and_loops_at_once_ask_as_well(url: URL, role: Role) -> None:
    vault = Vault(role, lifetime=60)
    database = Database(url, password=vault.later, scope=SCOPE)

    async def ask() -> None:
        async with database.engine.connect():
            await asyncio.gather(*(database.fetch_val("SELECT 1") for _ in range(3)))

    asyncio.run(ask())
    asyncio.run(ask())
    assert 1 <= vault.asked <= 4


async def never() -> str:
    await asyncio.sleep(60)
    return ""


def none() -> None:
    pass


@pytest.mark.parametrize(
    ("password", "error"), [(never, ConnectTimeout), (none, InvalidSettingError)]
)
async def test_a_callable_that_gives_none_is_an_error_in_time(
    url: URL, password: Password, error: type[Exception]
) -> None:
    database = Database(url, password=password, timeouts=Timeouts(connect=0.2), scope=SCOPE)

    with pytest.raises(error, match="password="):
        await database.fetch_val("SELECT 1")
    assert database.stats().in_use == 0


def test_a_password_is_never_shown() -> None:
    options = Database("postgresql://u:hidden@h/d", password=lambda: Token("hidden", 1))

    assert "hidden" not in repr(options)
    assert "hidden" not in repr(Token("hidden", 1))
