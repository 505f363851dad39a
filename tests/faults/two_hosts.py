"""A fleet on two hosts: ``unshare --net python -m tests.faults.two_hosts WORKERS``.

In this network of its own each host is a further one, with an address on a bridge. Each has one worker, the budget is
four connections, and WORKERS is how many each of them counts. Prints as JSON what the doctor finds. If WORKERS is
``pgbouncer``, there is no budget, but one in transaction mode in front; it prints how many sessions the server has.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from loopsafe_db import Database, get_database
from loopsafe_db.cli.database_checks import check_database
from loopsafe_db.testing.postgres import EmbeddedPostgres
from tests.drivers.pgbouncer import pgbouncer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

BUDGET = 4
HERE, HOSTS = "10.77.0.1", ("10.77.0.2", "10.77.0.3")
MANY = 8  # queries at once
_SESSIONS = """
SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def _ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True)


def _make_network() -> None:
    _ip("link", "set", "lo", "up")
    _ip("link", "add", "bridge", "type", "bridge")
    _ip("address", "add", f"{HERE}/24", "dev", "bridge")
    _ip("link", "set", "bridge", "up")


@contextmanager
def _host(address: str) -> Iterator[None]:
    """A worker on a host of this address, with all the connections that it may have."""
    join = 'read go && ip address add "$0/24" dev wire && ip link set wire up && exec "$@"'
    command = (sys.executable, "-m", "tests.faults.two_hosts", "work")
    with subprocess.Popen(
        ("unshare", "--net", "sh", "-c", join, address, *command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        plug = f"plug{address[-1]}"
        _wait_for_its_network(process.pid)
        _ip("link", "add", plug, "type", "veth", "peer", "wire", "netns", str(process.pid))
        _ip("link", "set", plug, "master", "bridge", "up")
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "connected\n"
        yield
        process.stdin.close()


def _wait_for_its_network(pid: int) -> None:
    ours = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{pid}/ns/net") == ours:
        pass  # no event tells of it


async def _work() -> None:
    db = get_database()
    await asyncio.gather(*(db.fetch_val("SELECT 1 FROM pg_sleep(0.1)") for _ in range(MANY)))
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await db.disconnect()


async def _ask(url: str, query: str) -> str:
    async with Database(url) as database:
        return str(await database.fetch_val(query))


def _let_in(url: str) -> None:
    """Have the server let in who comes from the bridge."""
    hba = Path(asyncio.run(_ask(url, "SHOW hba_file")))
    hba.write_text(f"{hba.read_text()}\nhost all all 10.77.0.0/24 scram-sha-256\n")
    asyncio.run(_ask(url, "SELECT pg_reload_conf()"))


def main(workers: str) -> None:
    """Connect both, and have the doctor look, or count."""
    _make_network()
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres(settings={"listen_addresses": "*"}))
        _let_in(server.url)
        os.environ["LOOPSAFE_DB_APPLICATION_NAME"] = "reflector {process} {pid}"
        if workers == "pgbouncer":
            pooler = stack.enter_context(pgbouncer(server.url, "transaction", listens="*"))
            _connect_both(pooler, {"PGBOUNCER": "transaction"}, stack)
            found: object = int(asyncio.run(_ask(server.url, _SESSIONS)))
        else:
            budget = {"FLEET_CONNECTIONS": str(BUDGET), "FLEET_WORKERS": workers}
            url = _connect_both(make_url(server.url), budget, stack)
            found = [asdict(each) for each in asyncio.run(check_database(url))]
        print(json.dumps(found), flush=True)


def _connect_both(url: URL, settings: dict[str, str], stack: ExitStack) -> str:
    """Have a worker on each host use it; the URL as they know it."""
    known = url.set(host=HERE).render_as_string(hide_password=False)
    for name, value in {"URL": known, **settings}.items():
        os.environ[f"LOOPSAFE_DB_{name}"] = value
    for address in HOSTS:
        stack.enter_context(_host(address))
    return known


if __name__ == "__main__":
    if sys.argv[1] == "work":
        asyncio.run(_work())
    else:
        main(sys.argv[1])
