"""A real pgpool before a PostgreSQL; it is looked for as a PgBouncer of today is."""

from __future__ import annotations

import shutil
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL, make_url

from loopsafe_db.errors import ServerUnavailableError
from tests.drivers.pgbouncer import OF_TODAY, free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator

_SETTINGS = """
backend_clustering_mode = 'streaming_replication'
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{folder}'
pcp_listen_addresses = ''
pcp_port = {pcp_port}
pcp_socket_dir = '{folder}'
wd_ipc_socket_dir = '{folder}'
pid_file_name = '{folder}/pid'
work_dir = '{folder}'
logdir = '{folder}'
backend_hostname0 = '{host}'
backend_port0 = {backend_port}
backend_weight0 = 1
sr_check_period = 0
num_init_children = 16
max_pool = 1
pool_passwd = 'pool_passwd'
enable_pool_hba = off
"""


@contextmanager
def pgpool(server: str) -> Iterator[URL]:
    """Run it; the URL of the same database through it.

    Raises:
        ServerUnavailableError: There is none.
    """
    program = shutil.which("pgpool", path=OF_TODAY)
    if program is None:
        raise ServerUnavailableError("there is no program pgpool: see LOOPSAFE_TEST_POOLERS")
    url, port = make_url(server), free_port()
    with tempfile.TemporaryDirectory(prefix="ldb-pool-") as name:
        folder = Path(name)
        settings = _SETTINGS.format(
            folder=folder, host=url.host, backend_port=url.port, port=port, pcp_port=free_port()
        )
        (folder / "pgpool.conf").write_text(settings)
        (folder / "pool_passwd").write_text(f"{url.username}:TEXT{url.password}\n")
        (folder / "pcp.conf").touch()
        command = [program, "-n", "-f", f"{folder}/pgpool.conf", "-F", f"{folder}/pcp.conf"]
        # with SIGTERM it would wait for its clients
        with running(command, folder, port, ending=signal.SIGINT):
            yield url.set(port=port)
