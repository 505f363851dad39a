"""What a stranger does first with the installed wheel: reads it, then SQLite, then README's first block on PostgreSQL.

``try_package.py README.md``, with the interpreter of an environment that has nothing but the wheel and its extras.
"""

import asyncio
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import loopsafe_db
from loopsafe_db import Database
from loopsafe_db.testing.postgres import EmbeddedPostgres

README = Path(sys.argv[1]).read_text(encoding="utf-8")


def block(fence: str) -> str:
    """Give the first block of README with that fence."""
    found = re.search(rf"^```{fence}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    if found is None:
        sys.exit(f"README has no block ```{fence}")
    return found[1]


def read_description() -> None:
    """Look for links that lead nowhere from PyPI."""
    metadata = importlib.metadata.metadata("loopsafe-db")
    description = metadata.get_payload()
    dead = re.findall(r"\]\((?!https?:).*?\)", description)
    if dead or "## Install" not in description:
        sys.exit(f"the description on PyPI: {dead or 'not README'}")
    sources = [url for url in metadata.get_all("Project-URL") or [] if url.startswith("Source, ")]
    if sources and f"]({sources[0].removeprefix('Source, ')}/blob/" not in description:
        sys.exit(f"the description on PyPI has no links to {sources[0]}")


async def try_sqlite(db: Database) -> None:
    """Write a row and read it."""
    async with db.transaction():
        await db.execute("CREATE TABLE IF NOT EXISTS notes (text TEXT)")
        await db.execute("INSERT INTO notes VALUES (:text)", {"text": "hello"})
    if await db.fetch_val("SELECT text FROM notes") != "hello":
        sys.exit("SQLite gave another row")


def try_readme() -> None:
    """Run README's first block and compare what it prints."""
    with EmbeddedPostgres() as server:
        done = subprocess.run(
            [sys.executable, "-c", block("python run")],
            env={**os.environ, "LOOPSAFE_DB_URL": server.url},
            capture_output=True,
            text=True,
            timeout=60,
        )
    if (done.returncode, done.stdout) != (0, block("text output")):
        sys.exit(f"README's first block printed {done.stdout!r}\n{done.stderr}")


package = Path(loopsafe_db.__file__).parent
if not package.is_relative_to(sys.prefix):
    sys.exit(f"{package} is not what the wheel has installed in {sys.prefix}")
read_description()
asyncio.run(try_sqlite(Database("sqlite:///try_package.db")))
try_readme()
print(
    f"loopsafe_db {loopsafe_db.__version__} on Python {sys.version.split()[0]}: SQLite and README's first block"
)
