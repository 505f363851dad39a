"""A Redis for a test, of the program that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def redis_server() -> Iterator[str]:
    """Run one on a socket in a folder, for the length of the block; give its URL."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("LOOPSAFE_REQUIRE_SERVERS"):
            pytest.fail("no redis-server here: apt-get install redis-server")
        pytest.skip("no redis-server here: apt-get install redis-server")
    with tempfile.TemporaryDirectory(prefix="ldb-redis-") as folder:
        command = [program, "--port", "0", "--unixsocket", f"{folder}/redis", "--save", ""]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            assert any("eady to accept connections" in line for line in server.stdout)
            try:
                yield f"unix://{folder}/redis"
            finally:
                server.terminate()
