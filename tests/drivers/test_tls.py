"""`sslmode`, `sslrootcert`, `sslcert` and `sslkey` do with both drivers what libpq's manual says."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import uvloop
from sqlalchemy import URL, make_url

from loopsafe_db import Database
from loopsafe_db._runtime.transport import live_transports
from loopsafe_db.errors import ConnectError, ConnectionLost, InvalidURLError
from tests.conftest import SCOPE
from tests.drivers.tls import TlsServer, tls_server
from tests.forks.staged_step import StagedStep

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
ENCRYPTED = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"

# libpq's manual, "SSL Support": what each mode makes of a server's certificate, with the authority's certificate at
# hand and without. In `prefer` a certificate that does not hold is a reason to go on without TLS.
CERTIFICATES = ("good", "unknown", "wrong host", "expired", "none")
WITH_ROOT = {
    "disable": ("clear", "clear", "clear", "clear", "clear"),
    "allow": ("clear", "clear", "clear", "clear", "clear"),
    "prefer": ("tls", "clear", "tls", "clear", "clear"),
    "require": ("tls", "refused", "tls", "refused", "refused"),
    "verify-ca": ("tls", "refused", "tls", "refused", "refused"),
    "verify-full": ("tls", "refused", "refused", "refused", "refused"),
}
WITHOUT_ROOT = {
    "disable": ("clear", "clear", "clear", "clear", "clear"),
    "allow": ("clear", "clear", "clear", "clear", "clear"),
    "prefer": ("tls", "tls", "tls", "tls", "clear"),
    "require": ("tls", "tls", "tls", "tls", "refused"),
    "verify-ca": ("refused", "refused", "refused", "refused", "refused"),
    "verify-full": ("refused", "refused", "refused", "refused", "refused"),
}
MATRIX = [
    (root, mode, certificate, outcome)
    for root, table in (("root", WITH_ROOT), ("no root", WITHOUT_ROOT))
    for mode, outcomes in table.items()
    for certificate, outcome in zip(CERTIFICATES, outcomes, strict=True)
]


@pytest.fixture(scope="module")
def server() -> Iterator[TlsServer]:
    with tls_server() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where libpq looks for certificates that nobody names."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".postgresql"
    folder.mkdir()
    return folder


@pytest.fixture(params=["postgresql+asyncpg", "postgresql+psycopg"])
def url(request: pytest.FixtureRequest, server: TlsServer, home: Path) -> URL:
    return make_url(server.url).set(drivername=request.param)


def outcome_of(url: URL, **names: str) -> tuple[str, str]:
    """Connect in each kind of loop: ``"tls"``, ``"clear"``, or ``"refused"`` and the error's text."""
    outcomes = {outcome_in(make_loop, url.update_query_dict(names)) for make_loop in LOOPS}
    assert len({kind for kind, _ in outcomes}) == 1
    return outcomes.pop()


def outcome_in(make_loop: Any, url: URL) -> tuple[str, str]:
    async def connect() -> tuple[str, str]:
        try:
            async with asyncio.timeout(5), Database(url, scope=SCOPE) as database:
                return ("tls" if await database.fetch_val(ENCRYPTED) else "clear"), ""
        except ConnectError as error:
            assert open_transports() <= transports  # already
            return "refused", f"{type(error).__name__} {error}"

    before, transports = open_sockets(), open_transports()
    with asyncio.Runner(loop_factory=make_loop) as runner:
        outcome = runner.run(connect())
    gc.collect()
    assert open_sockets() <= before
    assert open_transports() <= transports
    return outcome


def open_transports() -> int:
    return sum(not one.closing for one in live_transports())


def open_sockets() -> int:
    folder = Path("/proc/self/fd")
    return sum(
        os.readlink(one).startswith("socket") for one in folder.glob("*") if one.is_symlink()
    )


def without_tls(url: URL) -> str:
    """How `prefer` ends where the certificate will not do: asyncpg 0.30 does not try again without TLS."""
    old = url.get_driver_name() == "asyncpg" and asyncpg.__version__.startswith("0.30.")
    return "refused" if old else "clear"


@pytest.mark.parametrize(("root", "mode", "certificate", "outcome"), MATRIX)
def test_a_certificate_means_what_the_manual_says(
    server: TlsServer, url: URL, root: str, mode: str, certificate: str, outcome: str
) -> None:
    server.use(certificate)
    names = {"sslmode": mode, **({"sslrootcert": server.ca} if root == "root" else {})}
    kind, text = outcome_of(url, **names)
    if (root, mode, outcome) == ("root", "prefer", "clear") and certificate != "none":
        outcome = without_tls(url)
    assert kind == outcome, text
    if kind == "refused":
        missing = "does not exist" in text
        assert text.startswith("ConnectSettingError" if missing else "ConnectError "), text
        assert "certificate" in text.lower() or (certificate == "none" and "SSL" in text)


@pytest.mark.parametrize("mode", ["require", "verify-full"])
def test_a_name_counts_as_an_address_does(server: TlsServer, url: URL, mode: str) -> None:
    server.use("good")
    names = {"sslmode": mode, "sslrootcert": server.ca}
    assert outcome_of(url.set(host="localhost"), **names)[0] == "tls"
    server.use("wrong host")
    expected = "tls" if mode == "require" else "refused"
    assert outcome_of(url.set(host="localhost"), **names)[0] == expected


@pytest.mark.parametrize(
    ("user", "tls_modes", "clear_modes"),
    [
        ("only_tls", ("allow", "prefer", "require"), ()),
        ("only_clear", (), ("disable", "allow", "prefer")),
    ],
)
def test_a_server_that_takes_only_one_way_gets_it(
    server: TlsServer, url: URL, user: str, tls_modes: tuple[str, ...], clear_modes: tuple[str, ...]
) -> None:
    server.use("good")
    url = url.set(username=user)
    for mode in ("disable", "allow", "prefer", "require"):
        kind, text = outcome_of(url, sslmode=mode)
        assert kind == (
            "tls" if mode in tls_modes else "clear" if mode in clear_modes else "refused"
        ), (mode, text)
        assert kind != "refused" or text.startswith("AuthenticationError")


def test_a_root_certificate_in_the_home_folder_counts(
    server: TlsServer, url: URL, home: Path
) -> None:
    shutil.copy(server.ca, home / "root.crt")
    unknown = without_tls(url), "refused"
    for certificate, outcomes in [("good", ("tls", "tls")), ("unknown", unknown)]:
        server.use(certificate)
        assert outcome_of(url, sslmode="prefer")[0] == outcomes[0]
        assert outcome_of(url, sslmode="require")[0] == outcomes[1]


def test_a_root_certificate_that_is_not_there_verifies_nothing(
    server: TlsServer, url: URL, home: Path
) -> None:
    server.use("unknown")
    names = {"sslrootcert": str(home / "nothing")}
    assert outcome_of(url, sslmode="require", **names)[0] == "tls"
    kind, text = outcome_of(url, sslmode="verify-ca", **names)
    assert kind == "refused"
    assert text.startswith("ConnectSettingError"), text
    assert f"{home / 'nothing'}" in text


def test_the_systems_authorities_go_with_full_verification_only(
    server: TlsServer, url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.use("good")
    assert outcome_of(url, sslrootcert="system")[0] == "refused"
    monkeypatch.setenv("SSL_CERT_FILE", server.ca)  # the system's authorities, to OpenSSL
    assert outcome_of(url, sslrootcert="system")[0] == "tls"
    server.use("wrong host")
    assert outcome_of(url, sslrootcert="system")[0] == "refused"
    with pytest.raises(InvalidURLError, match="verify-full"):
        Database(url.update_query_dict({"sslrootcert": "system", "sslmode": "require"}))


# -- certificates of clients


@pytest.fixture
def certified(server: TlsServer, url: URL) -> URL:
    server.use("good")
    return url.set(username="certified", password=None).update_query_dict({"sslmode": "require"})


def test_a_client_is_known_by_its_certificate(server: TlsServer, certified: URL) -> None:
    cert, key = server.client
    assert outcome_of(certified, sslcert=cert, sslkey=key)[0] == "tls"


def test_a_client_without_a_certificate_is_refused(
    server: TlsServer, certified: URL, home: Path
) -> None:
    nothing, (_, key) = str(home / "nothing"), server.client
    for names in ({}, {"sslcert": nothing}, {"sslcert": nothing, "sslkey": key}):
        kind, text = outcome_of(certified, **names)
        assert kind == "refused"
        assert text.startswith("AuthenticationError"), text


def test_a_certificate_of_a_stranger_is_refused(server: TlsServer, certified: URL) -> None:
    cert, key = server.stranger
    assert outcome_of(certified, sslcert=cert, sslkey=key)[0] == "refused"


def test_a_key_that_is_missing_or_open_to_others_is_refused(
    server: TlsServer, certified: URL, home: Path
) -> None:
    cert, key = server.client
    kind, text = outcome_of(certified, sslcert=cert, sslkey=str(home / "nothing"))
    assert (kind, str(home / "nothing") in text) == ("refused", True)
    assert text.startswith("ConnectSettingError"), text
    shutil.copy(key, home / "open.key")
    (home / "open.key").chmod(0o644)
    kind, text = outcome_of(certified, sslcert=cert, sslkey=str(home / "open.key"))
    assert kind == "refused"
    assert text.startswith("ConnectSettingError"), text
    assert "group or world access" in text


@pytest.mark.parametrize("loop_factory", LOOPS)
@pytest.mark.parametrize("mode", ["require", "disable"])
def test_what_the_server_says_before_it_ends_a_session_is_told(
    server: TlsServer, url: URL, mode: str, loop_factory: Any
) -> None:
    server.use("good")

    async def lose() -> None:
        async with (
            Database(url.update_query_dict({"sslmode": mode})) as database,
            database.transaction(),
        ):
            assert await database.fetch_val(ENCRYPTED) is (mode == "require")
            pid = await database.fetch_val("SELECT pg_backend_pid()")
            async with Database(server.url) as witness:
                await witness.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
            await database.fetch_val("SELECT 1")

    with asyncio.Runner(loop_factory=loop_factory) as runner, pytest.raises(ConnectionLost) as told:
        runner.run(lose())
    assert "terminating connection due to administrator command" in str(told.value)


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_fork_waits_for_the_step_in_which_tls_begins(
    server: TlsServer, loop_factory: Any
) -> None:
    """What OpenSSL has locked in that step would be locked in the child for ever."""
    step = StagedStep()

    class Context(ssl.SSLContext):
        def wrap_bio(self, *args: Any, **options: Any) -> Any:
            step.take()
            return super().wrap_bio(*args, **options)

    context = Context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    server.use("good")
    database = Database(server.url, ssl=context)

    def work() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            assert runner.run(database.fetch_val(ENCRYPTED))

    assert step.is_whole_in_a_child(work)
