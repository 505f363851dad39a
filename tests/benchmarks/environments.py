"""Where contenders run: this environment, and one for peers that need an older SQLAlchemy."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import asyncpg

from tests.benchmarks.children import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PEERS = ("databases[asyncpg]==0.9.*", "databasez[asyncpg]==0.13.*")
PEERS_FOLDER = ROOT / "build" / "bench-databases"
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


def peers_python() -> Path | None:
    """Give the interpreter that has databases and databasez, installed on first use; None if that fails."""
    python = PEERS_FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = PEERS_FOLDER / "installed.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == "\n".join(PEERS):
        return python
    try:
        # Debian keeps venv's pip in a package of its own: the outer pip does the work.
        _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(PEERS_FOLDER))
        _run(*_PIP, "--python", str(python), "install", "--quiet", *PEERS)
    except subprocess.CalledProcessError as error:
        print(f"databases and databasez are left out: {error}", file=sys.stderr)
        return None
    stamp.write_text("\n".join(PEERS), encoding="utf-8")
    return python


def machine() -> dict[str, str]:
    """What the figures depend on, and nothing that tells whose machine it is."""
    return {
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{_system()}, {platform.machine()}",
        "CPUs": str(os.cpu_count()),
    }


def server_version(url: str) -> str:
    """Ask PostgreSQL for its version."""

    async def ask() -> str:
        connection = await asyncpg.connect(url)
        try:
            return str(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close()

    return asyncio.run(ask())


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
