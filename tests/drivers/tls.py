"""A PostgreSQL with TLS, whose certificate can be good or wrong in one of the ways that certificates are."""

from __future__ import annotations

import asyncio
import datetime
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from loopsafe_db import Database
from loopsafe_db.testing.postgres import EmbeddedPostgres
from tests.conftest import skip_without_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = ("localhost", "127.0.0.1")
_YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
# Who may come in and how; none of them has a password.
_RULES = """
hostssl all certified 127.0.0.1/32 cert
hostssl all only_tls 127.0.0.1/32 trust
hostnossl all only_clear 127.0.0.1/32 trust
"""


class TlsServer:
    """A server, our authority, and what it has signed.

    Attributes:
        url: As its superuser.
        ca: The file of the authority that a client may trust.
        client: Certificate and key of user ``certified``.
        stranger: The same, by an authority that nobody knows.
    """

    def __init__(self, server: EmbeddedPostgres, folder: Path) -> None:
        self._authority, unknown = trustme.CA(), trustme.CA()
        self._folder, self._certificate = folder, ""
        self.url = server.url
        self._certificates = {
            "good": self._authority.issue_cert(*HERE),
            "unknown": unknown.issue_cert(*HERE),
            "wrong host": self._authority.issue_cert("elsewhere.example"),
            "expired": self._authority.issue_cert(
                *HERE, not_before=_YESTERDAY - datetime.timedelta(days=1), not_after=_YESTERDAY
            ),
        }
        self.ca = self._write("ca", self._authority.cert_pem)
        self.client = self._pair("client", self._authority.issue_cert(common_name="certified"))
        self.stranger = self._pair("stranger", unknown.issue_cert(common_name="certified"))
        self._configure()

    def use(self, certificate: str) -> None:
        """Show this one from now on: good, unknown, wrong host, expired; or none, for no TLS."""
        if certificate == self._certificate:
            return
        if certificate != "none":
            self._pair("server", self._certificates[certificate])
        self._alter("ssl", "off" if certificate == "none" else "on")
        self._reload()
        self._certificate = certificate

    def _configure(self) -> None:
        for role in ("certified", "only_tls", "only_clear"):
            self._ask(f"CREATE ROLE {role} LOGIN")
        rules = Path(self._ask("SHOW hba_file"))
        rules.write_text(_RULES + rules.read_text())
        for name, file in [("cert", "server.pem"), ("key", "server.key"), ("ca", "ca.pem")]:
            self._alter(f"ssl_{name}_file", str(self._folder / file))

    def _alter(self, name: str, value: str) -> None:
        self._ask(f"ALTER SYSTEM SET {name} = '{value}'")

    def _reload(self) -> None:
        before = self._ask("SELECT CAST(pg_conf_load_time() AS text)")
        self._ask("SELECT pg_reload_conf()")
        while self._ask("SELECT CAST(pg_conf_load_time() AS text)") == before:
            pass  # a session that begins after it has been done shows so

    def _ask(self, statement: str) -> str:
        async def ask() -> str:
            async with Database(f"{self.url}?sslmode=disable", scope="loop") as database:
                return str(await database.execute(statement))

        return asyncio.run(ask())

    def _pair(self, name: str, certificate: trustme.LeafCert) -> tuple[str, str]:
        return (
            self._write(name, certificate.cert_chain_pems[0]),
            self._write(name, certificate.private_key_pem, "key"),
        )

    def _write(self, name: str, blob: trustme.Blob, kind: str = "pem") -> str:
        path, owner = self._folder / f"{name}.{kind}", self._folder.stat()
        path.write_bytes(blob.bytes())
        path.chmod(0o600)
        os.chown(path, owner.st_uid, owner.st_gid)
        return str(path)


@contextmanager
def tls_server() -> Iterator[TlsServer]:
    """Start one. The embedded server has no TLS, Debian's has."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs and not os.environ.get("LOOPSAFE_REQUIRE_SERVERS"):
        pytest.skip("NO POSTGRESQL WITH TLS (Debian's has it): NOTHING IS PROVED HERE")
    with tempfile.TemporaryDirectory() as name:  # not pytest's, which the server may not enter
        os.chmod(name, 0o755)
        folder = Path(name) / "server"
        with skip_without_postgres(), EmbeddedPostgres(folder, programs=programs[-1]) as server:
            yield TlsServer(server, folder)
